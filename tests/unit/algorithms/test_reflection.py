"""Synthesis prompt, parser, leak filter, prefix anchoring."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_tapo.algorithms import reflection
from nemo_tapo.algorithms.answer_parts import parse_answer
from nemo_tapo.algorithms.reasoning_steps import find_quoted_step, find_step_ends, read_quote
from nemo_tapo.algorithms.reflection import (
    ReflectionRules,
    anchor_prefix,
    make_construction,
    render_prompt,
)
from nemo_tapo.config.sections import ArithmeticConfig
from nemo_tapo.runtime.scripted_runtime import CharacterTokenizer
from nemo_tapo.tasks import prompts
from nemo_tapo.tasks.arithmetic_task import ArithmeticTask
from nemo_tapo.types import Completion, Grade, Pair, Query, Rollout

GOOD = "<analysis>Line 1: no carry.</analysis>\n<reconstruction>\n4+8=2\nWait, 4+8=12\n\\boxed{12}\n</reconstruction>"
TOKENIZER = CharacterTokenizer()


def pair(wrong: str = "4+8=2\n\\boxed{2}", right: str = "4+8=12\n\\boxed{12}") -> Pair:
    query = Query("q", "4+8=?", "12", TOKENIZER.chat("4+8=?"))
    rollouts = [
        Rollout(query, i, Completion((*TOKENIZER.encode(t), TOKENIZER.eos_id), t, False), Grade(float(i), "x"))
        for i, t in enumerate((wrong, right))
    ]
    return Pair(rollouts[0], rollouts[1], 0)


def test_parses_both_parts_and_strips_one_newline_of_layout() -> None:
    parsed = parse_answer(GOOD, False, ("reference",))
    assert parsed.dropped is None
    assert parsed.analysis == "Line 1: no carry."
    assert parsed.reconstruction == "4+8=2\nWait, 4+8=12\n\\boxed{12}"


A, R = "<analysis>a</analysis>", "<reconstruction>r</reconstruction>"


@pytest.mark.parametrize(
    ("text", "truncated", "reason"),
    [
        (GOOD, True, "truncated"),
        (R, False, "no_analysis"),
        ("<analysis>a" + R, False, "no_analysis"),
        (A + A + R, False, "no_analysis"),
        (A, False, "no_reconstruction"),
        (A + "<reconstruction>r", False, "no_reconstruction"),
        (A + R + R, False, "several_reconstructions"),
        (A + "<reconstruction>" + R, False, "several_reconstructions"),
        (A + R + "</reconstruction>", False, "several_reconstructions"),
        (R + A, False, "wrong_order"),
        (A + "<reconstruction> \n </reconstruction>", False, "empty"),
        (A + "<reconstruction>as the Reference says, 12</reconstruction>", False, "leak"),
        (A + "<reconstruction>the correct solution is 12</reconstruction>", False, "leak"),
        ("", False, "no_analysis"),
    ],
)
def test_every_fault_has_its_reason(text: str, truncated: bool, reason: str) -> None:
    assert reason in reflection.DROP_REASONS
    assert parse_answer(text, truncated, ("reference", "correct solution")).dropped == reason


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("the correct\nsolution is 12", True),
        ("the correct  solution is 12", True),
        ("the **Correct** *solution*", True),
        ("correct-solution", True),
        ("as the references say", True),
        ("as reference_answer says", True),
        ("根据reference，", True),  # noqa: RUF001  a full-width comma is meant
        ("根据参考答案，是12", True),  # noqa: RUF001
        ("my preference is 12", False),
        ("it is incorrect solution by solution", False),
        ("correct, solution follows", False),
    ],
)
def test_leak_words_are_words(text: str, leaks: bool) -> None:
    parsed = parse_answer(
        f"{A}<reconstruction>{text}</reconstruction>", False, ("reference", "correct solution", "参考")
    )
    assert (parsed.dropped == "leak") == leaks


def test_a_leak_word_may_begin_within_what_is_kept() -> None:
    text = A + "<reconstruction>2+3=6 ref. The reference says 5</reconstruction>"
    assert parse_answer(text, False, ("reference",), "2+3=6 ref. The refrain").dropped == "leak"


def test_leak_words_are_configurable_and_only_concern_the_reconstruction() -> None:
    text = "<analysis>the reference differs</analysis><reconstruction>fine</reconstruction>"
    assert parse_answer(text, False, ("reference",)).dropped is None
    assert parse_answer(text, False, ("fine",)).dropped == "leak"


@given(st.text(max_size=200), st.booleans())
@settings(max_examples=200, deadline=None)
def test_parser_never_raises_and_a_parsed_reconstruction_is_clean(text: str, truncated: bool) -> None:
    parsed = parse_answer(
        "<analysis>" + text + "</analysis><reconstruction>" + text + "</reconstruction>", truncated, ()
    )
    if parsed.dropped is None:
        assert parsed.reconstruction.strip()
        assert "<reconstruction>" not in parsed.reconstruction


def test_prefix_is_the_rollouts_own_tokens() -> None:
    p = pair()
    made = make_construction(p, Completion((), GOOD, False), TOKENIZER, ReflectionRules())
    kept = "4+8=2\n"
    assert made.kept_chars == len(kept)
    assert made.kept_tokens == len(kept)  # one character a token here
    assert made.response_ids[: len(kept)] == p.wrong.completion.token_ids[: len(kept)]
    assert TOKENIZER.decode(made.response_ids) == made.reconstruction
    assert made.response_ids[-1] == TOKENIZER.eos_id
    assert made.kept_share == pytest.approx(6 / 15)  # "4+8=2\n" of "4+8=2\n\boxed{2}"


class PairTokenizer(CharacterTokenizer):
    """Encodes two characters a token where it can: the engine's ids need not be the canonical ones."""

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(128 * ord(a) + ord(b) for a, b in zip(text[::2], text[1::2], strict=False)) + (
            (ord(text[-1]),) if len(text) % 2 else ()
        )

    def decode(self, ids: tuple[int, ...]) -> str:
        return "".join(chr(i // 128) + chr(i % 128) if i >= 128 else chr(i) if i >= 4 else "" for i in ids)


@given(
    wrong=st.text(st.sampled_from("ab"), min_size=1, max_size=12),
    made=st.text(st.sampled_from("ab"), min_size=1, max_size=12),
    odd=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_anchor_keeps_whole_tokens_within_the_common_prefix(wrong: str, made: str, odd: bool) -> None:
    tokenizer = PairTokenizer()
    wrong_ids = (ord(wrong[0]), *tokenizer.encode(wrong[1:])) if odd else tokenizer.encode(wrong)  # not canonical
    ids, kept, chars = anchor_prefix(made, wrong, (*wrong_ids, tokenizer.eos_id), tokenizer)
    assert tokenizer.decode(ids) == made
    assert ids[:kept] == wrong_ids[:kept]
    assert tokenizer.decode(ids[:kept]) == made[:chars] == wrong[:chars]
    longer = tokenizer.decode(wrong_ids[: kept + 1])
    assert kept == len(wrong_ids) or not made.startswith(longer)  # nothing more could have been kept


def test_words_of_the_wrong_response_itself_leak_nothing() -> None:
    wrong = "the reference angle is 30\n\\boxed{30}"
    text = f"<analysis>a</analysis><reconstruction>{wrong}\nWait, \\boxed{{60}}</reconstruction>"
    assert make_construction(pair(wrong), Completion((), text, False), TOKENIZER, ReflectionRules()).dropped is None
    other = make_construction(pair("other"), Completion((), text, False), TOKENIZER, ReflectionRules())
    assert other.dropped == "leak"


def test_newlines_before_the_wrong_response_are_part_of_the_kept_prefix() -> None:
    p = pair("\n\n4+8=2\n\\boxed{2}")
    made = make_construction(p, Completion((), GOOD, False), TOKENIZER, ReflectionRules())
    assert made.reconstruction.startswith("\n\n4+8=2\nWait")
    assert made.response_ids[:8] == p.wrong.completion.token_ids[:8]
    assert made.kept_chars == 8


def test_full_reconstruction_anchors_nothing() -> None:
    made = make_construction(pair(), Completion((), GOOD, False), TOKENIZER, ReflectionRules(full_reconstruction=True))
    assert made.dropped is None
    assert (made.kept_tokens, made.kept_chars) == (0, 0)
    assert made.response_ids == (*TOKENIZER.encode(made.reconstruction), TOKENIZER.eos_id)


# ---- a construction keeps the policy's own error -----------------------------------------------------------------

WRONG = "First add 2 and 3.\n2 + 3 = 6."
KEPT = "First add 2 and 3.\n2 + 3 = 6.\nWait, let me check that again. 2 + 3 = 5.\nSo the answer is \\boxed{5}."
LAYOUTS = {
    "one newline": "\n{}\n",
    "two newlines": "\n\n{}\n\n",
    "blanks": " {} ",
    "an indented first line": "\n  {}\n",
    "a tab": "\t{}",
    "none": "{}",
    "a byte order mark": "\n\ufeff{}",
    "a zero-width space": "\u200b\n{}\u200b",
    "a fence": "\n```\n{}\n```\n",
    "a fence with a name": "```text\n{}\n```",
    "a fence in one line": "~~~{}~~~",
    "quotation marks": '"{}"',
    "typographic marks": "\n“{}”\n",
    "a mark and a fence": "\ufeff```\r\n{}\r\n```",
}


def answer(reconstruction: str, analysis: str = "Line 2 adds wrongly.") -> Completion:
    return Completion((), f"<analysis>{analysis}</analysis>\n<reconstruction>{reconstruction}</reconstruction>", False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_loses_no_prefix(layout: str) -> None:
    made = make_construction(pair(WRONG), answer(LAYOUTS[layout].format(KEPT)), TOKENIZER, ReflectionRules())
    assert made.dropped is None
    assert (made.reconstruction, made.kept_chars, made.kept_steps) == (KEPT, len(WRONG), 2)


def test_line_ends_and_a_common_indentation_are_layout() -> None:
    for written in (KEPT.replace("\n", "\r\n"), "\n    " + KEPT.replace("\n", "\n    ") + "\n"):
        made = make_construction(pair(WRONG), answer(written), TOKENIZER, ReflectionRules())
        assert (made.reconstruction, made.kept_steps) == (KEPT, 2)


@pytest.mark.parametrize("wrong", [WRONG.replace("\n", "\r\n"), "One.\n" + WRONG.replace("\n", "\r\n") + "\r\nSo 6."])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_the_line_ends_of_the_wrong_response_are_kept(wrong: str, line_end: str) -> None:
    added = "\r\nWait, 2 + 3 = 5.\r\n\\boxed{5}"
    kept = wrong.removesuffix("\r\nSo 6.")
    copied = (kept + added).replace("\r\n", "\n").replace("\n", line_end)
    p = pair(wrong)
    made = make_construction(p, answer(copied), TOKENIZER, ReflectionRules())
    assert (made.dropped, made.reconstruction) == (None, kept + added)
    assert made.kept_chars >= len(kept)
    assert made.response_ids[: made.kept_tokens] == p.wrong.completion.token_ids[: made.kept_tokens]
    assert TOKENIZER.decode(made.response_ids) == made.reconstruction


def test_marks_of_the_wrong_response_itself_are_kept() -> None:
    for wrong in ('"First" add "2"', "```\n2+3=6\n```", "\ufeff2+3=6", "'2'"):
        assert parse_answer(A + f"<reconstruction>{wrong}</reconstruction>", False, (), wrong).reconstruction == wrong


def test_an_indented_wrong_response_keeps_its_indentation() -> None:
    wrong = "  " + WRONG
    made = make_construction(pair(wrong), answer("\n" + KEPT), TOKENIZER, ReflectionRules())
    assert made.reconstruction == "  " + KEPT and made.kept_chars == len(wrong)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>I write <analysis> and then <reconstruction>.</think>\n" + GOOD, None),
        ("I write <analysis> first.</think>\n" + GOOD, None),  # the template opened the block
        ("<think>plan: " + GOOD, "no_analysis"),  # never closed: there is no answer
        ("<think></think>" + GOOD.replace("4+8=2", "<think>4+8=2</think>", 1), None),
        ("<thinking>I write <analysis> first.</thinking>\n" + GOOD, None),
        ("<Think >I write <analysis> first.</ THINK>\n" + GOOD, None),
        ("<think>a</think>\n<think>Now <reconstruction>, <analysis>.</think>\n" + GOOD, None),
        ("<think>a</think>\n<think>plan: " + GOOD, "no_analysis"),
        ("Now: " + GOOD.replace("4+8=2", "4+8=2</think>", 1), None),  # the wrong response's own tag
        ("<think>a</think> Now: " + GOOD.replace("4+8=2", "4+8=2</think>", 1), None),
        ("Now: " + GOOD.replace("4+8=2", "<think>4+8=2</think>", 1), None),
        ("Now: " + GOOD.replace("no carry", "no carry</think>", 1), None),
        ("I think. <think>First <analysis>.</think> " + GOOD, None),
    ],
)
def test_thinking_is_no_part_of_the_answer(text: str, reason: str | None) -> None:
    assert parse_answer(text, False, ()).dropped == reason


@pytest.mark.parametrize(
    ("tag", "written"), [("analysis", "Analysis"), ("reconstruction", "reconstruction "), ("analysis", " ANALYSIS\t")]
)
def test_tags_may_differ_in_case_and_blanks(tag: str, written: str) -> None:
    text = GOOD.replace(f"<{tag}>", f"<{written}>").replace(f"</{tag}>", f"</{written}>")
    assert parse_answer(text, False, ()) == parse_answer(GOOD, False, ())
    assert parse_answer(GOOD + f"<{written}>", False, ()).dropped is not None  # it counts as one more


def test_parsing_is_linear() -> None:
    many = 30_000  # a pattern that goes from each opening tag to the end would take minutes
    for tag in ("<analysis>", "<reconstruction>", "<think>", "<", "< ", "<  /"):
        assert parse_answer(tag * many, False, ()).dropped == "no_analysis"
        assert parse_answer(A + tag * many, False, ()).dropped in ("no_analysis", "no_reconstruction")
    assert parse_answer(A + "<" + " " * many, False, ()).dropped == "no_reconstruction"
    assert parse_answer("</think>" * many + A + R, False, ()).dropped is None


@pytest.mark.parametrize(
    ("reconstruction", "error_end", "reason"),
    [
        (KEPT, None, None),
        (KEPT, len(WRONG), None),  # through the second line, where the error is
        ("First add 2 and 3.\nWait, 2 + 3 = 5.", None, None),  # one whole step; nobody knows where the error is
        ("First add 2 and 3.\nWait, 2 + 3 = 5.", len(WRONG), "error_not_kept"),  # stops before the error
        ("First add 2 and 3. Wait, 2 + 3 = 5.", None, None),  # goes on in the same line
        ("First add 2 and 3. Wait, 2 + 3 = 5.", 18, None),
        ("First add 2 and 3\nWait, 2 + 3 = 5.", None, "error_not_kept"),  # the only step has lost its full stop
        ("Add 2 and 3.\n2 + 3 = 7.\nWait, 5.", None, "error_not_kept"),  # a mistake that nobody made
        ("First add 2 and 3.\n2 + 3 = 65.\nWait, 5.", len(WRONG), "error_not_kept"),  # another error at its place
        ("...", None, "error_not_kept"),
    ],
)
def test_the_error_is_kept(reconstruction: str, error_end: int | None, reason: str | None) -> None:
    assert reason is None or reason in reflection.DROP_REASONS
    made = make_construction(pair(WRONG), answer(reconstruction), TOKENIZER, ReflectionRules(), error_end)
    assert made.dropped == reason
    lenient = ReflectionRules(keep_error=False)
    assert make_construction(pair(WRONG), answer(reconstruction), TOKENIZER, lenient, error_end).dropped is None


def test_many_opening_tags_of_a_quote_are_read_once() -> None:
    assert (
        read_quote("<error>x" * 100_000, prompts.ERROR_QUOTE) is None
    )  # where every tag is tried to the end: half an hour
    assert read_quote("<error>" * 3 + "2+3=6</error>", prompts.ERROR_QUOTE) == "2+3=6"


def test_a_quoted_step_says_where_the_error_is() -> None:
    early = "First add 2 and 3.\nWait, 2 + 3 = 5."
    quoted = answer(early, "It says <error>2 + 3 = 6.</error>, which is 5.")
    assert make_construction(pair(WRONG), quoted, TOKENIZER, ReflectionRules()).dropped == "error_not_kept"
    unfound = answer(early, "It says <error>2 + 3 = 7.</error>, which is 5.")
    assert make_construction(pair(WRONG), unfound, TOKENIZER, ReflectionRules()).dropped is None


@pytest.mark.parametrize(
    "quote",
    ['"2 + 3 = 6."', "$2 + 3 = 6$", "2+3=6", "2 + 3 = 6...", "2 + 3 = 6…", "Line 2: 2 + 3 = 6.", "“Step 2: 2+3=6”",
     "\\(2 + 3 = 6\\)", "**2 + 3 = 6**", "`2 +3= 6.`", "...3 = 6"],
)  # fmt: skip
def test_a_quote_may_have_marks_around_it_and_other_blanks(quote: str) -> None:
    assert find_quoted_step(quote, WRONG) == len(WRONG)
    assert find_quoted_step(quote, WRONG + "\nSo 2 + 3 = 6.") is None  # there twice: nobody knows which


def test_a_quote_may_have_other_dashes() -> None:
    minus = "\N{MINUS SIGN}"
    assert find_quoted_step(f"9 {minus} 3 = 5", "First.\n9-3 = 5\nDone.") == 14
    assert find_quoted_step("9-3=5", f"First.\n9 {minus} 3 = 5\nDone.") == 16


def test_a_quote_of_other_numbers_is_not_found() -> None:
    for wrong in ("12+3=6", "2+3=65", "2+3=6.5", "0.2+3=6"):
        assert find_quoted_step("2 + 3 = 6", wrong) is None
    for quote in ("...", '""', "$$", "Line 2:"):
        assert find_quoted_step(quote, "2+3=6") is None
    many = 20_000
    assert find_quoted_step("." * many + "x", "." * many) is None
    assert find_quoted_step("(" + " " * many + "x", "(" + " " * many) is None


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("我们先算。然后再算。", ["我们先算。", "然后再算。"]),
        ("真的吗？！是的！答案是5", ["真的吗？！", "是的！", "答案是5"]),  # noqa: RUF001
        ("他说“先算。”再算。", ["他说“先算。”", "再算。"]),
        ("1。先算", ["1。先算"]),
        ("1. 先算. 再算。", ["1. 先算.", "再算。"]),
        ("まず足す。次に引く。\n答え", ["まず足す。", "次に引く。", "答え"]),
        ("3.5 + 2 = 5.5。So 5.5. Done.", ["3.5 + 2 = 5.5。", "So 5.5.", "Done."]),
    ],
)
def test_full_width_stops_end_a_step(text: str, steps: list[str]) -> None:
    ends = find_step_ends(text)
    assert [text[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)] == steps


