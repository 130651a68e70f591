"""Which rows of a data set are not used: doubles, gold answers that cannot be graded, benchmark problems."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from nemo_tapo.datasets.read import Example
from nemo_tapo.types import SetAside

Screened = tuple[list[Example], list[SetAside]]

# Reasons for which no share of a set is too large: its rows are in order, only not needed. Public training sets also
# have rows without a usable answer; of a benchmark these would be problems that are missing from the result.
NOT_NEEDED = frozenset({"duplicate", "duplicate_other_answer", "in_benchmark"})
TOLERATED_IN_TRAINING = NOT_NEEDED | {"answer_missing", "answer_without_marker", "answer_ungradable"}

GRAM = 13  # words in a row, as GPT-3's and most later decontaminations count them
OVERLAP = 0.5  # share of a benchmark problem's 13-grams in a training query from which on it is that problem


def drop_ungradable(examples: Sequence[Example], faults: Callable[[Sequence[str]], Sequence[str | None]]) -> Screened:
    """Rows whose gold answer the verifier cannot use; `faults` says why, one an answer, None where it can."""
    answers = list(dict.fromkeys(e.answer for e in examples))
    why = dict(zip(answers, faults(answers), strict=True))
    kept = [e for e in examples if why[e.answer] is None]
    return kept, [_aside(e, "answer_ungradable", str(why[e.answer])) for e in examples if why[e.answer] is not None]


def drop_duplicates(examples: Sequence[Example]) -> Screened:
    """The first of equal questions (blanks aside) stays. One with another answer has a reason of its own: one of the
    two gold answers is wrong, or they are written differently."""
    first: dict[str, Example] = {}
    kept: list[Example] = []
    aside: list[SetAside] = []
    for e in examples:
        other = first.setdefault(" ".join(e.question.split()), e)
        if other is e:
            kept.append(e)
        elif other.answer == e.answer:
            aside.append(_aside(e, "duplicate", f"of {other.uid}"))
        else:
            aside.append(_aside(e, "duplicate_other_answer", f"of {other.uid}: {other.answer!r}, here {e.answer!r}"))
    return kept, aside


def drop_benchmark_problems(examples: Sequence[Example], benchmarks: Mapping[str, Iterable[Example]]) -> Screened:
    """Training rows that are a benchmark's problem, or nearly."""
    overlaps = Overlaps([(f"{name} {e.uid}", e.question) for name, members in benchmarks.items() for e in members])
    kept: list[Example] = []
    aside: list[SetAside] = []
    for e in examples:
        found = overlaps.find(e.question)
        if found is None:
            kept.append(e)
        else:
            aside.append(_aside(e, "in_benchmark", found))
    return kept, aside


def _aside(e: Example, reason: str, detail: str) -> SetAside:
    return SetAside(e.uid, reason, detail, e.question)


class Overlaps:
    """Finds a text among problems, by equal words or by common 13-grams.

    A problem counts as found if at least `OVERLAP` of its own 13-grams stand in the text. A single common one, the
    usual rule for web pages, would not do for competition problems: "... where $m$ and $n$ are relatively prime
    positive integers. Find $m+n$." ends hundreds of them. Problems of fewer than 13 words have to be equal.
    """

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        """problems: (name, text)."""
        self.names = [name for name, _ in problems]
        self.equal: dict[tuple[str, ...], int] = {}
        self.sizes: list[int] = []
        self.holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, (_, text) in enumerate(problems):
            said = words(text)
            self.equal.setdefault(said, index)
            own = grams(said)
            self.sizes.append(len(own))
            for gram in own:
                self.holders[gram].append(index)

    def find(self, text: str) -> str | None:
        """The problem's name and how much of it was found; None if it is none of them."""
        said = words(text)
        if said in self.equal:
            return f"{self.names[self.equal[said]]}, word for word"
        common = Counter(index for gram in grams(said) for index in self.holders.get(gram, ()))
        share, index = max(((n / self.sizes[i], -i) for i, n in common.items()), default=(0.0, 0))
        return f"{self.names[-index]}, {share:.0%} of its 13-grams" if share >= OVERLAP else None


def grams(said: Sequence[str]) -> set[tuple[str, ...]]:
    """Every 13 words in a row; none of a shorter text."""
    return {tuple(said[i : i + GRAM]) for i in range(len(said) - GRAM + 1)}


# What differs between copies of one problem without changing it, in the order of removal.
_NOISE = (
    re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL),  # the drawing, which many copies leave out
    re.compile(r"!\[[^\]]*\]\([^)]*\)"),  # the same as an image
    re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits|mathrm|mathbf|textbf|text|quad|qquad)(?![a-zA-Z])"),
    re.compile(r"\\[,;:! ]|~|\\\\"),  # LaTeX blanks and line ends
)
_WORD = re.compile(r"[^\W\d_]+|\d+|[-+*/^=<>]")  # letters, digits, operators; other punctuation says nothing


def words(text: str) -> tuple[str, ...]:
    """A problem's words in lower case, without LaTeX layout, drawings and punctuation."""
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").replace("\\dfrac", "\\frac")
    for noise in _NOISE:
        text = noise.sub(" ", text)
    return tuple(_WORD.findall(text.replace("\\tfrac", "\\frac").casefold()))
