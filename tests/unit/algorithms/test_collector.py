"""One step off (`rollout.lag: 1`): which weights sampled what, resumed runs, the correction for the weights between."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_tapo.algorithms.experience_json import read_experience, write_experience
from nemo_tapo.algorithms.registry import make_algorithm
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.config.loop import LoopConfig
from nemo_tapo.config.run_config import RunConfig, rl_fingerprint, validate
from nemo_tapo.datasets.query_order import QueryOrder, add_prompts
from nemo_tapo.evaluation.validation import Validation
from nemo_tapo.losses.base import Loss
from nemo_tapo.runtime.scripted_runtime import (
    ScriptedActor,
    ScriptedGenerator,
    ScriptedRuntime,
    arithmetic_script,
)
from nemo_tapo.scoring import PolicyComparison
from nemo_tapo.stages.branch import describe_learning_rate
from nemo_tapo.stages.reinforce import make_query_source
from nemo_tapo.tasks.arithmetic_task import ArithmeticTask
from nemo_tapo.train import train
from nemo_tapo.types import (
    Batch,
    Completion,
    Construction,
    Experience,
    Grade,
    Group,
    Pair,
    Query,
    Request,
    Rollout,
    Row,
    StepRecord,
    UpdateResult,
)
from nemo_tapo.utils.errors import Stopped
from nemo_tapo.utils.seeding import seed_from
from nemo_tapo.utils.signals import Stop

torch.set_num_threads(1)
P, K, STEPS = 4, 4, 4


def settings(**changes: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "rollout": {
            "queries_per_step": P,
            "samples_per_query": K,
            "max_tokens": 300,
            "lag": 1,
            "logprobs": "always",
        },
        "tapo": {"max_tokens": 800, "n_pos": 1, "n_neg": 1, "m_max": 2},
        "model": {"max_length": 4000},
        "task": {"arithmetic": {"train_queries": 48, "held_out_queries": 4}},
        "optimizer": {"lr": 1e-2, "warmup_steps": 0},
        "loss": {"kl_rows": 2},
        "engine_gap_bound": 10.0,
        "steps": STEPS,
        "seed": 3,  # every step has pairs
    }
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        if leaf:
            raw.setdefault(section, {})[leaf] = value
        else:
            raw[section] = value
    return validate(raw)


class Engine(ScriptedGenerator):
    """Notes by which weights every request was sampled; takes a while where it is told to."""

    delays: random.Random | None = None
    in_flight = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sampled: list[tuple[Request, int]] = []  # (request, how many updates the weights had seen)

    async def generate(self, request: Request) -> Completion:
        self.in_flight += 1
        version = self.weight_updates - 1  # the first hand-over is made before the first step
        await pause(self.delays)
        completion = await super().generate(request)
        assert version == self.weight_updates - 1
        self.sampled.append((request, version))
        self.in_flight -= 1
        return completion

    async def update_weights(self, weights: dict[str, Tensor]) -> None:
        assert not self.in_flight, "weights may not change while requests are in flight"
        await pause(self.delays)
        await super().update_weights(weights)


class Actor(ScriptedActor):
    """Keeps the weights before every update, with the batch; fails or takes a while where it is told to."""

    delays: random.Random | None = None
    fails_at = -1

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.updates: list[tuple[dict[str, Tensor], Batch]] = []

    async def train(self, batch: Batch, loss: Loss) -> UpdateResult:
        await pause(self.delays)
        if len(self.updates) == self.fails_at:
            raise Killed
        self.updates.append(({name: value.clone() for name, value in self.model.state_dict().items()}, batch))
        return await super().train(batch, loss)


class Killed(Exception):
    """Stands for the end of the process."""


async def pause(delays: random.Random | None) -> None:
    if delays is not None:
        await asyncio.sleep(delays.choice((0, 0, 0.0002, 0.001)))


class Memory:
    """A recorder that keeps everything."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self.warnings: list[str] = []

    def phase(self, text: str) -> None: ...
    def resume(self, step: int, history: Sequence[Any]) -> None: ...
    def history(self) -> list[str]:
        return []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def step(self, record: StepRecord) -> None:
        self.records.append(record)

    def rows(self) -> list[list[Row]]:
        return [list(record.rows) for record in self.records]