def test_a_chinese_step_is_kept_without_a_blank_behind_it() -> None:
    wrong = "我们先算。2加3等于6。所以是6。"
    text = "我们先算。2加3等于6。等等，是5。"  # noqa: RUF001
    quoted = answer(text, "错在<error>2加3等于6。</error>")
    made = make_construction(pair(wrong), quoted, TOKENIZER, ReflectionRules())
    assert (made.dropped, made.kept_steps) == (None, 2)
    assert make_construction(pair(wrong), answer(text[:5] + "不。"), TOKENIZER, ReflectionRules()).kept_steps == 1


def test_the_generated_task_knows_where_the_error_is() -> None:
    """47+38 is 85: the first line is wrong, and its end is 11 characters in; the box repeats the mistake."""
    task = ArithmeticTask(ArithmeticConfig(), 0)
    query = Query("q", "47\na: +38\nb: -19", "66")
    assert task.locate_error(query, "a: 47+38=75\nb: 75-19=56\n\\boxed{56}") == len("a: 47+38=75")
    assert task.locate_error(query, "a: 47+38=85\nb: 85-19=56\n\\boxed{56}") == len("a: 47+38=85\nb: 85-19=56")
    assert task.locate_error(query, "no idea") is None


def test_minimum_share_and_row_length() -> None:
    completion = Completion((), GOOD, False)
    assert (
        make_construction(pair(), completion, TOKENIZER, ReflectionRules(min_kept_share=0.5)).dropped
        == "too_little_kept"
    )
    assert make_construction(pair(), completion, TOKENIZER, ReflectionRules(min_kept_share=0.4)).dropped is None
    assert (
        make_construction(pair(), completion, TOKENIZER, ReflectionRules(max_row_tokens=20)).dropped == "row_too_long"
    )


def test_prompt_is_filled_with_texts_that_hold_braces() -> None:
    text = render_prompt(prompts.SYNTHESIS_PROMPT, pair())
    assert "4+8=?" in text
    assert "\\boxed{2}" in text
    assert "\\boxed{12}" in text
    assert "\\boxed{}" in text  # the template's own doubled brace
    assert text.index("\\boxed{2}") < text.index("\\boxed{12}")


@pytest.mark.parametrize(
    "template", ["{question} {wrong}", "{question} {wrong} {reference} {other}", "{question}{wrong}{reference}{"]
)
def test_bad_template_is_a_sentence(template: str) -> None:
    with pytest.raises(ValueError, match=r"tapo\.prompt"):
        render_prompt(template, pair())


def test_a_label_that_tells_steps_apart_is_part_of_a_quote() -> None:
    assert find_quoted_step("Step 3: x = 4.", "Step 2: x = 4.\nStep 4: y = 1.") is None
    assert find_quoted_step("Line 2: x = 4.", "x = 4.\ny = 1.") is not None
    assert find_quoted_step("log 2) = 5", "a = 5\nb = 6") is None
