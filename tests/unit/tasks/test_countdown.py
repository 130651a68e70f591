"""Countdown: the verifier against reasoning-gym's, the oracle by hand, the corpus, the task."""

from __future__ import annotations

import asyncio
import contextlib
import re
from random import Random
from typing import Any

import pytest

from nemo_tapo.algorithms.prefilled import open_reconstruction
from nemo_tapo.config.sections import CountdownConfig, TaskConfig
from nemo_tapo.judge.oracle import judge_response
from nemo_tapo.runtime.scripted_runtime import CharacterTokenizer
from nemo_tapo.tasks.corpus_example import CorpusExample
from nemo_tapo.tasks.countdown import (
    Attempt,
    Problem,
    diagnose,
    is_solution,
    last_attempt,
    list_attempts,
    parse_question,
    verify_response,
    write_correction,
    write_full_correction,
)
from nemo_tapo.tasks.countdown_corpus import EARLY_MIX, MIX, CountdownCorpus
from nemo_tapo.tasks.countdown_task import CountdownTask
from nemo_tapo.tasks.countdown_tokenizer import build_tokenizer
from nemo_tapo.tasks.registry import make_task
from nemo_tapo.types import Completion, Grade, Query, Rollout

PROBLEM = Problem((3, 5, 8), 16)
FAILED = "3+8=11\n11*5=55\n55 vs 16 no\n\\boxed{(3+8)*5}"
RIGHT = "5-3=2\n2*8=16\n16 vs 16 yes\n\\boxed{(5-3)*8}"
TURNED = "3+8=11\n11*5=55\n55 vs 16 no\nWait, 55 is not 16.\n"
CORPUS = CountdownCorpus(3, (2, 20), (10, 99))


# ----------------------------------------------------------------------------- verifier


@pytest.mark.parametrize("text", ["(5-3)*8", "8*(5 - 3)", "-(3-5)*8", "3+5+8", "8*5-3*8+3*5", "16", "(5-3)*8=16"])
def test_an_expression_is_right_or_not(text: str) -> None:
    assert is_solution(PROBLEM, text) is (text in ("(5-3)*8", "8*(5 - 3)", "-(3-5)*8", "3+5+8"))


@pytest.mark.parametrize(
    "text",
    ["", " ", "(5-3)*", "5-3*8)", "8**(5-3)", "8//(5-3)", "(5-3)*8.0", "0x8", "5_3", "(5-3)*8#", "(5-3)*8\n", "a",
     "05-3", "__import__('os')", "8/(5-5)", "(" * 150 + "8" + ")" * 150, "9" * 300],
)  # fmt: skip
def test_what_is_no_expression_of_the_game_is_wrong(text: str) -> None:
    assert is_solution(PROBLEM, text) is False


def test_division_is_exact() -> None:
    assert is_solution(Problem((2, 3, 12), 8), "12/3*2") and is_solution(Problem((2, 3, 12), 8), "12/(3/2)")
    assert not is_solution(Problem((2, 3, 7), 5), "7/2+3")  # 6.5
    assert is_solution(Problem((1, 3, 3), 1), "1/3*3") and is_solution(Problem((1, 3), 3), "3/1")


def test_the_last_box_alone_counts() -> None:
    """A response that tried a right answer and then another one is wrong: grading is never softened."""
    assert verify_response(PROBLEM, RIGHT) == (1.0, "right")
    assert verify_response(PROBLEM, f"{RIGHT}\nWait, 16 is not 16.\n{FAILED}") == (0.0, "wrong")
    assert verify_response(PROBLEM, f"{FAILED}\nWait, 55 is not 16.\n{RIGHT}") == (1.0, "right")
    assert verify_response(PROBLEM, TURNED + RIGHT) == (1.0, "right")
    assert verify_response(PROBLEM, "5-3=2\n2*8=16") == (0.0, "no_answer")
    assert verify_response(PROBLEM, "\\boxed{ }") == (0.0, "no_answer")


