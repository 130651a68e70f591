r"""Read the words beside a number: units of measure, things that are counted, or words that change the number.

5 cm, 5 dollars per day, 5 red marbles, 5 厘米     say 5
5 or more, 5 dozen, 5 tenths, 5 is wrong          do not
"""

from __future__ import annotations

import re

# A unit a line: its name, and how it is written. Two answers may not name different units.
_MEASURES = """
millimetre   mm millimeter millimeters millimetre millimetres 毫米
centimetre   cm cms centimeter centimeters centimetre centimetres 厘米 平方厘米 立方厘米
decimetre    dm decimeter decimeters decimetre decimetres 分米
metre        m meter meters metre metres 米 平方米 立方米
kilometre    km kms kilometer kilometers kilometre kilometres kph kmh 千米 公里
inch         in inch inches 英寸
foot         ft foot feet 英尺
yard         yd yds yard yards
mile         mi mile miles mph 英里
acre         acre acres
hectare      ha hectare hectares
milligram    mg milligram milligrams
gram         g gram grams 克
kilogram     kg kgs kilogram kilograms 千克 公斤
ounce        oz ounce ounces
millilitre   ml milliliter milliliters millilitre millilitres 毫升
litre        l L liter liters litre litres 升
gallon       gal gallon gallons
quart        qt quart quarts
pint         pt pint pints
second       s sec secs second seconds 秒
minute       min mins minute minutes 分钟
hour         h hr hrs hour hours 小时
day          day days 天
week         week weeks 周
month        month months 个月
year         yr yrs year years 年 岁
degree       deg degree degrees 度
radian       rad rads radian radians
dollar       dollar dollars USD \\$ US\\$ 美元
cent         cent cents
euro         euro euros EUR € \\euro 欧元
yuan         yuan CNY RMB 元
yen          yen JPY
rupee        rupee rupees INR Rs Rs. ₹
sterling     GBP £ \\pounds 英镑
joule        J joule joules
newton       N newton newtons
watt         W watt watts kW
volt         V volt volts
pascal       Pa kPa pascal pascals
hertz        Hz kHz MHz hertz
mole         mol mole moles
calorie      cal kcal calorie calories
ampere       ampere amperes amp amps
ohm          ohm ohms
bit          bit bits
byte         byte bytes kB KB MB GB
celsius      celsius
fahrenheit   fahrenheit
ordinal      st nd rd th
"""
UNITS = {word: name for name, *words in map(str.split, _MEASURES.strip().splitlines()) for word in words}
CURRENCIES = (*(word for word in UNITS if not word.isalpha() or (word.isupper() and len(word) == 3)), "Rs", "¥")
"""How money is written before a number, and some of it also after one."""

