"""tapo.construct: continue_from_prefix: the wrong prefix is context, what the policy samples behind it is the row."""

from __future__ import annotations

import asyncio

import pytest

from nemo_tapo.algorithms.continuation import PROBES, Continuation
from nemo_tapo.algorithms.registry import make_algorithm
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.batch import collate
from nemo_tapo.config.run_config import RunConfig, validate
from nemo_tapo.datasets.query_order import add_prompts
from nemo_tapo.runtime.scripted_runtime import CharacterTokenizer, ScriptedRuntime, arithmetic_script
from nemo_tapo.tasks.arithmetic_task import ArithmeticTask
from nemo_tapo.types import Completion, Construction, Grade, Kind, Pair, Query, Request, Rollout

TOKENIZER = CharacterTokenizer()
SETTINGS = {"construct": "continue_from_prefix", "prefix_loss": "none"}
QUESTION = "4\na: +8\nb: +1\nc: +2"
WRONG = "a: 4+8=12\nb: 12+1=14\nc: 14+2=16\n\\boxed{16}"  # 12+1 is 13


def configured(**tapo: object) -> RunConfig:
    return validate({"tapo": {"n_neg": 2, **SETTINGS, **tapo}, "rollout": {"queries_per_step": 12, "max_tokens": 300}})


def pair(wrong: str = WRONG) -> Pair:
    query = Query("q", QUESTION, "15", TOKENIZER.chat(QUESTION))
    made = [
        Rollout(query, k, Completion((*TOKENIZER.encode(text), TOKENIZER.eos_id), text, False), Grade(float(k), "x"))
        for k, text in enumerate((wrong, "\\boxed{15}"))
    ]
    return Pair(made[0], made[1], 0)


def construct(cfg: RunConfig, answer: object, wrong: str = WRONG) -> tuple[Construction, list[Request]]:
    """The construction of one pair whose requests `answer(begun)` serves, `begun` being the given prefix."""
    asked: list[Request] = []
    runtime = ScriptedRuntime(arithmetic_script)

    def serve(prompt: str, request: Request) -> str:
        asked.append(request)
        return str(answer(TOKENIZER.decode(request.prompt_ids[len(pair().wrong.query.prompt_ids) :])))  # type: ignore[operator]

    runtime.generator.script = serve
    tools = Tools(runtime.generator, runtime.tokenizer, ArithmeticTask(cfg.task.arithmetic, cfg.seed))
    return asyncio.run(Continuation(cfg, tools).construct(pair(wrong), 0)), asked


def test_the_policy_goes_on_behind_its_first_wrong_step() -> None:
    made, [request] = construct(configured(), lambda begun: "Wait: 12+1=13\nc: 13+2=15\n\\boxed{15}")
    prefix = TOKENIZER.encode("a: 4+8=12\nb: 12+1=14\n")
    assert request.prompt_ids == (*pair().wrong.query.prompt_ids, *prefix)
    assert request.max_tokens == 300 - len(prefix)
    assert (made.dropped, made.correct, made.kept_tokens, made.kept_steps) == (None, True, len(prefix), 2)
    assert made.response_ids[: len(prefix)] == prefix
    assert made.response_ids[-1] == TOKENIZER.eos_id
    assert made.reconstruction == "a: 4+8=12\nb: 12+1=14\nWait: 12+1=13\nc: 13+2=15\n\\boxed{15}"
    assert made.decoded_tokens == len("Wait: 12+1=13\nc: 13+2=15\n\\boxed{15}") + 1


@pytest.mark.parametrize("solvable", [1, 2, 3])
def test_half_cuts_behind_the_last_step_that_half_of_the_continuations_leave(solvable: int) -> None:
    answered: list[str] = []

    def answer(begun: str) -> str:
        answered.append("\\boxed{15}" if begun.count("\n") <= solvable else "\\boxed{3}")
        return answered[-1]

    made, asked = construct(configured(continue_at="half"), answer)
    assert made.reconstruction == "\n".join(WRONG.split("\n")[:solvable]) + "\n\\boxed{15}"
    assert made.correct
    assert (len(asked) - 1) % PROBES == 0
    assert len({r.seed for r in asked}) == len(asked)
    assert made.decoded_tokens == sum(map(len, answered)) + len(asked)  # each with an EOS


def test_what_cannot_be_continued_is_counted_by_its_reason() -> None:
    assert construct(configured(), str, wrong="I do not know.")[0].dropped == "error_unknown"
    long = construct(configured(), lambda begun: "9" * 400)[0]
    assert (long.dropped, long.reward) == ("truncated", 0.0)


def test_continuations_are_the_reflection_group_and_their_prefix_has_no_loss() -> None:
    cfg = configured()
    runtime = ScriptedRuntime(arithmetic_script)
    task = ArithmeticTask(cfg.task.arithmetic, cfg.seed)
    queries, _ = add_prompts(task.train_queries()[:12], runtime.tokenizer, 1000)
    algorithm = make_algorithm(cfg, Tools(runtime.generator, runtime.tokenizer, task))
    experience = asyncio.run(algorithm.collect(0, queries))
    rows = algorithm.make_rows(experience)
    batch = collate(rows, 0, algorithm.term_weights)
    constructions = {c.pair.uid: c for c in experience.constructions if c.dropped is None}
    constructed = [(i, row) for i, row in enumerate(rows) if row.kind is Kind.CONSTRUCTED]
    assert len(constructed) == len(constructions) > 5
    for i, row in constructed:
        made = constructions[row.uid]
        wrong = made.pair.wrong
        assert row.group == f"{wrong.query.uid}_reflected"
        assert row.response_ids[: made.kept_tokens] == wrong.completion.token_ids[: made.kept_tokens]
        assert made.kept_chars == task.locate_error(wrong.query, wrong.text) + 1, "through the wrong line's end"
        begin = len(row.prompt_ids)
        assert not batch.token_mask[i, begin : begin + made.kept_tokens].any()
        assert batch.token_mask[i, begin + made.kept_tokens : row.length].all()