def test_the_verifier_agrees_with_reasoning_gyms() -> None:
    """On random expressions over the numbers, or others; the package gives 1 to right ones and less to all others."""
    gym = pytest.importorskip("reasoning_gym")
    data = gym.create_dataset("countdown", seed=7, size=1, min_numbers=3, max_numbers=3)
    rng, rights, value = Random(0), 0, 0
    for _ in range(400):
        numbers = [rng.randint(2, 9) for _ in range(3)]
        used = rng.sample(numbers, 3) if rng.random() < 0.8 else [rng.randint(2, 9) for _ in range(3)]
        a, b, c = used
        one, two = rng.choice("+-*/"), rng.choice("+-*/")
        texts = [f"({a}{one}{b}){two}{c}", f"{a}{one}({b}{two}{c})", f"{a} {one} {b} {two} {c}", f"{a}{one}{b}"]
        text = rng.choice(texts)
        with contextlib.suppress(ZeroDivisionError):
            value = eval(text)
        target = int(value) if rng.random() < 0.7 else rng.randint(1, 20)
        score = data.score_answer(text, {"metadata": {"numbers": numbers, "target": target}})
        assert is_solution(Problem(tuple(numbers), target), text) is (score == 1.0), (text, numbers, target)
        rights += score == 1.0
    assert 50 <= rights <= 350


# ----------------------------------------------------------------------------- oracle


@pytest.mark.parametrize(
    ("response", "line", "kind", "sentence"),
    [
        (FAILED, 2, "failed", "55 is not 16."),
        (FAILED.replace("no", "yes"), 2, "failed", "55 is not 16."),  # a false verdict is one on a failure
        ("3+8=11\n11*5=55\n\\boxed{(3+8)*5}", 1, "failed", "55 is not 16."),  # without a verdict, the last step
        ("3+8=11\n11*5=55\n54 vs 16 no\n\\boxed{(3+8)*5}", 2, "verdict", "54 is not 55."),
        ("3+8=11\n11*5=55\n55 vs 18 no\n\\boxed{(3+8)*5}", 2, "verdict", "18 is not 16."),
        ("5-3=2\n2*8=16\n16 vs 16 no\n\\boxed{5-3*8}", 2, "verdict", "16 is 16."),
        ("3-5=-2\n-2 vs 16 no\n\\boxed{3-5}", 1, "unfinished", "not all numbers are used."),
        ("3+8=12\n12*5=60\n\\boxed{(3+8)*5}", 0, "result", "3+8 is not 12."),
        ("3+7=10\n10*5=50\n\\boxed{(3+7)*5}", 0, "number", "7 is not there."),
        ("3+3=6\n6+8=14\n\\boxed{(3+3)+8}", 0, "number", "3 is not there."),  # one 3 alone is there
        ("3+5=8\n8+5=13\n\\boxed{(3+5)+8}", 1, "number", "5 is not there."),  # used up
        ("5-3=2\n\\boxed{5-3}", 1, "unfinished", "not all numbers are used."),
        ("5-3=2\n2*8=16\n16 vs 16 yes\n\\boxed{(5-3)+8}", 3, "box", "the answer is wrong."),
        ("5-3=2\n2*8=16\n\\boxed{(5-3)+8}", 2, "box", "the answer is wrong."),
        (TURNED + FAILED, 6, "failed", "55 is not 16."),  # a second failure
        (f"3+8=11\n11*5=55\nWait, 55 is not 16.\n{FAILED}", 5, "failed", "55 is not 16."),  # no verdict on the first
        ("3-8=-5\n\\boxed{3-8}", 1, "unfinished", "not all numbers are used."),
    ],
)
def test_the_first_mistake_that_no_turn_takes_back(response: str, line: int, kind: str, sentence: str) -> None:
    found = diagnose(PROBLEM, response)
    assert found is not None and (found.line, found.kind, found.sentence) == (line, kind, sentence)


@pytest.mark.parametrize("response", [RIGHT, TURNED + RIGHT, "I think so.", ""])
def test_no_mistake_to_find(response: str) -> None:
    assert diagnose(PROBLEM, response) is None
    assert write_correction(PROBLEM, response, RIGHT) is None
    assert write_full_correction(PROBLEM, response, RIGHT) is None


