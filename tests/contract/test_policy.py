"""NeMo-RL's real Policy, virtual cluster, setup and environments on CPUs: DP = 2, this package's worker, gloo.

One runtime for the whole file: it takes most of a minute to start. What it computes is compared with Hugging Face's
model and torch's autograd in this process, in fp64.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_tapo.batch import EQUAL_WEIGHTS, collate
from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.losses.policy import PolicyLoss
from nemo_tapo.metrics import reduce_parts
from nemo_tapo.types import Batch, Kind, Query, Request, Row

pytestmark = [pytest.mark.nemo_rl, pytest.mark.timeout(400)]
OBJECTIVE = PolicyLoss(kl_coef=0.0)
PROBLEMS = [{"input": f"What is {a}+{b}?", "output": str(a + b)} for a, b in ((1, 2), (30, 12), (5, 5))]


class Running:
    """A runtime and the event loop that it belongs to."""

    def __init__(self, runtime: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.runtime, self.loop = runtime, loop

    def __call__(self, coroutine: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(coroutine)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    import nemo_parts as parts

    from nemo_tapo.runtime.local import ray_cluster
    from nemo_tapo.runtime.nemo_rl.runtime import NemoRLRuntime

    folder = tmp_path_factory.mktemp("policy")
    data = folder / "problems.jsonl"
    data.write_text("\n".join(json.dumps(p) for p in PROBLEMS))
    cfg = parts.run_config(folder, loss__kl_rows=4, task__name="nemo_rl")
    sets = f"{{dataset_name: ResponseDataset, data_path: {data}, env_name: math, processor: math_hf_data_processor, "
    sets += "split_validation_size: 0}"
    master = parts.master_config(folder, 2, f"++data.train={sets}", "++data.validation=null", "++data.default=null")
    here, loop = ray_cluster.start(parts.CPUS), asyncio.new_event_loop()
    try:
        with parts.on_cpus(folder) as factory:
            runtime = loop.run_until_complete(NemoRLRuntime.start(master, cfg, policy_factory=factory))
            runtime.test_config = cfg
            try:
                yield Running(runtime, loop)
            finally:
                runtime.close()
    finally:
        loop.close()
        ray_cluster.stop(here)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Five rows of different lengths, two of them constructed: no number that two ranks or a micro-batch divide."""
    draw = torch.Generator().manual_seed(3)
    rows, advantages = [], (1.0, 0.8, -1.0, 0.5, -0.7)
    for i, (prompt, response) in enumerate([(5, 9), (3, 30), (8, 4), (4, 17), (6, 12)]):
        ids = torch.randint(3, 500, (prompt + response,), generator=draw).tolist()
        kind = Kind.CONSTRUCTED if i in (1, 4) else Kind.ORIGINAL
        rows.append(Row(f"q/{i}", "q", kind, tuple(ids[:prompt]), tuple(ids[prompt:]), 1.0, advantages[i]))
    return collate(rows, pad_id=0, term_weights=EQUAL_WEIGHTS | {Kind.CONSTRUCTED: 0.7})


def reference_model() -> Any:
    from nemo_parts import MODEL
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64)


def reference_logprobs(batch: Batch) -> Tensor:
    """log_softmax and gather, row by row without padding."""
    model, out = reference_model(), torch.zeros(batch.input_ids.shape)
    for i, length in enumerate(batch.input_lengths.tolist()):
        ids = batch.input_ids[i : i + 1, :length]
        with torch.no_grad():
            scores = torch.log_softmax(model(ids).logits[0, :-1], -1)
        out[i, 1:length] = scores.gather(1, ids[0, 1:, None])[:, 0].float()
    return out


def test_logprobs_come_back_in_order_and_at_their_token(running: Running, batch: Batch) -> None:
    """Rows are dealt over two ranks and filled up to 8; the caller sees neither."""
    expected = reference_logprobs(batch)
    found = running(running.runtime.actor.logprobs(batch))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(running(running.runtime.actor.reference_logprobs(batch)), expected, atol=2e-5, rtol=1e-4)


