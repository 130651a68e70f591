"""Real problems and real graded responses: the verifier's agreement, and the method's own steps over the groups."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from nemo_tapo.algorithms.reflection import ReflectionRules, make_construction, render_prompt
from nemo_tapo.config.sections import VerifierConfig
from nemo_tapo.equations.selection import select_pairs
from nemo_tapo.grading.boxed import find_last_boxed
from nemo_tapo.grading.verifier import Verifier
from nemo_tapo.runtime.scripted_runtime import CharacterTokenizer
from nemo_tapo.tasks import prompts
from nemo_tapo.types import Completion, Grade, Group, Pair, Query, Rollout
from tests.helpers.data_files import data_rows

N_POS, N_NEG, M_MAX = 2, 4, 4  # the paper's
TOKENIZER = CharacterTokenizer()
# Its gold answer is 10{,}000, the response's 10000: right, and published as wrong.
MISGRADED = ("math-72", 7)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return data_rows("math_rollouts_k8.jsonl")


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    one = Verifier(VerifierConfig(workers=2))
    yield one
    one.close()


@pytest.fixture(scope="module")
def groups(rows: list[dict[str, Any]], verifier: Verifier) -> list[Group]:
    """The 60 groups as a step would collect them, graded by our verifier."""

    async def grades(row: dict[str, Any]) -> list[Grade]:
        return await asyncio.gather(*(verifier.grade(row["answer"], r) for r in row["responses"]))

    async def script() -> list[list[Grade]]:
        return await asyncio.gather(*map(grades, rows))

    return [group(row, graded) for row, graded in zip(rows, asyncio.run(script()), strict=True)]


def group(row: dict[str, Any], grades: list[Grade]) -> Group:
    query = Query(row["id"], row["problem"], row["answer"], TOKENIZER.chat(row["problem"]))
    made = zip(row["responses"], grades, strict=True)
    return Group(query, tuple(Rollout(query, i, completion(text), grade) for i, (text, grade) in enumerate(made)))


def completion(text: str) -> Completion:
    return Completion((*TOKENIZER.encode(text), TOKENIZER.eos_id), text, False)


def test_agrees_with_the_published_grades_but_for_the_one_that_is_wrong(
    rows: list[dict[str, Any]], groups: list[Group]
) -> None:
    theirs = {(row["id"], i): bool(c) for row in rows for i, c in enumerate(row["correct"])}
    ours = {(g.query.uid, r.index): r.reward == 1.0 for g in groups for r in g.rollouts}
    assert len(ours) == 480
    assert {key for key in ours if ours[key] != theirs[key]} == {MISGRADED}
    row = next(row for row in rows if row["id"] == MISGRADED[0])
    assert (row["answer"], row["extracted"][MISGRADED[1]]) == ("10{,}000", "10000")


def test_extracts_what_the_authors_extracted(rows: list[dict[str, Any]]) -> None:
    """Theirs has the blanks taken out and short fractions written in full."""
    ours = [(find_last_boxed(r) or "").replace(" ", "") for row in rows for r in row["responses"]]
    theirs = [e.replace(" ", "") for row in rows for e in row["extracted"]]
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) > 450


@pytest.mark.parametrize(
    "name", ["math_rollouts_k8.jsonl", "aime24.jsonl", "aime25.jsonl", "hmmt_feb25.jsonl", "gsm8k_test_700.jsonl"]
)
def test_guards_and_faults_spare_every_real_answer(verifier: Verifier, name: str) -> None:
    rows = data_rows(name)
    golds = [str(row["answer"]) for row in rows]
    assert verifier.find_gold_faults(golds) == [None] * len(golds)
    answers = [e for row in rows for e in row.get("extracted", [])] + golds

    async def script() -> list[Grade]:  # against a gold answer that nothing equals by its text
        return await asyncio.gather(*(verifier.grade(r"\frac{\pi}{10007}", f"\\boxed{{{a}}}") for a in answers))

    assert Counter(g.outcome for g in asyncio.run(script())) == {"wrong": len(answers)}


def test_pairs_come_from_eligible_groups_only(groups: list[Group]) -> None:
    eligible = 0
    for g in groups:
        pairs = select_pairs(g, N_POS, N_NEG, M_MAX, seed=0, step=0)
        right = sum(r.reward for r in g.rollouts)
        if N_POS <= right <= 8 - N_NEG:
            eligible += 1
            assert len(pairs) == min(M_MAX, int(8 - right))
            assert len({p.wrong.uid for p in pairs}) == len(pairs)
            assert all(p.wrong.reward == 0 and p.right.reward == 1 for p in pairs)
        else:
            assert pairs == ()
    assert eligible >= 1


def any_pairs(groups: list[Group]) -> list[Pair]:
    """Every wrong response of a group that has a right one too."""
    return [Pair(wrong, g.correct[0], i) for g in groups if g.correct for i, wrong in enumerate(g.incorrect)]


@pytest.mark.parametrize("template", [prompts.SYNTHESIS_PROMPT, prompts.FULL_PROMPT], ids=["anchored", "full"])
def test_prompts_hold_both_responses_and_the_problem_to_the_letter(groups: list[Group], template: str) -> None:
    pairs = any_pairs(groups)
    assert len(pairs) >= 10
    for pair in pairs:
        prompt = render_prompt(template, pair)
        wrong, reference = pair.wrong.text.strip("\n"), pair.right.text.strip("\n")
        for text in (pair.wrong.query.question, wrong, reference):
            assert text in prompt
        assert prompt.index(wrong) < prompt.rindex(reference)
        outside = prompt.replace(wrong, "").replace(reference, "").replace(pair.wrong.query.question, "")
        assert outside.count("{}") == 1 and r"\boxed{}" in outside  # the template's own, and no other brace
        assert outside.count("{") == outside.count("}") == 1


def test_a_true_prefix_of_a_real_response_is_kept_to_the_letter(groups: list[Group]) -> None:
    for pair in any_pairs(groups):
        wrong = pair.wrong.text
        cut = wrong.index("\n", len(wrong) // 3) + 1
        turn = "\x01Wait, let me check that again.\n"  # its first character is not the response's next one
        gold = pair.wrong.query.answer
        answer = f"<analysis>line 3 {{}} \\frac{{</analysis>\n<reconstruction>\n{wrong[:cut]}{turn}\\boxed{{{gold}}}\n"
        made = make_construction(pair, completion(answer + "</reconstruction>"), TOKENIZER, ReflectionRules())
        lead = len(wrong) - len(wrong.lstrip("\n"))
        assert made.dropped is None
        assert made.reconstruction[lead:] == wrong[lead:cut] + turn + f"\\boxed{{{gold}}}"
        assert made.kept_chars == cut
        assert made.kept_tokens == cut  # one character a token here
        assert made.response_ids[:cut] == pair.wrong.completion.token_ids[:cut]


def test_a_reconstruction_with_two_boxes_is_graded_by_its_second(groups: list[Group], verifier: Verifier) -> None:
    pairs = any_pairs(groups)

    async def script() -> list[Grade]:
        texts = [f"{p.wrong.text}\nWait, that is wrong. \\boxed{{{p.wrong.query.answer}}}" for p in pairs]
        return await asyncio.gather(
            *(verifier.grade(p.wrong.query.answer, t) for p, t in zip(pairs, texts, strict=True))
        )

    assert {g.outcome for g in asyncio.run(script())} == {"right"}
