"""Doubles and benchmark problems in training data: found where they are, and not found where they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_tapo.datasets.read import DataRow
from nemo_tapo.datasets.screening import (
    OverlapIndex,
    drop_benchmark_problems,
    drop_duplicates,
    drop_ungradable,
    split_words,
)
from tests.helpers.data_files import data_file

# A real one (AIME 2024, of the copy in the data folder) and what copies of it look like.
WALK = (
    "Every morning Aya goes for a $9$-kilometer-long walk and stops at a coffee shop afterwards. When she walks at a "
    "constant speed of $s$ kilometers per hour, the walk takes her 4 hours, including $t$ minutes spent in the coffee "
    "shop. When she walks $s+2$ kilometers per hour, the walk takes her 2 hours and 24 minutes, including $t$ minutes "
    "spent in the coffee shop. Suppose Aya walks at $s+\\frac{1}{2}$ kilometers per hour. Find the number of minutes "
    "the walk takes her, including the $t$ minutes spent in the coffee shop."
)


def rows(*texts: str, answer: str = "1") -> list[DataRow]:
    return [DataRow(f"t{i}", text, answer, {}) for i, text in enumerate(texts)]


def test_duplicates_keep_the_first_and_other_answers_have_their_own_reason() -> None:
    a, b, c, d = "What is 1+1?", "What  is\n1+1? ", "What is 1+2?", "what is 1+1?"
    examples = [DataRow("a", a, "2", {}), DataRow("b", b, "2", {}), DataRow("c", c, "3", {}), DataRow("d", d, "2", {}),
                DataRow("e", a, "two", {})]  # fmt: skip
    kept, aside = drop_duplicates(examples)
    assert [e.uid for e in kept] == ["a", "c", "d"]
    assert [(s.uid, s.reason, s.detail) for s in aside] == [
        ("b", "duplicate", "of a"), ("e", "duplicate_other_answer", "of a: '2', here 'two'"),
    ]  # fmt: skip


def test_gold_answers_are_asked_for_once_each() -> None:
    asked: list[str] = []

    def faults(answers: list[str]) -> list[str | None]:
        asked.extend(answers)
        return ["does not parse" if answer == "??" else None for answer in answers]

    examples = [DataRow(str(i), f"q{i}", answer, {}) for i, answer in enumerate(["1", "??", "1", "??", "2"])]
    kept, aside = drop_ungradable(examples, faults)  # type: ignore[arg-type]
    assert asked == ["1", "??", "2"]
    assert [e.uid for e in kept] == ["0", "2", "4"]
    assert {(s.uid, s.reason, s.detail) for s in aside} == {(u, "answer_ungradable", "does not parse") for u in "13"}


@pytest.mark.parametrize(
    "copy",
    [
        WALK,
        WALK.replace("$", "").upper(),
        WALK.replace("$s$", "\\( s \\)").replace("\\frac", "\\dfrac").replace("kilometers", "\\text{kilometers}"),
        WALK.replace(". ", ".\n\n").replace("hour", "hour~") + " [asy] draw((0,0)--(1,1)); label(\"$A$\"); [/asy]",
        "Solve the following problem. " + WALK + " Give an integer.",
        WALK.replace("Aya", "Mara").replace("Every morning", "Each day"),  # a few words changed
    ],
)  # fmt: skip
def test_copies_of_a_benchmark_problem_are_found(copy: str) -> None:
    others = ["Compute $1+1$.", "Find $x$ if $x^2=4$ and $x>0$."]
    kept, aside = drop_benchmark_problems(rows(others[0], copy, others[1]), {"aime24": rows(WALK)})
    assert [e.uid for e in kept] == ["t0", "t2"]
    assert [(s.uid, s.reason) for s in aside] == [("t1", "in_benchmark")]
    assert aside[0].detail.startswith("aime24 t0, ")


def test_short_problems_have_to_be_equal_and_operators_count() -> None:
    overlaps = OverlapIndex([("b", "Compute $17 + 25 - 3$.")])
    assert overlaps.find("compute 17+25-3") == "b, word for word"
    assert overlaps.find("Compute $17 + 25 + 3$.") is None
    assert overlaps.find("Compute $17 + 25 - 3$ and then its square root.") is None


LEGS = (
    "Your task is to count how many legs there are in total when given a list of animals. Now, how many legs are there "
    "in total if you have {}?"
)


def test_problems_of_one_template_have_to_be_equal() -> None:
    """Two puzzles of a generated data set share nearly all of their words and are different problems all the same."""
    animals = ("2 dogs, 1 hen", "3 ants, 2 ducks", "5 crabs, 1 bee", "4 cats, 6 wasps")
    overlaps = OverlapIndex([(f"legs {i}", LEGS.format(each)) for i, each in enumerate(animals)])
    assert overlaps.find(LEGS.format("2 dogs, 3 hens")) is None
    assert overlaps.find(LEGS.format("5 Crabs, 1 bee")) == "legs 2, word for word"
    few = OverlapIndex([(f"legs {i}", LEGS.format(each)) for i, each in enumerate(animals[:3])])
    assert few.find(LEGS.format("2 dogs, 3 hens")) == "legs 0, 90% of its 13-grams"  # 19 of 21: three are no template


def test_a_problem_of_several_benchmarks_is_no_template() -> None:
    copies = [(f"set{i} 7", WALK) for i in range(6)]
    changed = WALK.replace("Aya", "Mara")
    found = OverlapIndex([*copies, ("other 1", "Compute $17 + 25$.")]).find(changed)
    assert found is not None
    assert found.startswith("set0 7, ")


def test_words_leave_layout_out() -> None:
    assert split_words("Let $x\\,=\\,\\dfrac{1}{2}$;  find $x^{2}$.") == (
        "let",
        "x",
        "=",
        "frac",
        "1",
        "2",
        "find",
        "x",
        "^",
        "2",
    )
    assert split_words("\\left( a \u2212 b \\right)\\quad ![figure](https://x.org/a.png)") == ("a", "-", "b")
    assert split_words("\\leftarrow \\textbf{no}") == ("leftarrow", "no")


def test_different_problems_of_real_sets_are_told_apart() -> None:
    """AIME problems share their closing words ("relatively prime positive integers. Find $m+n$."); one common 13-gram
    would set some aside, half of a problem's 13-grams sets none of 820 aside and finds every one in itself."""
    names = ("aime24", "aime25", "hmmt_feb25", "math_rollouts_k8", "gsm8k_test_700")
    problems = {n: [json.loads(line)["problem"] for line in lines(data_file(f"{n}.jsonl"))] for n in names}
    one_gram = 0
    for name in ("aime24", "aime25", "hmmt_feb25"):
        overlaps = OverlapIndex([(str(i), text) for i, text in enumerate(problems[name])])
        assert all(overlaps.find(text) == f"{i}, word for word" for i, text in enumerate(problems[name]))
        strangers = [text for other in names if other != name for text in problems[other]]
        assert [text for text in strangers if overlaps.find(text)] == []
        one_gram += sum(any(gram in overlaps.indices_by_ngram for gram in thirteen(text)) for text in strangers)
    assert one_gram >= 10  # the rule that was not taken


def thirteen(text: str) -> list[tuple[str, ...]]:
    said = split_words(text)
    return [said[i : i + 13] for i in range(len(said) - 12)]


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
