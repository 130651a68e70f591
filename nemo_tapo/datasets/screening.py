"""Screen the rows of a data set: drop duplicates, gold answers that cannot be graded, and benchmark problems."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from nemo_tapo.datasets.read import DataRow
from nemo_tapo.types import SetAside

ScreeningResult = tuple[list[DataRow], list[SetAside]]  # (rows kept, rows dropped)

# Any share of a set may be dropped for these reasons, because the rows are valid but not needed. Public training sets
# also have rows without a usable answer. In a benchmark, such rows would be problems missing from the result.
NOT_NEEDED = frozenset({"duplicate", "duplicate_other_answer", "in_benchmark"})
TOLERATED_IN_TRAINING = NOT_NEEDED | {"answer_missing", "answer_without_marker", "answer_ungradable"}

NGRAM_WORDS = 13  # consecutive words, as in GPT-3's and most later decontaminations
MIN_OVERLAP = 0.5  # a training query with this share of a benchmark problem's 13-grams counts as that problem
TEMPLATE = 4  # a 13-gram of so many different problems is no problem's own


def drop_ungradable(
    rows: Sequence[DataRow], find_faults: Callable[[Sequence[str]], Sequence[str | None]]
) -> ScreeningResult:
    """Drop rows whose gold answer the verifier cannot use.

    `find_faults` returns for each answer why it cannot be used, or None if it can.
    """
    answers = list(dict.fromkeys(row.answer for row in rows))
    fault = dict(zip(answers, find_faults(answers), strict=True))
    kept = [row for row in rows if fault[row.answer] is None]
    return kept, [
        _make_set_aside(row, "answer_ungradable", str(fault[row.answer]))
        for row in rows
        if fault[row.answer] is not None
    ]


def drop_duplicates(rows: Sequence[DataRow]) -> ScreeningResult:
    """Keep only the first of equal questions, whatever their blanks.

    A duplicate with another answer gets its own reason: one of the two gold answers is wrong, or they are written
    differently.

    >>> rows = [DataRow("a", "47+38=?", "85", {}), DataRow("b", "47+38=? ", "75", {})]
    >>> kept, dropped = drop_duplicates(rows)
    >>> [row.uid for row in kept], dropped[0].reason, dropped[0].detail
    (['a'], 'duplicate_other_answer', "of a: '85', here '75'")
    """
    first: dict[str, DataRow] = {}
    kept: list[DataRow] = []
    dropped: list[SetAside] = []
    for row in rows:
        other = first.setdefault(" ".join(row.question.split()), row)
        if other is row:
            kept.append(row)
        elif other.answer == row.answer:
            dropped.append(_make_set_aside(row, "duplicate", f"of {other.uid}"))
        else:
            detail = f"of {other.uid}: {other.answer!r}, here {row.answer!r}"
            dropped.append(_make_set_aside(row, "duplicate_other_answer", detail))
    return kept, dropped


def drop_benchmark_problems(rows: Sequence[DataRow], benchmarks: Mapping[str, Iterable[DataRow]]) -> ScreeningResult:
    """Drop training rows that equal or nearly equal a problem of a benchmark (see OverlapIndex)."""
    problems = [(f"{name} {row.uid}", row.question) for name, members in benchmarks.items() for row in members]
    overlaps = OverlapIndex(problems)
    kept: list[DataRow] = []
    dropped: list[SetAside] = []
    for row in rows:
        match = overlaps.find(row.question)
        if match is None:
            kept.append(row)
        else:
            dropped.append(_make_set_aside(row, "in_benchmark", match))
    return kept, dropped


def _make_set_aside(row: DataRow, reason: str, detail: str) -> SetAside:
    """Turn a dropped row into its record."""
    return SetAside(row.uid, reason, detail, row.question)


class OverlapIndex:
    """An index of problems that finds a text among them, by equal words or by common 13-grams.

    A problem is found if the text contains at least a share of `MIN_OVERLAP` of the problem's 13-grams. One common
    13-gram, the usual rule for web pages, is too little for competition problems: hundreds of them end with "... where
    $m$ and $n$ are relatively prime positive integers. Find $m+n$." Problems of fewer than 13 words have to be equal.
    So have those that are made from a template, as generated puzzles are: most of their 13-grams stand in others too.

    >>> OverlapIndex([("aime 1", "Compute $17 + 25$.")]).find("compute 17+25")
    'aime 1, word for word'
    """

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        """Index problems, given as (name, text)."""
        self.names = [name for name, _ in problems]
        self.index_by_words: dict[tuple[str, ...], int] = {}
        self.ngram_counts: list[int] = []
        self.indices_by_ngram: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, (_, text) in enumerate(problems):
            words = split_words(text)
            known = self.index_by_words.setdefault(words, index) != index
            ngrams = set() if known else make_ngrams(words)
            self.ngram_counts.append(len(ngrams))
            for gram in ngrams:
                self.indices_by_ngram[gram].append(index)
        shared = Counter(i for members in self.indices_by_ngram.values() if len(members) >= TEMPLATE for i in members)
        self.templated = {i for i, n in shared.items() if n > MIN_OVERLAP * self.ngram_counts[i]}

    def find(self, text: str) -> str | None:
        """Return a sentence with the problem's name and the share found, or None if no problem matches."""
        words = split_words(text)
        if words in self.index_by_words:
            return f"{self.names[self.index_by_words[words]]}, word for word"
        found = (index for gram in make_ngrams(words) for index in self.indices_by_ngram.get(gram, ()))
        common = Counter(index for index in found if index not in self.templated)
        share, index = max(((n / self.ngram_counts[i], -i) for i, n in common.items()), default=(0.0, 0))
        return f"{self.names[-index]}, {share:.0%} of its 13-grams" if share >= MIN_OVERLAP else None


def make_ngrams(words: Sequence[str]) -> set[tuple[str, ...]]:
    """Return every sequence of 13 consecutive words; a shorter text has none."""
    return {tuple(words[i : i + NGRAM_WORDS]) for i in range(len(words) - NGRAM_WORDS + 1)}


# Differences between copies of one problem that do not change it, in the order of their removal.
_NOISE = (
    re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL),  # a drawing, which many copies leave out
    re.compile(r"!\[[^\]]*\]\([^)]*\)"),  # the same drawing as an image
    re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits|mathrm|mathbf|textbf|text|quad|qquad)(?![a-zA-Z])"),
    re.compile(r"\\[,;:! ]|~|\\\\"),  # LaTeX blanks and line ends
)
_WORD = re.compile(r"[^\W\d_]+|\d+|[-+*/^=<>]")  # letters, digits, operators; other punctuation does not matter


def split_words(text: str) -> tuple[str, ...]:
    r"""Return a problem's words in lower case, without LaTeX layout, drawings and punctuation.

    >>> split_words(r"Compute $\dfrac{17}{2}+x$.")
    ('compute', 'frac', '17', '2', '+', 'x')
    """
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").replace("\\dfrac", "\\frac")
    for noise in _NOISE:
        text = noise.sub(" ", text)
    return tuple(_WORD.findall(text.replace("\\tfrac", "\\frac").casefold()))
