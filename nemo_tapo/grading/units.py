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
kilometre    km kms kilometer kilometers kilometre kilometres 千米 公里
kilometre/hour kph kmh
inch         in inch inches 英寸
foot         ft foot feet 英尺
yard         yd yds yard yards
mile         mi mile miles 英里
mile/hour    mph
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
watt         W watt watts
kilowatt     kW kilowatt kilowatts
volt         V volt volts
pascal       Pa pascal pascals
kilopascal   kPa kilopascal kilopascals
hertz        Hz hertz
kilohertz    kHz kilohertz
megahertz    MHz megahertz
mole         mol mole moles
calorie      cal calorie calories
kilocalorie  kcal kilocalorie kilocalories Calorie Calories
ampere       ampere amperes amp amps
ohm          ohm ohms
bit          bit bits
byte         byte bytes
kilobyte     kB KB kilobyte kilobytes
megabyte     MB megabyte megabytes
gigabyte     GB gigabyte gigabytes
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
# Numbers that may stand before a counted thing, as in `five-dollar bills`, and are none themselves.
_NUMBER_WORDS = frozenset(
    word + end
    for word in (
        "two three four five six seven eight nine eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
        " nineteen twenty thirty forty fifty sixty seventy eighty ninety first thirteenth fourteenth seventeenth"
        " eighteenth nineteenth thirtieth fortieth fiftieth sixtieth seventieth eightieth ninetieth billionth"
        " trillionth quadrillion quintillion sextillion zillion lakh crore myriad googol googolplex milliard negative"
        " positive opposite"
    ).split()
    for end in ("", "s", "es")
) | frozenset(("twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties", "nineties"))
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


_RATES = frozenset("per a an each every".split())  # what stands behind them is what is divided by
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3, "\u5e73\u65b9": 2, "\u7acb\u65b9": 3}


def read_unit(phrase: str, certain: bool = False) -> str | None:
    """Return the name of the unit that the words after a number say, or None if they are not only that.

    The name is the counted thing, as in "marble", or "" for units of many sizes; with its power, and with the unit that
    it is divided by. `certain`: it is known that the words are no product of variables, so that single letters count
    too.

    >>> read_unit("dollars per day"), read_unit("red marbles"), read_unit("km/h"), read_unit("cm^2")
    ('dollar/day', 'marble', 'kilometre/hour', 'centimetre^2')
    >>> [read_unit(phrase) for phrase in ("or more", "dozen", "tenths", "is wrong", "m", "x")]
    [None, None, None, None, None, None]
    """
    if not _PHRASE.fullmatch(phrase):
        return None
    if _CHINESE_COUNT.fullmatch(phrase) or (phrase in UNITS and not phrase.isascii()):
        return _add_power(UNITS.get(phrase, ""), _POWERS.get(phrase[:2]))
    words = [word for word in _WORD.findall(phrase) if word != "."]
    certain = certain or len(words) > 1
    leads = words[0] in _CONNECTORS and len(words) > 1  # `5 per day`, `5 in total`
    while len(words) > 1 and words[-1] in _TAILS:
        words.pop()
    power = None
    if len(words) > 1 and words[-1] in ("squared", "cubed") and UNITS.get(words[-2], "unit") in _LENGTHS:
        power = _POWERS[words.pop()]
    quotient = "/" in phrase or "\u00b7" in phrase
    after = next((i for i, word in enumerate(words) if i and (word in _CONNECTORS or quotient)), len(words))
    if any(word.lower() in _NOT_UNITS for word in words) or any(word.lower() in _ARTICLES for word in words[:after]):
        return None
    if any(word.lower() in _NUMBER_WORDS for word in (words[after - 1], *words[0 if leads else after :])):
        return None
    if not all(len(word) > 1 or word == "a" or (certain and word in _LETTERS) for word in words):
        return None
    if leads:
        return _read_divisor(phrase, words[0], words[1:])
    noun = _read_noun(words[after - 1])
    if noun is None:
        return None
    power = (
        power or _read_power(phrase, words[after - 1]) or (after > 1 and _POWERS.get(words[after - 2].lower())) or None
    )
    link = "per" if "/" in phrase else words[after] if after < len(words) else ""
    return _add_power(noun, power) + _read_divisor(phrase, link, words[after:])


def contradict(unit: str, other: str) -> bool:
    """Tell whether two names of `read_unit` are of different units. What one of them leaves out contradicts nothing.

    >>> contradict("metre", "metre^2"), contradict("metre^3", "metre^2"), contradict("metre/second", "metre/hour")
    (False, True, True)
    """
    parts = zip(_split_name(unit), _split_name(other), strict=True)
    return any(part and second and part != second for part, second in parts)


def _split_name(unit: str) -> tuple[str, str, str, str]:
    """Return unit and power, and those of the divisor, each "" if it is not there."""
    (base, _, power), (divisor, _, divisor_power) = (part.partition("^") for part in (*unit.split("/"), "")[:2])
    return base, power, divisor, divisor_power or ("1" if divisor else "")


def _add_power(unit: str, power: int | None) -> str:
    return f"{unit}^{power}" if power and unit in _LENGTHS else unit


def _read_power(phrase: str, word: str) -> int | None:
    """Return the power behind a word of the phrase, as in `m^2`."""
    match = re.search(rf"(?<![a-zA-Z]){re.escape(word)}\.?\^\{{?(-?[0-9])", phrase)
    return int(match[1]) if match else None


def _read_divisor(phrase: str, link: str, words: list[str]) -> str:
    """Return "/hour" for words such as `per hour`, "" if they name no unit to divide by."""
    names = [word for word in words if word not in _CONNECTORS and word not in _ARTICLES]
    unit = _find_unit(names[0]) if names and link in _RATES else None
    power = (_read_power(phrase, names[0]) or names.count(names[0])) if unit else None
    return f"/{unit}" + (f"^{power}" if power and power > 1 else "") if unit and "/" not in unit else ""


def _find_unit(word: str) -> str | None:
    return UNITS.get(word) or UNITS.get(word.lower())


def _read_noun(word: str) -> str | None:
    """Return the unit that one word names, the singular of a counted thing, None for any other word.

    >>> _read_noun("inches"), _read_noun("marbles"), _read_noun("units"), _read_noun("less")
    ('inch', 'marble', '', None)
    """
    if unit := _find_unit(word):
        return unit
    plural = len(word) > 3 and word[-1] == "s" and word[-2] not in "sui"
    noun = word.lower()[:-1] if plural else word.lower() if word in _NOUNS else None
    return "" if noun in _VAGUE or word in _TAILS else noun
