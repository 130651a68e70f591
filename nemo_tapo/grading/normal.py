r"""Normalise answers, and compare them without a computer algebra system: as integers or as text.

`normalise` changes how an answer is written and never what it means:

    $5$  \(5\)  {5}  5.      -> 5            delimiters, grouping braces, the full stop of the sentence
    1{,}000  1\,000  1 000   -> 1,000, 1000  thousands
    1 1/2                    -> 1\frac{1}{2} math-verify reads "1" times "1/2"
    \binom52  \varnothing    -> \binom{5}{2}  \emptyset
    {5 \choose 2}  \sqrt10   -> \binom{5}{2}  \sqrt{10}
    \bf{5} \color{red}{5}    -> 5            and other layout
    \text{Answer: } 5        -> 5            words that introduce an answer (wording.py)
    a\pm b  \{x \mid x > 3\} -> a+b,a-b  x > 3   (answer_sets.py)
    0.\overline{3}  x²  5\degree  3 \pmod 7 -> \frac{1}{3}  x^{2}  5^\circ  3 \pmod{7}   (notation.py)
"""

from __future__ import annotations

import re
from functools import lru_cache

from nemo_tapo.grading.answer_sets import expand_signs, unwrap_set_condition
from nemo_tapo.grading.notation import (
    WRAPPED,
    rewrite_characters,
    rewrite_decimals,
    rewrite_forms,
    rewrite_mixed,
)
from nemo_tapo.grading.wording import strip_lead

_DELIMITER = re.compile(r"(\\\\)|\\[()\[\]]|(?<!\\)\$")  # a line break \\ before a bracket is kept
_GROUP_MARK = re.compile(r"\{,\}|\\text\{,\}|,\\!\s*(?=[0-9]{3})")
_NEGATIVE_SPACE = re.compile(r"\\!")
_SPACE = re.compile(
    r"(\\\\)|\\[,;: ]|\\q?quad(?![a-zA-Z])|~|\s|\\(?:thin|med|thick|neg|en)?(?:space|skip)(?![a-zA-Z])"
    r"|\\(?:[hm]space|kern|hskip)\*?\s*(?:\{[^{}]*\}|-?[0-9.]+\s*(?:mm|cm|pt|em|ex|mu))"
)
_SPACES = re.compile(" {2,}")
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?![0-9])")
_BINOMIAL = re.compile(r"\\[dt]?binom\s*([0-9])\s*([0-9])")
_CHOOSE = re.compile(r"\{([^{}\\]*)\\choose(?![a-zA-Z])([^{}\\]*)\}")
_STYLE = re.compile(
    r"\\(?:bf|it|tiny|small|normalsize|large|Large|LARGE|huge|Huge|displaystyle|textstyle)(?![a-zA-Z])\s*"
    r"|\\(?:text)?color\s*\{[a-zA-Z]*\}\s*|^(?:\\approx(?![a-zA-Z])|=)\s*|\\(?:underline|boldsymbol|bm)\s*(?=\{)"
)
_TEXT_NUMBER = re.compile(r"\\text\s*\{\s*((?:\\\$)?\s*[0-9][0-9,.]*\s*(?:\\?%)?)\s*\}")
_SOLUTIONS = re.compile(r"(?i)\b(no (?:real )?solution)s\b")
_INFINITY = re.compile(r"(?i)\\text\s*\{\s*infinity\s*\}|(?<![a-z\\])infinity(?![a-z])|(?<![0-9a-z)}\]])\+\s*\\infty")
_INTEGER = re.compile(r"([+-]?)([0-9]{1,500}|[0-9]{1,3}(?:,[0-9]{3}){1,125})(?:\.0*)?")
_LAYOUT = re.compile(r"\\(?:left|right|displaystyle)(?![a-zA-Z])")
_LOOSE_SPACE = re.compile(r"(?<![0-9a-zA-Z]) +| +(?![0-9a-zA-Z])")


@lru_cache(4096)  # the K responses to a query share a gold answer
def normalise(answer: str) -> str:
    r"""Return `answer` in its normal form; see the table above.

    >>> normalise(r"$1{,}000$."), normalise("1 1/2"), normalise(r"a\pm b")
    ('1,000', '1\\frac{1}{2}', 'a+b,a-b')
    """
    text = _DELIMITER.sub(r"\1", rewrite_characters(answer))
    text = _NEGATIVE_SPACE.sub("", _GROUP_MARK.sub(",", text))
    text = _SPACES.sub(" ", _SPACE.sub(lambda m: m[1] or " ", text)).replace("{:}", ":")
    text = rewrite_decimals(_STYLE.sub("", strip_lead(text.strip())))
    text = text.rstrip(" .,;\\")  # a last backslash was a blank or a line break
    text = _strip_outer_braces(_CHOOSE.sub(r"\\binom{\1}{\2}", text))
    if match := _TEXT_NUMBER.fullmatch(text):
        text = match[1]
    text = _THOUSANDS.sub(lambda m: m[0].replace(" ", ""), text)
    text = _BINOMIAL.sub(r"\\binom{\1}{\2}", text).replace(r"\varnothing", r"\emptyset")
    text = _INFINITY.sub(r"\\infty", _SOLUTIONS.sub(r"\1", text))
    return rewrite_mixed(rewrite_forms(expand_signs(unwrap_set_condition(text))))


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
    match = _INTEGER.fullmatch(WRAPPED.sub(r"\1", normal).strip())
    return int(match[1] + match[2].replace(",", "")) if match else None


def strip_layout(normal: str) -> str:
    r"""Remove what is only layout from a normalised answer: `\left`, `\text{}`, spare blanks, `\dfrac` for `\frac`.

    Two answers with the same result are equal. Two answers with different results may still be equal.

    >>> strip_layout(r"\left( \dfrac{1}{2}, \text{A} \right)")
    '(\\frac{1}{2},A)'
    """
    text = _LAYOUT.sub("", re.sub(r"\\[dt]frac", r"\\frac", normal))
    return _LOOSE_SPACE.sub("", WRAPPED.sub(r"\1", text).strip().rstrip("."))


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