def test_an_engines_logprobs_are_the_actors(running: Running) -> None:
    runtime = running.runtime
    prompts = [runtime.tokenizer.chat(text) for text in ("47\na: +38\nb: -19", "12\na: +30")]
    requests = [Request(str(i), p, seed=i, max_tokens=96, logprobs=True) for i, p in enumerate(prompts)]

    async def sample() -> Any:
        return await asyncio.gather(*map(runtime.generator.generate, requests))

    answers = running(sample())
    rows = [
        Row(r.uid, r.uid, Kind.ORIGINAL, r.prompt_ids, a.token_ids, generation_logprobs=a.logprobs)
        for r, a in zip(requests, answers, strict=True)
    ]
    scored = collate(rows, pad_id=0)
    found = running(runtime.actor.logprobs(scored))
    assert scored.generation_logprobs is not None
    torch.testing.assert_close(found * scored.token_mask, scored.generation_logprobs, atol=1e-4, rtol=1e-4)
    assert [a.text for a in running(sample())] == [a.text for a in answers]  # a seed, an answer


def test_an_update_equals_a_single_process_of_torch(running: Running, batch: Batch) -> None:
    """48 rows on two ranks, 43 of them fillers, against 5 rows through autograd: loss, gradient, metrics."""
    model = reference_model()
    logits = torch.zeros(*batch.input_ids.shape, model.config.vocab_size, dtype=torch.float64)
    for i, length in enumerate(batch.input_lengths.tolist()):
        logits[i, :length] = model(batch.input_ids[i : i + 1, :length]).logits[0]
    output = OBJECTIVE(logits, batch, VocabShard(0, logits.shape[-1]))
    output.loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    before = running.runtime._scheduler.stale
    result = running(running.runtime.actor.train(batch, OBJECTIVE))
    assert result.loss == pytest.approx(float(output.loss.detach()), abs=1e-6)
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-4)
    expected = reduce_parts([output.parts])
    for name, value in expected.items():
        assert result.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert result.metrics["num_valid_samples"] == 5  # fillers count nowhere
    assert result.learning_rate == pytest.approx(1.5e-4)  # lr_warmup_init
    assert running.runtime._scheduler.stale and not before


def test_more_rows_than_the_capacity_are_refused(running: Running, batch: Batch) -> None:
    many = batch.select([0] * 49)
    with pytest.raises(ValueError, match=r"49 rows does not fit policy.train_global_batch_size = 48"):
        running(running.runtime.actor.train(many, OBJECTIVE))


def test_weights_of_the_update_reach_the_engine(running: Running, batch: Batch) -> None:
    """After an update the engine samples from other weights, which are the actor's."""
    assert running.runtime._scheduler.stale
    test_an_engines_logprobs_are_the_actors(running)
    assert not running.runtime._scheduler.stale
    moved = (running(running.runtime.actor.logprobs(batch)) - reference_logprobs(batch)).abs().max()
    assert moved > 1e-4


def test_one_optimizer_and_one_model_a_job(running: Running) -> None:
    actor, cfg = running.runtime.actor, running.runtime.test_config
    running(actor.configure(cfg.optimizer, 2))
    with pytest.raises(ValueError, match="trains once in a job"):
        running(actor.configure(cfg.optimizer, 2))
    running(actor.load_model(cfg.model.path))
    with pytest.raises(ValueError, match="cannot load elsewhere into it"):
        running(actor.load_model(Path("elsewhere")))
    with pytest.raises(ValueError, match="made from checkpoint None"):
        running(actor.load(Path("step_3")))


# ---- environments ----------------------------------------------------------------------------------------------------