def test_a_correction_keeps_the_failure_and_tries_the_references_way() -> None:
    turned = f"3*5=15\n15-8=7\n7 vs 16 no\nWait, 7 is not 16.\n{RIGHT}"
    want = TURNED + RIGHT
    for reference in (RIGHT, turned):
        text = write_correction(PROBLEM, FAILED, reference)
        assert text == f"<analysis>55 vs 16 no: 55 is not 16.</analysis>\n<reconstruction>{want}</reconstruction>"
    assert verify_response(PROBLEM, want) == (1.0, "right") and diagnose(PROBLEM, want) is None
    assert last_attempt(turned) == RIGHT
    whole = write_full_correction(PROBLEM, FAILED, turned)
    assert whole == f"<analysis>55 vs 16 no: 55 is not 16.</analysis>\n<reconstruction>{RIGHT}</reconstruction>"


@pytest.mark.parametrize(
    ("wrong", "kept"),
    [
        (FAILED, "3+8=11\n11*5=55\n55 vs 16 no\n"),
        ("3+8=11\n11*5=55\n\\boxed{(3+8)*5}", "3+8=11\n11*5=55\n"),
        ("3+8=12\n12*5=60\n\\boxed{(3+8)*5}", "3+8=12\n"),
        ("3+7=10\n10*5=50\n\\boxed{(3+7)*5}", "3+7=10\n"),
        ("5-3=2\n2*8=16\n\\boxed{(5-3)+8}", "5-3=2\n2*8=16\n\\boxed{(5-3)+8}"),
        ("8*3=24\n24-5=19\n19 vs 16 no\nWait, 19 is not 16.\n3+8=11\n11*5=55\n55 vs 16 no\n\\boxed{(3+8)*5}",
         "8*3=24\n24-5=19\n19 vs 16 no\nWait, 19 is not 16.\n3+8=11\n11*5=55\n55 vs 16 no\n"),
    ],
)  # fmt: skip
def test_the_oracles_analysis_names_the_line_that_a_prefilled_prefix_ends_with(wrong: str, kept: str) -> None:
    """tapo.prefix: prefilled reads the line of the mistake from the analysis, and the oracle's is the cold start's."""
    tokenizer = CharacterTokenizer()
    answer = write_correction(PROBLEM, wrong, RIGHT)
    assert answer is not None
    analysis = answer.partition("\n<reconstruction>")[0]
    query = Query("q", PROBLEM.question, "", tokenizer.chat(PROBLEM.question))
    rollout = Rollout(query, 0, Completion(tokenizer.encode(wrong), wrong, False), Grade(0.0, "wrong"))
    first = Completion(tokenizer.encode(analysis), analysis, False)
    opened = open_reconstruction(first, rollout, tokenizer, CountdownTask.error_quote)
    assert tokenizer.decode(opened) == f"{analysis}\n<reconstruction>{kept}"


def test_whole_attempts_and_the_turns_after_them() -> None:
    def told(response: str) -> list[tuple[bool, bool, bool | None]]:
        return [(a.reached, a.turned, a.seen) for a in list_attempts(PROBLEM, response)]

    assert told(FAILED) == [(False, False, True)] and told(RIGHT) == [(True, False, True)]
    assert told(FAILED.replace("no", "yes")) == [(False, False, False)]
    assert told(RIGHT.replace("yes", "no")) == [(True, False, False)]
    assert told(FAILED.replace("55 vs", "16 vs")) == [(False, False, False)]  # the verdict is on another number
    assert told(TURNED + RIGHT) == [(False, True, True), (True, False, True)]
    assert told(f"3+8=11\n11*5=55\nWait, 55 is not 16.\n{RIGHT}") == [(False, True, None), (True, False, True)]
    assert told(f"5-3=2\n2*8=16\n16 vs 16 no\nWait, 16 is not 16.\n{FAILED}") == [
        (True, True, False),
        (False, False, True),
    ]
    assert told("3+8=11\n11*5=55") == [(False, False, None)] and told("5-3=2\n2*8=16\n16 vs 16 yes")[0][0]
    assert told("3+8=12\n12*5=60") == [] and told("5-3=2\nWait, 2 is not 16.\n3+8=11") == []


def test_a_question_that_is_none_is_named() -> None:
    assert parse_question(PROBLEM.question) == PROBLEM
    with pytest.raises(ValueError, match="no Countdown problem: 'Numbers: 3\\\\nTarget: x'"):
        parse_question("Numbers: 3\nTarget: x")