_LENGTHS = frozenset("millimetre centimetre decimetre metre kilometre inch foot yard mile unit".split())
# Single letters that are a unit in \text{} or in a quotient such as `5 m/s`; elsewhere `5 m` may be a product. K and M
# are not among them, because they are also thousand and million.
_LETTERS = frozenset("mshgLlJNWVC")
# Counted things that do not end in s, and units that have many sizes.
_NOUNS = frozenset(
    "unit pound ton tonne people men women children feet teeth mice geese fish sheep deer dice pence cup egg man way"
    " box bag pen hat toy cow dog cat car bus".split()
)
_VAGUE = frozenset("unit pound cup ton".split())  # of many sizes, or none
_CHINESE_COUNT = re.compile(r"[个名只本条张块支棵辆件头匹朵种次位间组人][^半多余约或不以左上下数]{0,8}")
_CONNECTORS = frozenset("per of a an each every in on for from at".split())
_ARTICLES = frozenset("the this that his her their our".split())  # allowed after a connector
_TAILS = frozenset("total altogether left remaining each apiece long wide tall high deep old away ago all".split())
_FRACTIONS = (
    "half halve third quarter fourth fifth sixth seventh eighth ninth tenth eleventh twelfth fifteenth sixteenth"
    " twentieth hundredth thousandth millionth"
)
_MULTIPLES = "one ten dozen score gross couple pair hundred thousand million billion trillion"
# Words that change the number, weaken it, deny it, or say something about it.
_NOT_UNITS = frozenset(
    "and or not no nor none never neither than to least most more less few fewer many much some any over under above"
    " below between about around approximately approx nearly almost roughly exactly only just maybe perhaps possibly"
    " probably up down upwards beyond plus minus times multiplied divided percent percentage squared cubed factorial"
    " root base modulo mod remainder double triple twice thrice through until if when where unless except but so then"
    " which is are was were be been has have had does do did can cannot may might should will would equals exceeds"
    " means gives makes becomes remains seems fails lies wrong right true false correct incorrect invalid impossible"
    " undefined infinite infinity inclusive exclusive minimum maximum greater larger bigger smaller higher lower older"
    " younger longer shorter better worse too also as by with without versus yes always sometimes besides thus those"
    " these its sqrt frac sinh cosh tanh sinc alpha beta gamma delta theta lambda sigma omega point pi".split()
) | frozenset(word + end for word in (*_FRACTIONS.split(), *_MULTIPLES.split()) for end in ("", "s"))
_WORD = re.compile(r"[a-zA-Z]+|[\u4e00-\u9fff]+|[.]")
_PHRASE = re.compile(r"(?:[a-zA-Z\u4e00-\u9fff]+\.?(?:\^(?:-?[0-9]|\{-?[0-9]\}))?(?: ?[/·-] ?| |$)){1,9}")


def read_unit(phrase: str, certain: bool = False) -> str | None:
    """Return the name of the unit that the words after a number say, or None if they are not only that.

    The name is the counted thing, as in "marble", or "" for units of many sizes. `certain`: it is known that the words
    are no product of variables, so that single letters count too.

    >>> read_unit("dollars per day"), read_unit("red marbles"), read_unit("km/h"), read_unit("cm^2")
    ('dollar', 'marble', 'kilometre', 'centimetre')
    >>> [read_unit(phrase) for phrase in ("or more", "dozen", "tenths", "is wrong", "m", "x")]
    [None, None, None, None, None, None]
    """
    if not _PHRASE.fullmatch(phrase):
        return None
    if _CHINESE_COUNT.fullmatch(phrase) or (phrase in UNITS and not phrase.isascii()):
        return UNITS.get(phrase, "")
    words = [word for word in _WORD.findall(phrase) if word != "."]
    certain = certain or len(words) > 1
    leads = words[0] in _CONNECTORS and len(words) > 1  # `5 per day`, `5 in total`
    while len(words) > 1 and words[-1] in _TAILS:
        words.pop()
    if len(words) > 1 and words[-1] in ("squared", "cubed") and UNITS.get(words[-2], "unit") in _LENGTHS:
        words.pop()
    quotient = "/" in phrase or "·" in phrase
    after = next((i for i, word in enumerate(words) if i and (word in _CONNECTORS or quotient)), len(words))
    if any(word.lower() in _NOT_UNITS for word in words) or any(word.lower() in _ARTICLES for word in words[:after]):
        return None
    if not all(len(word) > 1 or word == "a" or (certain and word in _LETTERS) for word in words):
        return None
    return "" if leads else _read_noun(words[after - 1])


def _read_noun(word: str) -> str | None:
    """Return the unit that one word names, the singular of a counted thing, None for any other word.

    >>> _read_noun("inches"), _read_noun("marbles"), _read_noun("units"), _read_noun("less")
    ('inch', 'marble', '', None)
    """
    if word in UNITS or word.lower() in UNITS:
        return UNITS.get(word) or UNITS[word.lower()]
    plural = len(word) > 3 and word[-1] == "s" and word[-2] not in "sui"
    noun = word.lower()[:-1] if plural else word.lower() if word in _NOUNS else None
    return "" if noun in _VAGUE or word in _TAILS else noun
