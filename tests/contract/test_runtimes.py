"""What the loop expects of any runtime, asked of three: scripted, local (Ray, Megatron-core, vLLM), NeMo-RL's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_tapo.batch import collate
from nemo_tapo.config.run_config import validate
from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.interfaces import Runtime
from nemo_tapo.losses.policy import PolicyLoss
from nemo_tapo.runtime.scripted_runtime import ScriptedRuntime, arithmetic_script
from nemo_tapo.types import Batch, Kind, Request, Row
from nemo_tapo.utils.signals import Stop

pytestmark = pytest.mark.timeout(400)
MODEL = Path(__file__).parents[2] / "assets" / "tiny-coldstart"
QUESTION = "47\na: +38\nb: -19"
OPTIMIZER = OptimizerConfig(lr=1e-4, warmup_steps=0)


async def scripted(folder: Path, stack: list[Any]) -> Runtime:
    return ScriptedRuntime(arithmetic_script, max_model_len=400)


async def local(folder: Path, stack: list[Any]) -> Runtime:
    from nemo_tapo.runtime.local.runtime import LocalRuntime

    cfg = validate({"output": str(folder), "model": {"path": str(MODEL), "max_length": 400}, "local": {"dp": 2}})
    return await LocalRuntime.start(cfg)


async def nemo_rl(folder: Path, stack: list[Any]) -> Runtime:
    import nemo_parts as parts

    from nemo_tapo.runtime.local import ray_cluster
    from nemo_tapo.runtime.nemo_rl.runtime import NemoRLRuntime

    here = ray_cluster.start(parts.CPUS)
    stack.append(lambda: ray_cluster.stop(here))
    prepared = parts.on_cpus(folder)
    factory = prepared.__enter__()
    stack.append(lambda: prepared.__exit__(None, None, None))
    cfg = parts.run_config(folder, loss__kl_rows=4)
    return await NemoRLRuntime.start(parts.master_config(folder, 2), cfg, policy_factory=factory)


RUNTIMES = [
    scripted,
    pytest.param(local, marks=pytest.mark.e2e),
    pytest.param(nemo_rl, marks=pytest.mark.nemo_rl),
]


@pytest.fixture(scope="class", params=RUNTIMES)
def loop_and_runtime(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[asyncio.AbstractEventLoop, Runtime]]:
    loop, stack = asyncio.new_event_loop(), []  # type: ignore[var-annotated]
    try:
        runtime = loop.run_until_complete(request.param(tmp_path_factory.mktemp("runtime"), stack))
        try:
            loop.run_until_complete(runtime.actor.configure(OPTIMIZER, 2))
            loop.run_until_complete(runtime.actor.load_model(MODEL))
            loop.run_until_complete(runtime.actor.set_reference())
            yield loop, runtime
        finally:
            runtime.close()
    finally:
        while stack:
            stack.pop()()
        loop.close()


def rows(runtime: Runtime) -> Batch:
    """Three rows of different lengths, one constructed."""
    prompt = runtime.tokenizer.chat(QUESTION)
    texts = ("47+38=85\n85-19=66\n\\boxed{66}", "47+38=75\n\\boxed{75}", "47+38=75\n47+38=85\n\\boxed{66}")
    made = []
    for i, text in enumerate(texts):
        ids = (*runtime.tokenizer.encode(text), runtime.tokenizer.eos_id)
        kind = Kind.CONSTRUCTED if i == 2 else Kind.ORIGINAL
        made.append(Row(f"q/{i}", "q", kind, prompt, ids, 1.0, (1.0, -1.0, 0.5)[i]))
    return collate(made, runtime.tokenizer.pad_id)


class TestEveryRuntime:
    """In this order: what only looks, then what changes."""

    @pytest.fixture(autouse=True)
    def _take(self, loop_and_runtime: tuple[asyncio.AbstractEventLoop, Runtime]) -> None:
        self.loop, self.runtime = loop_and_runtime

    def run(self, coroutine: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    def test_a_completion_depends_on_its_seed_alone(self) -> None:
        prompt = self.runtime.tokenizer.chat(QUESTION)
        requests = [Request(f"q/{i}", prompt, seed=1000 + i, max_tokens=96) for i in range(6)]

        async def sample(chosen: list[Request]) -> list[Any]:
            await self.runtime.generator.update_weights(await self.runtime.actor.weights())
            return list(await asyncio.gather(*map(self.runtime.generator.generate, chosen)))

        answers = self.run(sample(requests))
        backwards = self.run(sample(requests[::-1]))
        assert [a.token_ids for a in answers] == [a.token_ids for a in backwards[::-1]]
        for answer in answers:
            assert 0 < len(answer.token_ids) <= 96
            assert answer.truncated == (answer.token_ids[-1] != self.runtime.tokenizer.eos_id)
            assert answer.text == self.runtime.tokenizer.decode(answer.token_ids)
        assert self.runtime.generator.max_model_len == 400

    def test_scores_stand_at_their_token_in_the_callers_order(self) -> None:
        batch = rows(self.runtime)
        scores = self.run(self.runtime.actor.logprobs(batch))
        assert scores.shape == batch.input_ids.shape
        assert (scores[:, 0] == 0).all()
        for row, length in zip(scores, batch.input_lengths.tolist(), strict=True):
            assert (row[length:] == 0).all() and (row[1:length] < 0).all()
        order = [2, 0, 1]
        turned = self.run(self.runtime.actor.logprobs(batch.select(order)))
        torch.testing.assert_close(turned, scores[order][:, : turned.shape[1]], atol=1e-5, rtol=1e-5)
        reference = self.run(self.runtime.actor.reference_logprobs(batch))
        torch.testing.assert_close(reference, scores, atol=1e-5, rtol=1e-5)

    def test_an_update_reports_and_moves_the_policy(self) -> None:
        batch = rows(self.runtime)
        before = self.run(self.runtime.actor.logprobs(batch))
        result = self.run(self.runtime.actor.train(batch, PolicyLoss()))
        assert result.loss == pytest.approx(result.metrics["loss"], abs=1e-6)
        assert result.metrics["loss"] == pytest.approx(
            result.metrics["loss/original"] + result.metrics["loss/reflection"], abs=1e-6
        )
        assert result.metrics["ratio_deviation"] == 0.0
        assert {"entropy", "clip_fraction", "tapo/ots_weight_mean", "tapo/logprob_mean"} <= result.metrics.keys()
        assert result.grad_norm > 0 and result.learning_rate > 0
        after = self.run(self.runtime.actor.logprobs(batch))
        gain = ((after - before) * batch.token_mask).sum(1) * batch.loss_coef * batch.advantages
        assert gain[:2].sum() > 0  # the right answer became likelier, measured against the wrong one
        torch.testing.assert_close(self.run(self.runtime.actor.reference_logprobs(batch)), before, atol=1e-5, rtol=1e-5)

    def test_rows_that_only_fill_up_change_no_number(self) -> None:
        batch = rows(self.runtime)
        known = self.run(self.runtime.actor.logprobs(batch))
        wider = replace(batch, input_ids=torch.nn.functional.pad(batch.input_ids, (0, 9), value=5))
        wider = replace(wider, token_mask=torch.nn.functional.pad(batch.token_mask, (0, 9)))
        padded = self.run(self.runtime.actor.logprobs(wider))
        torch.testing.assert_close(padded[:, : known.shape[1]], known, atol=1e-5, rtol=1e-5)

    def test_a_checkpoint_is_written_and_settles(self, tmp_path: Path) -> None:
        store = self.runtime.checkpoints(tmp_path / "checkpoints", keep=1)

        async def save() -> None:
            await store.save({"step": 1, "fingerprint": {}}, self.runtime.actor.save, {"reward/mean": 0.5})
            await store.settle()

        self.run(save())

    def test_its_task_and_recorder_are_there(self) -> None:
        cfg = validate({})
        task = self.runtime.task(cfg)
        assert len(task.train_queries()) == cfg.task.arithmetic.train_queries
        task.close()
        assert self.runtime.wrap_recorder(Silent(), Stop()) is not None


class Silent:
    """A recorder that keeps nothing."""

    def phase(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def resume(self, *args: Any) -> None: ...
    def history(self) -> list[Any]:
        return []

    def step(self, *args: Any) -> None: ...