class Run:
    """A run of the loop in this process, on the first 40 training queries."""

    def __init__(
        self, cfg: RunConfig, folder: Path, delays: int | None = None, fails_at: int = -1, every: int = 99
    ) -> None:
        self.cfg, self.folder, self.memory, self.every = cfg, folder, Memory(), every
        runtime = ScriptedRuntime(arithmetic_script)
        self.engine = Engine(arithmetic_script, runtime.tokenizer, 4096)
        self.actor = Actor(runtime.tokenizer.vocab_size)
        if delays is not None:
            self.engine.delays = self.actor.delays = random.Random(delays)
        self.actor.fails_at = fails_at
        runtime.generator, runtime.actor = self.engine, self.actor
        self.runtime = runtime

    def train(self, stop: bool = False) -> Run:
        """Run to the end; with `stop`, one step and then Stopped."""
        cfg, stops = self.cfg, Stop()
        if stop:
            stops.request(signal.SIGTERM)
        task = ArithmeticTask(cfg.task.arithmetic, cfg.seed)
        tokenizer = self.runtime.tokenizer
        usable, _ = add_prompts(task.train_queries()[:40], tokenizer, 1000)
        order = QueryOrder(usable, cfg.rollout.queries_per_step, cfg.seed)
        algorithm = make_algorithm(cfg, Tools(self.engine, tokenizer, task))
        loop = LoopConfig(
            self.folder,
            cfg.steps,
            cfg.optimizer,
            cfg.loss,
            checkpoint_every=self.every,
            checkpoint_keep=9,
            keep_best=cfg.checkpoint.keep_best,
            fingerprint=rl_fingerprint(cfg),
            engine_gap_bound=cfg.engine_gap_bound,
            lag=cfg.rollout.lag,
        )
        validation = None
        if cfg.evaluation.every is not None:
            sets = {name: add_prompts(found, tokenizer, 1000)[0] for name, found in task.benchmarks().items()}
            validation = Validation(cfg, algorithm.tools, sets)  # type: ignore[attr-defined]
        queries = make_query_source(cfg.rollout, order, algorithm)
        asyncio.run(train(loop, algorithm, self.runtime, queries, self.memory, stops, validation))
        return self

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.actor.model.parameters()])

    def state(self, step: int) -> dict[str, Any]:
        path = self.folder / "checkpoints" / f"step-{step:06d}" / "state.json"
        return dict(json.loads(path.read_text()))


def expected_versions(cfg: RunConfig, run: Run, purpose: str) -> Iterator[tuple[int, set[int]]]:
    """Yield (step, the weights by which its requests were sampled), told apart by their seeds."""
    by_seed = {request.seed: version for request, version in run.engine.sampled}
    for step, record in enumerate(run.memory.records):
        if purpose == "rollout":
            names = [(r.query.uid, r.index) for group in record.experience.groups for r in group.rollouts]
            seeds = [seed_from(cfg.seed, "rollout", step, *name) for name in names]
        else:
            seeds = [
                seed_from(cfg.seed, "synthesis", step, c.pair.uid)
                for c in record.experience.constructions
                if c.dropped != "run_ended"
            ]
        yield step, {by_seed[seed] for seed in seeds}


# ---- which weights sample, and when ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", ["overlapped", "barrier", "deferred"])
def test_a_step_is_sampled_by_the_weights_that_the_step_before_began_with(tmp_path: Path, pipeline: str) -> None:
    """Synthesis goes with the rollouts beside it: those of its own step, or under deferred of the step after."""
    cfg = settings(pipeline=pipeline)
    run = Run(cfg, tmp_path, delays=1).train()
    expected = [(0, {0}), (1, {0}), (2, {1}), (3, {2})]
    assert list(expected_versions(cfg, run, "rollout")) == expected
    synthesised = list(expected_versions(cfg, run, "synthesis"))
    assert synthesised == ([(0, set()), *expected[1:]] if pipeline == "deferred" else expected)
    assert [record.metrics["rollouts/lag"] for record in run.memory.records] == [0, 1, 1, 1]
    asked = [request.uid for request, _ in run.engine.sampled if "_reflected" not in request.uid]
    assert len(asked) == STEPS * P * K  # none of a step beyond the last


def test_without_lag_a_step_is_sampled_by_its_own_weights(tmp_path: Path) -> None:
    cfg = settings(rollout__lag=0)
    run = Run(cfg, tmp_path, every=2).train()
    assert list(expected_versions(cfg, run, "rollout")) == [(step, {step}) for step in range(STEPS)]
    assert not any("rollouts/lag" in record.metrics for record in run.memory.records)
    assert not any("sampling_importance_ratio" in record.metrics for record in run.memory.records)
    assert "collected" not in run.state(2)


def test_sampling_goes_on_beside_the_update(tmp_path: Path) -> None:
    """The update of step 1 ends only once every rollout of step 2 has been asked for."""
    run = Run(settings(algorithm="grpo", steps=2), tmp_path)
    train_on, seen = run.actor.train, []

    async def wait_for_rollouts(batch: Batch, loss: Loss) -> UpdateResult:
        if not seen:
            for _ in range(1000):
                await asyncio.sleep(0)
        seen.append(len(run.engine.sampled))
        return await train_on(batch, loss)

    run.actor.train = wait_for_rollouts  # type: ignore[method-assign]
    run.train()
    assert seen == [2 * P * K, 2 * P * K]


