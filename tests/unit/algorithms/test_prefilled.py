"""tapo.prefix: prefilled: the kept prefix is the wrong rollout's own tokens, given to the policy and not decoded."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from nemo_tapo.algorithms.prefilled import Answer, answer_with_prefix, open_reconstruction
from nemo_tapo.algorithms.reflection import ReflectionRules, make_construction
from nemo_tapo.algorithms.tapo import TAPO
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.config.run_config import RunConfig, validate
from nemo_tapo.datasets.query_order import add_prompts
from nemo_tapo.runtime.scripted_runtime import CharacterTokenizer, ScriptedRuntime, arithmetic_script
from nemo_tapo.tasks import prompts
from nemo_tapo.tasks.arithmetic_task import ArithmeticTask
from nemo_tapo.types import Completion, Construction, Grade, Pair, Query, Request, Rollout

TOKENIZER = CharacterTokenizer()
ANALYSIS = "<analysis>The carry is lost in <error>4+8=2</error>.</analysis>"
REQUEST = Request("q/0", TOKENIZER.encode("prompt"), seed=1, max_tokens=400)


class PairTokenizer(CharacterTokenizer):
    """Two characters a token where they come in pairs, as BPE joins a full stop with the line end behind it."""

    def encode(self, text: str) -> tuple[int, ...]:
        pairs = zip(text[::2], text[1::2], strict=False)
        return tuple(128 * ord(a) + ord(b) for a, b in pairs) + ((ord(text[-1]),) if len(text) % 2 else ())

    def decode(self, ids: tuple[int, ...]) -> str:
        return "".join(chr(i // 128) + chr(i % 128) if i >= 128 else chr(i) if i >= 4 else "" for i in ids)


def rollout(text: str, tokenizer: CharacterTokenizer = TOKENIZER, index: int = 0) -> Rollout:
    query = Query("q", "4+8=?", "12", TOKENIZER.chat("4+8=?"))
    ids = (*tokenizer.encode(text), tokenizer.eos_id)
    return Rollout(query, index, Completion(ids, text, False), Grade(float(index), "x"))


def ask(wrong: Rollout, texts: list[str], request: Request = REQUEST) -> tuple[Answer, list[Request]]:
    """The answer to a request whose parts the engine answers with `texts`, and the requests that it got."""
    asked: list[Request] = []

    async def generate(part: Request) -> Completion:
        asked.append(part)
        text = texts[len(asked) - 1]
        ids = (*TOKENIZER.encode(text), *(() if part.stop and text.endswith(part.stop) else (TOKENIZER.eos_id,)))
        return Completion(ids[: part.max_tokens], text[: part.max_tokens], len(ids) > part.max_tokens)

    answer = asyncio.run(answer_with_prefix(wrong, request, 2, generate, TOKENIZER, prompts.ERROR_QUOTE))
    return answer, asked


def test_the_second_request_goes_on_behind_the_error() -> None:
    answer, (first, second) = ask(
        rollout("4+8=2\n\\boxed{2}"), [ANALYSIS, "Wait, 4+8=12\n\\boxed{12}</reconstruction>"]
    )
    assert (first.stop, second.stop) == ("</analysis>", "</reconstruction>")
    assert (first.prompt_ids, first.seed, second.seed) == (REQUEST.prompt_ids, 1, 2)
    opened = ANALYSIS + "\n<reconstruction>4+8=2\n"
    assert TOKENIZER.decode(second.prompt_ids) == "prompt" + opened
    assert second.max_tokens == REQUEST.max_tokens - len(opened), "the limit is of the whole answer"
    assert answer.completion.text == opened + "Wait, 4+8=12\n\\boxed{12}</reconstruction>"
    assert answer.completion.token_ids[-1] == TOKENIZER.eos_id and not answer.completion.truncated
    assert answer.decoded_tokens == len(ANALYSIS) + len("Wait, 4+8=12\n\\boxed{12}</reconstruction>")


RULES = ReflectionRules(must_quote=True)


def construct(wrong: str, texts: list[str], request: Request = REQUEST) -> Construction:
    answer, _ = ask(rollout(wrong), texts, request)
    return make_construction(Pair(rollout(wrong), rollout("4+8=12", index=1), 0), answer.completion, TOKENIZER, RULES)


@pytest.mark.parametrize(
    ("analysis", "reason"),
    [
        ("<analysis>No idea.</analysis>", "no_quote"),
        ("<analysis><error>4+8=2</error> or <error>\\boxed{2}</error></analysis>", "no_quote"),
        ("<analysis><error>4+8=3</error></analysis>", "quote_not_found"),
        ("<analysis><error>2</error></analysis>", "quote_not_found"),  # it stands there twice
        ("<analysis><error>4+8=2</error>", "no_analysis"),
        ("It is wrong.", "no_analysis"),
    ],
)
def test_an_answer_that_names_no_step_is_dropped_after_one_request(analysis: str, reason: str) -> None:
    made = construct("4+8=2\n\\boxed{2}", [analysis])
    assert made.dropped == reason
    assert made.raw == analysis


def test_a_cut_off_analysis_or_correction_is_truncated() -> None:
    assert construct("4+8=2", [ANALYSIS], replace(REQUEST, max_tokens=20)).dropped == "truncated"
    assert construct("4+8=2", [ANALYSIS], replace(REQUEST, max_tokens=len(ANALYSIS) + 10)).dropped == "truncated"
    late = replace(REQUEST, max_tokens=len(ANALYSIS) + 30)
    assert construct("4+8=2", [ANALYSIS, "Wait, 4+8=12</reconstruction>"], late).dropped == "truncated"


def test_white_space_of_a_quote_is_layout() -> None:
    made = construct(
        "Add 4 and\n8 here. That is  2. So 2.",
        ["<analysis><error>Add 4 and 8 here.</error></analysis>", " Wait, that is 12.</reconstruction>"],
    )
    assert made.dropped is None
    assert made.reconstruction == "Add 4 and\n8 here. Wait, that is 12."


def test_a_quoted_part_keeps_its_whole_step() -> None:
    made = construct("so 4+8=2 holds\nfin", ["<analysis><error>4+8=2</error></analysis>", "Wait, 12.</reconstruction>"])
    assert made.reconstruction == "so 4+8=2 holds\nWait, 12."


def test_a_token_across_the_cut_is_encoded_anew() -> None:
    """Of "ab\\ncd" the tokens are ab, \\nc, d: the line end is not a whole token of the rollout."""
    tokenizer = PairTokenizer()
    wrong = rollout("ab\ncd", tokenizer)
    text = "<analysis><error>ab</error></analysis>"
    opened = open_reconstruction(Completion(tokenizer.encode(text), text, False), wrong, tokenizer, prompts.ERROR_QUOTE)
    assert tokenizer.decode(opened) == text + "\n<reconstruction>ab\n"
    assert opened[-2:] == (wrong.completion.token_ids[0], ord("\n"))


def settings(prefix: str) -> RunConfig:
    return validate(
        {
            "rollout": {"queries_per_step": 24, "max_tokens": 300},
            "tapo": {"max_tokens": 800, "n_neg": 2, "prefix": prefix},
            "model": {"max_length": 4000},
        }
    )


def constructions(prefix: str) -> tuple[Construction, ...]:
    cfg = settings(prefix)
    runtime = ScriptedRuntime(arithmetic_script)
    task = ArithmeticTask(cfg.task.arithmetic, cfg.seed)
    queries, _ = add_prompts(task.train_queries()[:24], runtime.tokenizer, 1000)
    algorithm = TAPO(cfg, Tools(runtime.generator, runtime.tokenizer, task))
    experience = asyncio.run(algorithm.collect(0, queries))
    counted = algorithm.compute_metrics(experience, algorithm.make_rows(experience))["tokens/synthesised"]
    assert counted == sum(c.decoded_tokens for c in experience.constructions)
    return experience.constructions


def test_generated_arithmetic_keeps_exactly_the_wrong_line_and_decodes_the_prefix_not_at_all() -> None:
    copied, prefilled = constructions("copied"), constructions("prefilled")
    assert [c.pair for c in copied] == [c.pair for c in prefilled], "the same rollouts, the same pairs"
    task = ArithmeticTask(settings("copied").task.arithmetic, 0)
    parsed = [c for c in prefilled if c.dropped is None]
    assert len(parsed) > 10
    assert any(c.correct for c in parsed) and not all(c.correct for c in parsed)
    for c in parsed:
        wrong = c.pair.wrong
        end = task.locate_error(wrong.query, wrong.text)
        assert end is not None
        kept = end + wrong.text[end:].startswith("\n")
        assert c.reconstruction.startswith(wrong.text[:kept])
        assert c.kept_tokens >= kept
        assert c.response_ids[: c.kept_tokens] == wrong.completion.token_ids[: c.kept_tokens]
        given = len("\n<reconstruction>") + kept
        assert c.decoded_tokens == len(c.answer_ids) - given - 1  # the end-of-turn token is not decoded either
    assert all(c.decoded_tokens == len(c.answer_ids) for c in copied)
    # The script spoils an answer, or a continuation, which then begins again with an analysis.
    assert {c.dropped for c in prefilled} == {None, "no_quote", "no_analysis"}


@pytest.mark.parametrize("template", [prompts.QUOTING_PROMPT, prompts.SYNTHESIS_PROMPT, prompts.FULL_PROMPT])
def test_only_the_quoting_prompt_asks_for_a_quote(template: str) -> None:
    shown = template.format(question="q", wrong="w", reference="r")
    assert ("<error>" in shown) == (template is prompts.QUOTING_PROMPT)
    assert "{quote}" not in shown
