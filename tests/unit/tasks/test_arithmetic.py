"""The generated task: hand-worked problems, mistakes, verdicts and corrections."""

from __future__ import annotations

from random import Random

import pytest

from nemo_tapo.tasks import arithmetic as A
from nemo_tapo.tasks import arithmetic_corpus

CHAIN = A.Problem(47, (("+", 38), ("-", 19)))
RIGHT = "a: 47+38=85\nb: 85-19=66\n\\boxed{66}"
TURN = "Wait, I forgot the carry: a: 47+38="


def test_a_problem_and_its_right_solution() -> None:
    assert CHAIN.question == "47\na: +38\nb: -19"
    assert (CHAIN.totals, CHAIN.answer) == ((85, 66), "66")
    assert "\n".join(CHAIN.lines) == RIGHT
    assert A.parse_question(CHAIN.question) == CHAIN
    for text in ("47", "47\na: *38", "47\nb: +38", "47\na: +38\nb:", ""):
        with pytest.raises(ValueError, match="not an arithmetic chain"):
            A.parse_question(text)


def test_a_forgotten_carry_and_a_borrow_taken_twice() -> None:
    assert A.apply_step_with_slip(47, "+", 38) == 75
    assert A.apply_step_with_slip(85, "-", 19) == 56
    crossing = [(47, "+", 38), (85, "-", 19), (41, "+", 38), (85, "-", 15)]
    assert [A.crosses_ten(*step) for step in crossing] == [True, True, False, False]


def test_the_corpus_writes_on_from_the_wrong_value() -> None:
    assert A.write_solution(CHAIN, Random(0), mistake_rate=0.0) == RIGHT
    assert A.write_solution(CHAIN, Random(0), mistake_rate=1.0) == "a: 47+38=75\nb: 75-19=46\n\\boxed{46}"


def test_a_mistake_never_leads_to_a_negative_line() -> None:
    # 15+16=31, 31-30=1; with the carry forgotten 21-30 would be negative, so the first step is written right.
    task = A.Problem(15, (("+", 16), ("-", 30)))
    assert A.write_solution(task, Random(0), 1.0) == "a: 15+16=31\nb: 31-30=1\n\\boxed{1}"


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        (RIGHT, (1.0, "right")),
        ("\\boxed{67}", (0.0, "wrong")),
        ("the answer is 66", (0.0, "no_answer")),
        ("\\boxed{1} no: \\boxed{66}", (1.0, "right")),
        ("\\boxed{66} no: \\boxed{1}", (0.0, "wrong")),
        ("\\boxed{66} and \\boxed{1", (1.0, "right")),  # the second never closes
        ("\\boxed{66", (0.0, "no_answer")),
        ("\\boxed{ {66} }", (1.0, "right")),
        ("\\boxed{\\boxed{66}}", (1.0, "right")),
        ("\\boxed{\\frac{66}{1}}", (0.0, "no_answer")),
        ("\\boxed{6 6}", (0.0, "no_answer")),
        ("\\boxed{" + "9" * 5000 + "}", (0.0, "no_answer")),
        ("", (0.0, "no_answer")),
    ],
)
def test_the_verifier(response: str, verdict: tuple[float, str]) -> None:
    assert A.verify_response("66", response) == verdict


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("a: 47+38=75\nb: 75-19=56\n\\boxed{56}", A.Diagnosis(0, "carry", 0)),
        ("a: 47+38=85\nb: 85-19=56\n\\boxed{56}", A.Diagnosis(1, "borrow", 1)),
        ("a: 47+38=86\nb: 86-19=67\n\\boxed{67}", A.Diagnosis(0, "sum", 0)),
        ("a: 47+38=85\nb: 75-19=56\n\\boxed{56}", A.Diagnosis(1, "copy", 1)),
        ("a: 47+38=85\n\\boxed{85}", A.Diagnosis(1, "early", 1)),
        ("a: 47+38=85\nb: 85-19=66\nc: 66-19=47\n\\boxed{47}", A.Diagnosis(2, "late", 2)),
        ("a: 47+38=85\nb: 85-19=66\n\\boxed{65}", A.Diagnosis(2, "box", 2)),
        # the first mistake is corrected by a turn, the second is not
        (f"a: 47+38=75\n{TURN}85\nb: 85-19=56\n\\boxed{{56}}", A.Diagnosis(1, "borrow", 2)),
        # a turn that makes a right line wrong
        (f"a: 47+38=85\n{TURN}95\nb: 95-19=76\n\\boxed{{76}}", A.Diagnosis(0, "sum", 1)),
        (f"a: 47+38=75\n{TURN}85\nb: 85-19=66\n\\boxed{{66}}", None),
        (RIGHT, None),
        ("I do not know", None),
        (f"{TURN}85", None),  # nothing before it to correct
        ("", None),
    ],
)
def test_the_diagnosis(response: str, found: A.Diagnosis | None) -> None:
    assert A.diagnose(CHAIN, response) == found


