r"""Rewrite notations that math-verify does not read, or not rightly, into those that it does.

    full-width and Chinese characters, ½, x² ... -> 5  (1,2)  \frac{1}{2}  x^{2}  \sqrt{x+1}  x=1 or x=2
    0.1\overline{6}  0.\dot{3}  0.(36)  0.333\ldots   -> \frac{1}{6}  \frac{1}{3}  \frac{4}{11}  \frac{1}{3}
    1e-05  1.5E3                          -> 1\times 10^{-5}  1.5\times 10^{3}
    {}^{10}C_3  C_{10}^{3}                -> \binom{10}{3}
    (52)_{\text{eight}}  52 (base 8)      -> 52_{8}
    3 \pmod 7  3\ (\text{mod } 7)         -> 3\pmod{7}
    120\degree  f^{\prime}(x)             -> 120^\circ  f'(x)

Each function turns text into text, and leaves alone what does not clearly have such a form.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

WRAPPER = r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|textrm|operatorname)\s*"
"""A command that sets words, as a regular expression."""
WRAPPED = re.compile(rf"{WRAPPER}\{{([^{{}}\\]*)\}}")


def unwrap(text: str) -> str:
    r"""Remove `\text{}` and similar commands, and reduce blanks to single ones.

    >>> unwrap(r"3\text{ red  boxes}")
    '3 red boxes'
    """
    return re.sub(r"\s+", " ", WRAPPED.sub(r" \1 ", text)).strip()


# ------------------------------------------------------------------------------ characters

_CHARACTERS = {
    "\N{MINUS SIGN}": "-", "\N{HYPHEN}": "-", "\N{NON-BREAKING HYPHEN}": "-", "\N{FRACTION SLASH}": "/",
    "\N{DIVISION SLASH}": "/", "\N{RATIO}": ":", "\N{PRIME}": "'", "\N{DOUBLE PRIME}": "''",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{LEFT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"', "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
    "\N{LEFT CORNER BRACKET}": '"', "\N{RIGHT CORNER BRACKET}": '"',
    "\N{MULTIPLICATION SIGN}": r"\times ", "\N{DIVISION SIGN}": r"\div ", "\N{MIDDLE DOT}": r"\cdot ",
    "\N{DOT OPERATOR}": r"\cdot ", "\N{BULLET OPERATOR}": r"\cdot ", "\N{GREEK SMALL LETTER PI}": r"\pi ",
    "\N{INFINITY}": r"\infty ", "\N{LESS-THAN OR EQUAL TO}": r"\le ", "\N{GREATER-THAN OR EQUAL TO}": r"\ge ",
    "\N{LESS-THAN OR SLANTED EQUAL TO}": r"\le ", "\N{GREATER-THAN OR SLANTED EQUAL TO}": r"\ge ",
    "\N{NOT EQUAL TO}": r"\ne ", "\N{ALMOST EQUAL TO}": r"\approx ", "\N{IDENTICAL TO}": r"\equiv ",
    "\N{PLUS-MINUS SIGN}": r"\pm ", "\N{MINUS-OR-PLUS SIGN}": r"\mp ", "\N{UNION}": r"\cup ",
    "\N{INTERSECTION}": r"\cap ", "\N{ELEMENT OF}": r"\in ", "\N{EMPTY SET}": r"\emptyset ", "\N{ANGLE}": r"\angle ",
    "\N{INCREMENT}": r"\triangle ", "\N{WHITE UP-POINTING TRIANGLE}": r"\triangle ",
    "\N{DOUBLE-STRUCK CAPITAL R}": r"\mathbb{R} ", "\N{DEGREE SIGN}": r"^\circ ",
    "\N{DEGREE CELSIUS}": r"^\circ \text{C}", "\N{HORIZONTAL ELLIPSIS}": r"\ldots ",
    "\N{MIDLINE HORIZONTAL ELLIPSIS}": r"\cdots ", "\N{IDEOGRAPHIC COMMA}": ",", "\N{IDEOGRAPHIC FULL STOP}": ".",
    "\N{IDEOGRAPHIC SPACE}": " ", "\N{NO-BREAK SPACE}": " ", "\N{NARROW NO-BREAK SPACE}": " ", "\N{THIN SPACE}": " ",
    "\N{ZERO WIDTH SPACE}": "",
    # \alpha, \beta, \frac and \vec whose first two characters were read as an escape
    "\x07": r"\a", "\x08": r"\b", "\x0c": r"\f", "\x0b": r"\v",
}  # fmt: skip
_CHARACTERS |= {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5E)}  # full-width ASCII
_CHARACTERS |= {
    character: r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", character).split("\N{FRACTION SLASH}"))
    for character in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"
}
_TABLE = str.maketrans(_CHARACTERS)
_FOREIGN_DIGIT = re.compile(r"(?![0-9])\d")  # of other scripts, and bold ones
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_SHIFTED = re.compile(f"[{''.join(_RAISED)}]+|[{''.join(_LOWERED)}]+")
_BAR = "\N{COMBINING OVERLINE}"
_BARRED = re.compile(f"(?:[0-9]{_BAR})+")
_CONJUNCTION = re.compile(r"(?<![\u4e00-\u9fff])(?:(或者?)|和|与|且|以及)(?![\u4e00-\u9fff])")
_ROOT = re.compile("\N{SQUARE ROOT}" r"\s*(?:\(([^()]*)\)|([0-9]+|[a-zA-Z]))|\\sqrt\s*([0-9]+)")
_TAB = re.compile(r"\t(?=(?:ext|imes|heta|frac|riangle)(?![a-zA-Z]))")  # \text, \times ... likewise
_DEGREE = re.compile(r"\\degree(?![a-zA-Z])")
_PRIMES = re.compile(r"\^\s*(?:\{\s*((?:\\prime\s*)+)\}|(\\prime)(?![a-zA-Z]))")


def rewrite_characters(text: str) -> str:
    r"""Rewrite characters beyond ASCII, and control characters that once were a backslash and a letter.

    >>> rewrite_characters("\uff081\uff0c2½\uff09"), rewrite_characters("x²"), rewrite_characters("\x0crac{1}{2}")
    ('(1,2\\frac{1}{2})', 'x^{2}', '\\frac{1}{2}')
    """
    if not text.isascii():
        text = _SHIFTED.sub(_shift, _CONJUNCTION.sub(lambda m: " or " if m[1] else " and ", text))
        text = _FOREIGN_DIGIT.sub(lambda m: str(unicodedata.digit(m[0])), text)
        text = re.sub("^\N{EN DASH}\\s*(?=[0-9.])", "-", text)  # elsewhere it may say from ... to
        text = _BARRED.sub(lambda m: rf"\overline{{{m[0].replace(_BAR, '')}}}", text)
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2] or m[3]}}}", _TAB.sub(r"\\t", text)).translate(_TABLE)
    text = _PRIMES.sub(lambda m: "'" * m[0].count("prime"), text)
    return _DEGREE.sub(r"^\\circ ", text)


def _shift(match: re.Match[str]) -> str:
    """Rewrite raised digits as a power, lowered ones as an index."""
    sign, table = ("^", _RAISED) if match[0][0] in _RAISED else ("_", _LOWERED)
    return f"{sign}{{{''.join(table[character] for character in match[0])}}}"


# ------------------------------------------------------------------------------ decimals

_REPEATING = re.compile(
    r"""(?<![0-9.,])([0-9]*)\.([0-9]*)(?:
        \\(?:overline|bar)\s*(?:\{([0-9]+)\}|([0-9]))
        | \(([0-9]+)\)
        | \\dot\s*(?:\{([0-9])\}|([0-9]))(?:([0-9]*)\\dot\s*(?:\{([0-9])\}|([0-9])))?
    )(?![0-9.(!^])""",
    re.VERBOSE,
)
_ENDLESS = re.compile(r"(?<![0-9.,])([0-9]*)\.([0-9]{3,40})\s*(?:\.{3}|\\[lc]?dots)(?![a-zA-Z0-9])")
_MIXED = re.compile(r"([+-]?[0-9]+) +([0-9]+)/([0-9]+)")
_BARE_POWER = re.compile(r"(?<=10)\s*\^\s*(-[0-9]+)(?![0-9.])")
_TIMES_TEN = re.compile(r"(?<=[0-9])\s*[x*]\s*(?=10\s*\^)")
_SCIENTIFIC = re.compile(r"(?<![0-9A-Za-z.\\_^])([0-9]+\.?[0-9]*)[eE]([+-]?)([0-9]+)(?![0-9A-Za-z_]|\.[0-9])")


def rewrite_decimals(text: str) -> str:
    r"""Rewrite repeating decimals as fractions, and the numbers that programs print with an exponent.

    `2e-3` is left alone, for it is also 2e - 3. An exponent of two digits, or without a sign, or after a decimal point,
    is one that a program printed.

    >>> rewrite_decimals(r"33.\overline{3}\%"), rewrite_decimals(r"0.\dot{1}4285\dot{7}"), rewrite_decimals("1e-05")
    ('\\frac{100}{3}\\%', '\\frac{1}{7}', '1\\times 10^{-5}')
    >>> rewrite_decimals("0.1666..."), rewrite_decimals("3.14159..."), rewrite_decimals("2e-3")
    ('\\frac{1}{6}', '3.14159...', '2e-3')
    """
    if "." in text:
        text = _ENDLESS.sub(_read_endless, _REPEATING.sub(_read_repeating, text))
    text = _BARE_POWER.sub(r"^{\1}", _TIMES_TEN.sub(r"\\times ", text))
    return _SCIENTIFIC.sub(_read_scientific, text)


def rewrite_mixed(text: str) -> str:
    r"""Write a mixed number with a fraction: math-verify reads `1 1/2` as a product.

    >>> rewrite_mixed("1 1/2"), rewrite_mixed("11/2")
    ('1\\frac{1}{2}', '11/2')
    """
    match = _MIXED.fullmatch(text)
    return rf"{match[1]}\frac{{{match[2]}}}{{{match[3]}}}" if match else text


def _read_repeating(match: re.Match[str]) -> str:
    """Return the fraction for a decimal whose period is marked."""
    whole, fixed, *period = match.groups("")
    return _make_fraction(whole, fixed, "".join(period))


def _read_endless(match: re.Match[str]) -> str:
    """Return the fraction for a decimal whose written digits end in a period that is clear, else the decimal.

    A period is clear if it is written three times, or twice if it is longer than a digit and begins at once: 2.7 1828
    1828 is no such number.
    """
    whole, digits = match.groups()
    for length in range(1, len(digits) // 2 + 1):
        times = 1
        while digits[-length * (times + 1) :].startswith(digits[-length:]) and length * (times + 1) <= len(digits):
            times += 1
        fixed = digits[: len(digits) - length * times]
        if times >= (2 if length > 1 and not fixed else 3):
            return _make_fraction(whole, fixed, digits[-length:])
    return match[0]


def _make_fraction(whole: str, fixed: str, period: str) -> str:
    r"""Return a repeating decimal as a fraction.

    >>> _make_fraction("0", "1", "6"), _make_fraction("", "", "9")
    ('\\frac{1}{6}', '1')
    """
    exact = int(f"0{whole}{fixed}") + Fraction(int(period), 10 ** len(period) - 1)
    value = exact / 10 ** len(fixed)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}" if value.denominator > 1 else str(value)


def _read_scientific(match: re.Match[str]) -> str:
    """Return a number with an exponent in LaTeX, unless `e` may be the base of the logarithm."""
    mantissa, sign, exponent = match.groups()
    if sign and len(exponent) < 2 and "." not in mantissa:
        return match[0]
    return rf"{mantissa}\times 10^{{{sign.replace('+', '')}{int(exponent)}}}"


# ------------------------------------------------------------------------------ combinations, bases, residues

_UP, _DOWN = (rf"{sign}\s*(?:\{{\s*[0-9]+\s*\}}|[0-9])\s*" for sign in (r"\^", "_"))
_C = r"(?:\\(?:mathrm|text)\s*\{\s*C\s*\}|C)\s*"
_CHOICES = re.compile(
    rf"(?:\{{\s*\}}\s*|(?<![0-9A-Za-z)}}\]\\]))(?:{_UP}|{_DOWN}){_C}{_DOWN}"
    rf"|(?<![0-9A-Za-z)}}\]^_\\]){_C}(?:{_DOWN}{_UP}|{_UP}{_DOWN})"
)
_NAMED = dict(
    zip("two three four five six seven eight nine ten twelve sixteen".split(), [*range(2, 11), 12, 16], strict=True)
)
_TEXT = r"\\(?:text|mathrm|textbf|mbox)\s*"
_BASED = re.compile(
    rf"\(?(?:{_TEXT}\{{)?\s*([0-9A-F]*[0-9][0-9A-F]*)\s*\}}?\)?\s*(?:"
    rf"_\s*\{{?\s*(?:{_TEXT}\{{)?\s*\(?(?:base\s*\}}?\s*)?([0-9]{{1,2}}|[a-z]+)\)?"
    rf"|(?:{_TEXT}\{{)?\s*\(?(?:in )?base[ -]\s*\}}?\s*([0-9]{{1,2}}|[a-z]+)\)?"
    r")[\s})]*"
)
_MODULUS = re.compile(
    r"\\pmod\s*(?:\{\s*([^{}]*?)\s*\}|([0-9]+|[a-z]))"
    r"|(?:\\left\s*)?\(\s*(?:\\b?mod|\\(?:text|mathrm|operatorname)\s*\{\s*mod\s*\}|mod)(?![a-zA-Z])"
    r"\s*\{?\s*([0-9a-z]+)\s*\}?\s*(?:\\right\s*)?\)"
)


def rewrite_forms(text: str) -> str:
    r"""Rewrite combinations, numbers in another base, and residues.

    >>> rewrite_forms("{}^{10}C_3"), rewrite_forms(r"52_{\text{eight}}"), rewrite_forms(r"3 \pmod 7")
    ('\\binom{10}{3}', '52_{8}', '3 \\pmod{7}')
    """
    if "C" in text:
        text = _CHOICES.sub(_read_choices, text)
    if "mod" in text:
        text = _MODULUS.sub(lambda m: rf"\pmod{{{m[1] or m[2] or m[3]}}}", text)
    based = _BASED.fullmatch(text) if "_" in text or "base" in text else None
    base = based and (based[2] or based[3])
    base = str(_NAMED.get(base, base)) if base else ""
    if not based or not base.isdigit() or not 2 <= int(base) <= 36:
        return text
    return f"{based[1]}_{{{base}}}"


def _read_choices(match: re.Match[str]) -> str:
    """Return a number of combinations as a binomial; the larger number is the upper one."""
    lower, upper = sorted(map(int, re.findall("[0-9]+", match[0])))
    return rf"\binom{{{upper}}}{{{lower}}}"