def test_nemo_rls_data_and_environment_are_a_task(running: Running) -> None:
    runtime = running.runtime
    task = runtime.task(runtime.test_config)
    try:
        queries = task.train_queries()
        assert [q.question for q in queries] == [p["input"] for p in PROBLEMS]
        assert [q.answer for q in queries] == [p["output"] for p in PROBLEMS]
        assert len({q.uid for q in queries}) == 3 and task.benchmarks() == {}
        graded = [running(task.grade(queries[1], text)) for text in ("so \\boxed{42}", "so \\boxed{43}", "no idea")]
        assert [(g.reward, g.outcome) for g in graded] == [(1.0, "right"), (0.0, "wrong"), (0.0, "wrong")]
        rollouts_agree(running, task, queries)
        every_turn_is_graded(running, task, queries[1])
    finally:
        task.close()


def rollouts_agree(running: Running, task: Any, queries: list[Query]) -> None:
    """`run_multi_turn_rollout` and ours: the same prompts, tokens, log-probabilities and rewards."""
    from nemo_rl.experience.rollouts import run_multi_turn_rollout

    from nemo_tapo.runtime.nemo_rl import compat

    runtime = running.runtime
    engine, tokenizer = runtime._parts.engine, runtime._nemo_tokenizer
    prompts = [runtime.tokenizer.chat(q.user_text) for q in queries]
    requests = [Request(q.uid, p, i, 96, logprobs=True) for i, (q, p) in enumerate(zip(queries, prompts, strict=True))]

    async def ours() -> Any:
        return await asyncio.gather(*map(runtime.generator.generate, requests))

    mine = running(ours())
    rows = [task._sets["train"][i] for i in range(len(queries))]
    assert [tuple(r["message_log"][0]["token_ids"].tolist()) for r in rows] == [r.prompt_ids for r in requests]
    given = {name: [row[name] for row in rows] for name in rows[0]}
    given |= {"stop_strings": [None] * len(rows), "length": torch.tensor(given["length"])}
    given["loss_multiplier"] = torch.tensor(given["loss_multiplier"])
    asked = engine.generate
    engine.generate = lambda data, greedy=False: asked(with_seeds(data), greedy)  # theirs brings no seed
    try:
        theirs, _ = run_multi_turn_rollout(
            engine, compat.load("BatchedDataDict")(given), tokenizer, task._environments, max_seq_len=400,
            max_rollout_turns=1,
        )  # fmt: skip
    finally:
        engine.generate = asked
    for i, completion in enumerate(mine):
        message = next(m for m in theirs["message_log"][i] if m["role"] == "assistant")
        assert tuple(message["token_ids"].tolist()) == completion.token_ids
        assert completion.logprobs == pytest.approx(message["generation_logprobs"].tolist())
        grade = running(task.grade(queries[i], completion.text))
        assert grade.reward == float(theirs["total_reward"][i])


def with_seeds(data: Any) -> Any:
    data["seed"] = torch.arange(len(data["input_lengths"]))
    return data


def every_turn_is_graded(running: Running, task: Any, query: Query) -> None:
    """The trap: a right answer shown as another assistant's turn makes a wrong response right. Ours shows one turn."""
    import ray

    datum = task._data[query.uid]
    environment = task._environments[datum.task]
    turns = [
        {"role": "user", "content": "x"}, {"role": "assistant", "content": "I do not know."},
        {"role": "assistant", "content": "\\boxed{42}"},
    ]  # fmt: skip
    assert float(ray.get(environment.step.remote([turns], [dict(datum.info)])).rewards[0]) == 1.0
    assert running(task.grade(query, "I do not know.")).reward == 0.0


def test_a_prompt_that_would_be_rendered_otherwise_is_refused(running: Running) -> None:
    task = running.runtime.task(running.runtime.test_config)
    try:
        task._tokenizer = replace_chat(task._tokenizer)
        with pytest.raises(ValueError, match=r"renders .*-train-0 otherwise"):
            task.train_queries()
    finally:
        task.close()


def replace_chat(tokenizer: Any) -> Any:
    class Other:
        def chat(self, text: str) -> tuple[int, ...]:
            return (*tokenizer.chat(text), 7)

    return Other()
