r"""Normalise answers, and compare them without a computer algebra system: as integers or as text.

`normalise` changes how an answer is written and never what it means:

    $5$  \(5\)  {5}  5.      -> 5            delimiters, grouping braces, the full stop of the sentence
    1{,}000  1\,000  1 000   -> 1,000, 1000  thousands
    1 1/2                    -> 1\frac{1}{2} math-verify reads "1" times "1/2"
    \binom52  \varnothing    -> \binom{5}{2}  \emptyset
    {5 \choose 2}  \sqrt10   -> \binom{5}{2}  \sqrt{10}
    \bf{5} \color{red}{5}    -> 5            and other layout
    \text{Answer: } 5        -> 5            words that introduce an answer
    a\pm b  \{x \mid x > 3\} -> a+b,a-b  x > 3   (wording.py)
    minus, times, pi, infinity, degrees, square root ... as one Unicode character -> LaTeX
"""

from __future__ import annotations

import re

from nemo_tapo.grading.wording import expand_signs, unwrap_set_condition

_DELIMITER = re.compile(r"(\\\\)|\\[()\[\]]|(?<!\\)\$")  # a line break \\ before a bracket is kept
_NEGATIVE_SPACE = re.compile(r"\\!")
_SPACE = re.compile(r"(\\\\)|\\[,;: ]|\\q?quad(?![a-zA-Z])|~|\s")
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?![0-9])")
_MIXED = re.compile(r"([+-]?[0-9]+) +([0-9]+)/([0-9]+)")
_BINOMIAL = re.compile(r"\\[dt]?binom\s*([0-9])\s*([0-9])")
_ROOT = re.compile("(?:\N{SQUARE ROOT}" r"|\\sqrt)\s*([0-9]+)")
_CHOOSE = re.compile(r"\{([^{}\\]*)\\choose(?![a-zA-Z])([^{}\\]*)\}")
_STYLE = re.compile(
    r"\\(?:bf|it|tiny|small|normalsize|large|Large|LARGE|huge|Huge|displaystyle|textstyle)(?![a-zA-Z])\s*"
    r"|\\(?:text)?color\s*\{[a-zA-Z]*\}\s*|^\\approx\s*|^\\(?:underline|boldsymbol|bm)\s*(?=\{[^{}]*\}$)"
)
_LEAD = re.compile(
    r"(?i)^(?:\\text\s*\{\s*LEAD\s*\}|LEAD(?= ))\s*(?=.*[^ .])".replace(
        "LEAD", r"(?:the )?(?:final )?answer(?: is:?|:)"
    )
)
_TEXT_NUMBER = re.compile(r"\\text\s*\{\s*((?:\\\$)?\s*[0-9][0-9,.]*\s*(?:\\?%)?)\s*\}")
_SOLUTIONS = re.compile(r"(?i)\b(no (?:real )?solution)s\b")
_CHARACTERS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{MULTIPLICATION SIGN}": r"\times ",
        "\N{MIDDLE DOT}": r"\cdot ",
        "\N{GREEK SMALL LETTER PI}": r"\pi ",
        "\N{INFINITY}": r"\infty ",
        "\N{LESS-THAN OR EQUAL TO}": r"\le ",
        "\N{GREATER-THAN OR EQUAL TO}": r"\ge ",
        "\N{DEGREE SIGN}": r"^\circ ",
    }
)
_INTEGER = re.compile(r"([+-]?)([0-9]{1,400}|[0-9]{1,3}(?:,[0-9]{3}){1,100})(?:\.0*)?")
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mbox)\s*\{([^{}\\]*)\}")
_LAYOUT = re.compile(r"\\(?:left|right|displaystyle)(?![a-zA-Z])")
_LOOSE_SPACE = re.compile(r"(?<![0-9a-zA-Z]) +| +(?![0-9a-zA-Z])")


def normalise(answer: str) -> str:
    r"""Return `answer` in its normal form; see the table above.

    >>> normalise(r"$1{,}000$."), normalise("1 1/2"), normalise(r"a\pm b")
    ('1,000', '1\\frac{1}{2}', 'a+b,a-b')
    """
    text = _DELIMITER.sub(r"\1", answer.translate(_CHARACTERS))
    text = _SPACE.sub(lambda m: m[1] or " ", _NEGATIVE_SPACE.sub("", text)).replace("{,}", ",").replace("{:}", ":")
    text = _STYLE.sub("", _LEAD.sub("", text.strip())).rstrip(" .,;\\")  # a last backslash was a blank or a line break
    text = _strip_outer_braces(_CHOOSE.sub(r"\\binom{\1}{\2}", text))
    if match := _TEXT_NUMBER.fullmatch(text):
        text = match[1]
    text = _THOUSANDS.sub(lambda m: m[0].replace(" ", ""), text)
    text = _BINOMIAL.sub(r"\\binom{\1}{\2}", _ROOT.sub(r"\\sqrt{\1}", text)).replace(r"\varnothing", r"\emptyset")
    text = expand_signs(unwrap_set_condition(_SOLUTIONS.sub(r"\1", text)))
    mixed = _MIXED.fullmatch(text)
    return rf"{mixed[1]}\frac{{{mixed[2]}}}{{{mixed[3]}}}" if mixed else text


def _strip_outer_braces(text: str) -> str:
    """Turn `{{5}}` into `5`: math-verify reads braces that group nothing as a set."""
    while len(text) > 1 and text[0] == "{" and text[-1] == "}" and _first_closes_last(text):
        text = text[1:-1].strip()
    return text


def _first_closes_last(text: str) -> bool:
    """Tell whether the first brace is closed by the last character."""
    depth = 0
    for token in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return token.end() == len(text)
    return False


def parse_integer(normal: str) -> int | None:
    """Return the value of a normalised answer that is a plain integer, or None if it is something else.

    >>> [parse_integer(text) for text in ("073", "+5", "1,000", "5.0", "0.5")]
    [73, 5, 1000, 5, None]
    """
    match = _INTEGER.fullmatch(_WRAPPED.sub(r"\1", normal).strip())
    return int(match[1] + match[2].replace(",", "")) if match else None


def strip_layout(normal: str) -> str:
    r"""Remove what is only layout from a normalised answer: `\left`, `\text{}`, spare blanks, `\dfrac` for `\frac`.

    Two answers with the same result are equal. Two answers with different results may still be equal.

    >>> strip_layout(r"\left( \dfrac{1}{2}, \text{A} \right)")
    '(\\frac{1}{2},A)'
    """
    text = _LAYOUT.sub("", re.sub(r"\\[dt]frac", r"\\frac", normal))
    return _LOOSE_SPACE.sub("", _WRAPPED.sub(r"\1", text).strip().rstrip("."))


def measure_depth(text: str) -> int:
    """Return how deep braces, brackets and parentheses are nested, whether or not they match.

    >>> measure_depth("((1+2))"), measure_depth("5")
    (2, 0)
    """
    deepest = now = 0
    for bracket in re.finditer(r"[{}()\[\]]", text):
        now = now + 1 if bracket[0] in "{([" else max(now - 1, 0)
        deepest = max(deepest, now)
    return deepest