def test_a_correction_keeps_the_wrong_line_and_turns() -> None:
    fixed = A.write_correction(CHAIN, "a: 47+38=85\nb: 85-19=56\n\\boxed{56}", seed=0)
    assert fixed is not None
    assert fixed.analysis == "a: 47+38=85 is correct\nb: 85-19=56 is wrong, the borrow was taken twice"
    head, turn, box = fixed.reconstruction.rsplit("\n", 2)
    assert head == "a: 47+38=85\nb: 85-19=56"
    assert turn in {f"Wait, {phrase}: b: 85-19=66" for phrase in A.PHRASES["borrow"]}
    assert box == "\\boxed{66}"
    assert fixed.text == (
        f"<analysis>{fixed.analysis}</analysis>\n<reconstruction>{fixed.reconstruction}</reconstruction>"
    )
    assert A.write_correction(CHAIN, RIGHT) is None
    assert A.write_correction(CHAIN, "no idea") is None


def test_marks_pass_over_a_line_that_a_turn_does_again() -> None:
    assert A.mark_lines(CHAIN, f"a: 47+38=75\n{TURN}85\nb: 85-19=56\n\\boxed{{56}}") == (
        "a: 47+38=85 is correct\nb: 85-19=56 is wrong, the borrow was taken twice"
    )
    assert A.mark_lines(CHAIN, RIGHT).endswith("\n\\boxed{66} is correct")


def test_every_written_mistake_can_be_located_and_corrected() -> None:
    rng, wrong = Random(5), 0
    for seed, task in enumerate(A.draw_problems(300, seed=5)):
        response = A.write_solution(task, rng)
        if A.verify_response(task.answer, response)[0] == 1.0:
            continue
        wrong += 1
        fixed = A.write_correction(task, response, seed)
        assert fixed is not None
        assert A.verify_response(task.answer, fixed.reconstruction) == (1.0, "right")
        assert A.diagnose(task, fixed.reconstruction) is None
    assert wrong > 100


def test_no_generator_returns_a_held_out_problem() -> None:
    held = {task.question for task in A.get_held_out_problems()}
    assert len(held) == A.HELD_OUT_SIZE
    assert A.get_held_out_problems(3) == A.get_held_out_problems()[:3]
    assert not held & {task.question for task in A.draw_problems(3000, seed=1)}
    with pytest.raises(ValueError, match="1000"):
        A.get_held_out_problems(1001)


def test_a_generator_rejects_a_held_out_problem_that_it_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    other = A.Problem(11, (("+", 11), ("+", 11)))
    drawn = iter([A.get_held_out_problems(1)[0], other])
    monkeypatch.setattr(A, "_draw", lambda rng, shortest, longest: next(drawn))
    assert A.draw_problem(Random(0)) == other


def test_examples_are_functions_of_the_seed_and_of_the_mix() -> None:
    assert (
        arithmetic_corpus.make_corpus(50, seed=3)
        == arithmetic_corpus.make_corpus(50, seed=3)
        != arithmetic_corpus.make_corpus(50, seed=4)
    )
    assert {example.kind for example in arithmetic_corpus.make_corpus(400, seed=0)} == set(arithmetic_corpus.CORPUS_MIX)
    with pytest.raises(ValueError, match="no such kind"):
        arithmetic_corpus.make_corpus(1, seed=0, mix={"poem": 1.0})


def test_the_text_skills_name_the_first_difference() -> None:
    for seed in range(30):
        example = arithmetic_corpus.make_change_example(Random(seed))
        texts = example.prompt.removeprefix("Old text:\n").removesuffix("\nShow the first change.")
        old, new = (text.split("\n") for text in texts.split("\nNew text:\n"))
        same = 0
        while old[same] == new[same]:
            same += 1
        want = [*old[:same], "< " + old[same], "> " + new[same], *new[same + 1 :]]
        assert example.response.split("\n") == want


def test_synthesis_prompt_and_what_needs_no_correction() -> None:
    wrong = "a: 47+38=75\nb: 75-19=56\n\\boxed{56}"
    filled = A.SYNTHESIS_PROMPT.format(question=CHAIN.question, wrong=wrong, reference=RIGHT)
    assert filled == (
        f"Question:\n47\na: +38\nb: -19\nWrong answer:\n{wrong}\nRight answer:\n{RIGHT}\n"
        "Find the first mistake, then correct it."
    )
    assert A.write_correction(CHAIN, wrong) is not None
    assert A.write_correction(CHAIN, RIGHT) is None


def test_the_full_correction_keeps_nothing_and_is_right() -> None:
    task = A.parse_question("47\na: +38\nb: -19")
    fixed = A.write_full_correction(task, "a: 47+38=75\nb: 75-19=56\n\\boxed{56}")
    assert fixed is not None
    assert fixed.analysis == "a: 47+38=75 is wrong, the carry was forgotten"
    assert fixed.reconstruction == "a: 47+38=85\nb: 85-19=66\n\\boxed{66}"
    assert A.write_full_correction(task, fixed.reconstruction) is None