# ----------------------------------------------------------------------------- corpus and tokenizer


def corpus(mix: Any = MIX, n: int = 400, **settings: Any) -> list[CorpusExample]:
    return CORPUS.draw(n, 3, mix, **settings)


def test_the_corpus_follows_its_seed_and_its_rate() -> None:
    assert corpus() == corpus() != CORPUS.draw(400, 4)
    assert {e.kind for e in corpus()} == set(MIX) and {e.kind for e in corpus(EARLY_MIX)} == set(EARLY_MIX)
    for rate in (0.0, 1.0):
        made = [(parse_question(e.prompt), e.response) for e in corpus({"attempt": 1}, mistake_rate=rate)]
        assert {verify_response(p, text)[1] for p, text in made} == {"wrong" if rate else "right"}
        assert {getattr(diagnose(p, text), "kind", None) for p, text in made} == {"failed" if rate else None}


def test_the_corpus_holds_single_attempts_alone() -> None:
    for example in corpus():
        assert "Wait" not in example.prompt + example.response and "<" not in example.prompt + example.response
        assert (example.prompt + example.response).count("boxed") <= 1 or example.kind in ("copy", "continue")


def test_verdicts_tell_the_truth() -> None:
    equal, one_target = [], 0
    for example in corpus({"check": 1}):
        lines = [line.replace(" vs ", " ").split(" ") for line in example.response.split("\n")]
        assert len(lines) == 10 and all(verdict == ("yes" if a == b else "no") for a, b, verdict in lines)
        equal += [verdict == "yes" for *_, verdict in lines]
        one_target += example.prompt == f"Check this.\nTarget: {lines[0][1]}"
        assert "Target" not in example.prompt or len({b for _, b, _ in lines}) == 1
    assert 0.47 < sum(equal) / len(equal) < 0.54 and 150 < one_target < 250  # of 4,000 and of 400


def test_an_attempts_verdict_is_true_whether_it_fails_or_not() -> None:
    seen = set()
    for example in corpus({"attempt": 1}):
        (attempt,) = list_attempts(parse_question(example.prompt), example.response)
        assert attempt.seen and not attempt.turned
        seen.add(attempt.reached)
    assert seen == {True, False}


def test_sums_are_right_steps() -> None:
    lines = [line for e in corpus({"sums": 1}, n=50) for line in e.response.split("\n")]
    assert len(lines) == 400
    for line in lines:
        left, sign, right, result = re.fullmatch(r"(\d+)([-+*])(\d+)=(\d+)", line).groups()  # type: ignore[union-attr]
        want = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[sign]
        assert int(result) == want and 2 <= int(right) <= 20
    assert {sign for line in lines for sign in "+-*" if sign in line} == set("+-*") and len(set(lines)) > 100


def test_no_held_out_problem_is_drawn() -> None:
    seen = {CORPUS.draw_problem(Random(i))[0] for i in range(50)}
    other = CountdownCorpus(3, (2, 20), (10, 99), held_out=seen)
    assert not seen & {other.draw_problem(Random(i))[0] for i in range(50)}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"min_value": 2, "max_value": 2, "min_target": 90}, "task.countdown: .* widen the numbers or the targets"),
        ({"min_value": 9, "max_value": 3}, "a smallest number or target is above the largest"),
        ({"operators": "+/"}, "operators"),
    ],
)
def test_settings_without_a_problem_are_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match=sentence):
        make_task(TaskConfig(name="countdown", countdown=CountdownConfig(**settings)), 0)


def test_a_corpus_without_a_problem_says_so() -> None:
    with pytest.raises(ValueError, match="none reaches a target from 90 to 99 that is not held out"):
        CountdownCorpus(2, (2, 2), (90, 99)).draw(1, 0, {"attempt": 1})