def test_a_validation_measures_the_weights_of_its_step(tmp_path: Path) -> None:
    cfg = settings(evaluation__every=1, evaluation__validation_problems=3)
    run = Run(cfg, tmp_path, delays=2).train()
    validated = [version for request, version in run.engine.sampled if request.uid.startswith("validation/")]
    assert validated == [step for step in (1, 2, 3, 4) for _ in range(3)]
    plain = Run(settings(), tmp_path / "plain").train()
    assert plain.memory.rows() == run.memory.rows()


# ---- the same numbers whatever takes how long, and after whatever end ------------------------------------------------

KINDS: list[dict[str, Any]] = [
    {"algorithm": "grpo"},
    {"pipeline": "overlapped", "loss__updates_per_batch": 2},
    {
        "pipeline": "barrier",
        "evaluation__every": 2,
        "evaluation__validation_problems": 3,
        "checkpoint__keep_best": True,
    },
    {"pipeline": "deferred", "tapo__prefix": "prefilled", "rollout__dynamic_sampling": 2.0},
]


@pytest.mark.parametrize("changes", KINDS, ids=lambda changes: changes.get("pipeline", "grpo"))
def test_neither_delays_nor_ends_change_a_number(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Undisturbed; with delays and stopped after every step; killed in an update, while the next step is sampled."""
    cfg = settings(**changes)
    whole = Run(cfg, tmp_path / "whole").train()
    assert len(whole.memory.records) == STEPS and all(whole.memory.rows())
    stopped: list[list[Row]] = []
    for step in range(1, STEPS):
        part = Run(cfg, tmp_path / "stopped", delays=step)
        with pytest.raises(Stopped):
            part.train(stop=True)
        assert part.state(step)["collected"][-1][0] == "Experience"
        stopped += part.memory.rows()
    part = Run(cfg, tmp_path / "stopped").train()
    assert stopped + part.memory.rows() == whole.memory.rows()
    assert torch.equal(whole.weights(), part.weights())
    assert "collected" not in whole.state(STEPS)  # nothing is sampled beyond the end
    first = Run(cfg, tmp_path / "killed", delays=7, fails_at=2 * cfg.loss.updates_per_batch, every=1)
    with pytest.raises(Killed):
        first.train()
    rest = Run(cfg, tmp_path / "killed", delays=8).train()
    assert first.memory.rows() + rest.memory.rows() == whole.memory.rows()
    assert torch.equal(whole.weights(), rest.weights())


def test_a_failure_beside_the_update_ends_the_run_with_its_cause(tmp_path: Path) -> None:
    run = Run(settings(algorithm="grpo"), tmp_path)
    generate = run.engine.generate

    async def fail_in_the_second_step(request: Request) -> Completion:
        if len(run.engine.sampled) >= P * K:
            raise OSError("the engine is gone")
        return await generate(request)

    run.engine.generate = fail_in_the_second_step  # type: ignore[method-assign]
    with pytest.raises(OSError, match="the engine is gone"):
        run.train()
    assert len(run.actor.updates) == 1 and not run.memory.records


def test_what_was_one_object_is_one_again_and_numbers_come_back_exactly() -> None:
    query = Query("7", "47+38=?", "85", (2, 52), row={"source": ["a", 1.5]})
    logprobs = (-0.1, -1 / 3, float("-inf"), -1e-300)
    rollouts = tuple(
        Rollout(query, k, Completion((5, 2, 9, 1), "é\n", k > 0, logprobs), Grade(k / 2, "right", correct_at=0.5))
        for k in range(3)
    )
    pair = Pair(rollouts[0], rollouts[2], 0, group_rewards=(0, 0.5, 1.0))
    made = Construction(pair, None, "raw", response_ids=(1, 2), grade=Grade(1.0, "right"))
    experience = Experience((Group(query, rollouts),), (made,), waiting=(pair,), metrics={"time/rollouts": 0.1})
    back = read_experience(json.loads(json.dumps(write_experience(experience), indent=1)))
    assert back == experience
    assert back.groups[0].query.row == {"source": ["a", 1.5]}
    assert back.constructions[0].pair.wrong is back.groups[0].rollouts[0]
    assert back.waiting[0] is back.constructions[0].pair
    assert list(map(type, back.waiting[0].group_rewards)) == [int, float, float]
    with pytest.raises(AssertionError, match="not written"):
        write_experience(Experience(examples=(Row("x", "x", None, (1,), (2,)),)))  # type: ignore[arg-type]


# ---- the loss --------------------------------------------------------------------------------------------------------


def score(weights: dict[str, Tensor], ids: Sequence[int]) -> Tensor:
    """log p of every token but the first, given the token before, of the scripted runtime's model, written out."""
    hidden = torch.tanh(weights["0.weight"].double()[list(ids[:-1])])
    logits = hidden @ weights["2.weight"].double().T + weights["2.bias"].double()
    return logits[range(len(ids) - 1), list(ids[1:])] - torch.logsumexp(logits, 1)


def test_old_log_probabilities_are_those_that_the_update_begins_with_and_the_rest_is_corrected(tmp_path: Path) -> None:
    """As in NeMo-RL's async GRPO: pi_old / pi_engine, times the ratio to pi_old, which is 1 in the first update."""
    run = Run(settings(algorithm="grpo"), tmp_path).train()
    for step, (weights, _) in enumerate(run.actor.updates):
        sampler, _ = run.actor.updates[max(step - 1, 0)]
        record = run.memory.records[step]
        loss, quotients = 0.0, []
        for row in record.rows:
            ids = (row.prompt_ids[-1], *row.response_ids)
            assert row.generation_logprobs == pytest.approx(score(sampler, ids).tolist(), abs=1e-5)
            mine = (score(weights, ids) - score(sampler, ids)).exp()
            loss -= row.advantage * float(mine.mean()) / len(record.rows)
            quotients += mine.tolist()
        assert record.results[0].loss == pytest.approx(loss, abs=1e-5)
        assert record.metrics["sampling_importance_ratio"] == pytest.approx(sum(quotients) / len(quotients), abs=1e-5)
        assert record.metrics["ratio_deviation"] == 0.0
        moved = max(abs(q - 1) for q in quotients)
        assert moved > 0.01 if step else moved == 0.0
        assert (record.metrics["engine_gap"] > 1e-3) is (step > 0)


def test_several_updates_share_the_old_log_probabilities(tmp_path: Path) -> None:
    run = Run(settings(algorithm="grpo", loss__updates_per_batch=2, steps=2), tmp_path).train()
    for step in range(2):
        weights = run.actor.updates[2 * step][0]
        for _, batch in run.actor.updates[2 * step : 2 * step + 2]:
            assert batch.prev_logprobs is not None and batch.generation_logprobs is not None
            known = batch.token_mask[0] > 0
            expected = score(weights, batch.input_ids[0].tolist())[known[1:]]
            assert batch.prev_logprobs[0][known].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_whole_rows_are_corrected_where_the_ratio_is_a_rows() -> None:
    def rules(**changes: Any) -> Any:
        tools = Tools(None, None, ArithmeticTask(settings().task.arithmetic, 0))  # type: ignore[arg-type]
        return make_algorithm(settings(**changes), tools).loss.importance  # type: ignore[attr-defined]

    assert rules(rollout__lag=0) is None
    assert (rules().truncation, rules().sequence) == ("none", False)
    assert rules(loss__ratio="sequence").sequence


def test_an_update_between_engine_and_actor_is_no_stale_engine(tmp_path: Path) -> None:
    cfg = settings(engine_gap_bound=0.5)
    loop = LoopConfig(tmp_path, 9, cfg.optimizer, cfg.loss, engine_gap_bound=0.5)
    told: list[str] = []
    comparison = PolicyComparison(loop, told.append)
    comparison.check(0, {"engine_gap": 1e-7, "rollouts/lag": 0}, first=True)
    comparison.check(1, {"engine_gap": 0.1, "rollouts/lag": 1}, first=False)
    assert told == []
    comparison.check(2, {"engine_gap": 0.6, "rollouts/lag": 1}, first=False)
    assert len(told) == 1 and "the update between the two (rollout.lag) moved the policy far" in told[0]
    comparison.check(3, {"engine_gap": 0.1}, first=False)  # without a lag it would be one
    assert len(told) == 2 and "does not run the actor's newest weights" in told[1]


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"algorithm": "opsd"}, "OPSD's loss has no ratio to correct"),
        ({"algorithm": "reflective_sft"}, "likelihood has no ratio to correct"),
        ({"rollout__logprobs": "spot_check"}, "set rollout.logprobs to always"),
        ({"rollout__top_p": 0.9}, "set rollout.top_p to 1"),
        ({"rollout__lag": 2}, "rollout.lag: Input should be less than or equal to 1"),
    ],
)
def test_what_does_not_go_with_a_lag_is_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        settings(**changes)


def test_a_branch_says_that_its_first_step_is_sampled_by_other_weights() -> None:
    def describe(**changes: Any) -> str:
        return describe_learning_rate(settings(optimizer__schedule="constant", steps=200, **changes), done=100)

    assert "step 101 is sampled by the weights after step 100" in describe()
    assert describe().endswith("the result is not that of one run of 200 steps.")
    assert describe(rollout__lag=0).endswith("so the result is that of one run of 200 steps.")


def test_a_lag_is_part_of_the_settings_and_none_is_not() -> None:
    assert rl_fingerprint(settings())["rollout.lag"] == 1
    assert "rollout.lag" not in rl_fingerprint(settings(rollout__lag=0))