def test_numbers_and_turns_are_single_tokens() -> None:
    tokenizer = build_tokenizer()
    assert len(tokenizer) == 552 == len(set(tokenizer.get_vocab().values()))
    assert tokenizer.tokenize("11*5=55") == ["11", "*", "5", "=", "55"]
    assert tokenizer.tokenize("55 vs 16 no\n16 vs 16 yes") == [
        "55",
        "ĠvsĠ",
        "16",
        "Ġno",
        "Ċ",
        "16",
        "ĠvsĠ",
        "16",
        "Ġyes",
    ]
    turn = f"{TURNED}{RIGHT} héllo 🙂 123"
    assert tokenizer.decode(tokenizer.encode(turn)) == turn
    assert len(tokenizer.encode("Wait, ")) == len(tokenizer.encode("<reconstruction>")) == 1


def test_an_attempt_of_four_numbers_nests_its_box() -> None:
    attempt = Attempt(20, (("-", 8), ("*", 3), ("+", 2)))
    assert attempt.write(38) == "20-8=12\n12*3=36\n36+2=38\n38 vs 38 yes\n\\boxed{((20-8)*3)+2}"
    assert is_solution(Problem((2, 3, 8, 20), 38), "((20-8)*3)+2")


# ----------------------------------------------------------------------------- task


@pytest.fixture(scope="module")
def tasks() -> list[Any]:
    pytest.importorskip("reasoning_gym")
    small = CountdownConfig(train_queries=80, held_out_queries=40, max_value=9, max_target=30)
    return [make_task(TaskConfig(name="countdown", countdown=small), seed) for seed in (0, 1)]


def test_training_follows_the_seed_and_keeps_out_of_the_benchmark(tasks: list[Any]) -> None:
    zero, one = ({q.question for q in task.train_queries()} for task in tasks)
    test, same = ({q.question for q in task.benchmarks()["countdown"]} for task in tasks)
    assert test == same and zero != one and not (zero | one) & test
    found = tasks[0].provenance("train")
    assert found.rows == 80 == len(zero) + len(found.set_aside) and found.licence == "Apache-2.0"
    for question in zero:
        problem = parse_question(question)
        assert list(problem.numbers) == sorted(problem.numbers) and 10 <= problem.target <= 30


def test_a_task_grades_locates_and_corrects(tasks: list[Any]) -> None:
    task, query = tasks[0], tasks[0].train_queries()[0]
    assert asyncio.run(task.grade(query, f"\\boxed{{{query.answer}}}")) == Grade(1.0, "right", query.answer)
    problem = parse_question(query.question)
    wrong = CORPUS.draw_failed_attempt(Random(0), problem).write(problem.target)
    assert asyncio.run(task.grade(query, wrong)).outcome == "wrong"
    end = task.locate_error(query, wrong)
    assert wrong[:end] == wrong.rpartition("\n")[0]
    fixed = task.write_correction(query, wrong, f"\\boxed{{{query.answer}}}", False, 0)
    assert f"{wrong[:end]}\nWait, " in fixed and f"\n\\boxed{{{query.answer}}}</reconstruction>" in fixed
    assert task.row(query) == {"seed": 0, "index": 0}


# ----------------------------------------------------------------------------- DSR and ERR


@pytest.mark.parametrize(
    ("response", "labels"),
    [  # reflection, correction, located, diagnosis, answer right
        (RIGHT, "00001"),
        (FAILED, "00000"),
        (TURNED + RIGHT, "11111"),
        (f"3+8=11\n11*5=55\nWait, 55 is not 16.\n{RIGHT}", "11111"),  # without a verdict
        (f"3+8=11\n11*5=55\n55 vs 16 no\nWait, 54 is not 16.\n{RIGHT}", "11101"),  # the wrong number
        (TURNED + FAILED, "11110"),
        (f"5-3=2\n2*8=16\n16 vs 16 yes\nWait, 16 is not 16.\n{RIGHT}", "11001"),  # nothing was wrong
        (f"3+8=11\nWait, 11 is not 16.\n{RIGHT}", "11001"),  # no whole attempt yet
        (f"5-3=2\n2*8=16\n16 vs 16 yes\nWait, 16 is not 16.\n{TURNED}{RIGHT}", "11111"),  # the second
        (f"{FAILED} Wait, what?", "10000"),
    ],
)
def test_the_oracle_gives_a_judges_labels(response: str, labels: str) -> None:
    v = judge_response(PROBLEM.question, response)
    told = (v.reflection, v.correction, v.located, v.diagnosis, v.answer_right)
    assert "".join(str(int(label)) for label in told) == labels
