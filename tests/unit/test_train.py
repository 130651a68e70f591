"""The whole loop on the scripted runtime: order, seeds, counters, ablation switches, resume, first-step checks."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_tapo.algorithms.grpo import GRPO
from nemo_tapo.algorithms.reflection import DROP_REASONS
from nemo_tapo.algorithms.tapo import TAPO
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.batch import collate, split_into_updates
from nemo_tapo.config.loop import LoopConfig
from nemo_tapo.config.run_config import RunConfig, rl_fingerprint, validate
from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.datasets.query_order import QueryOrder, add_prompts
from nemo_tapo.evaluation.validation import Validation
from nemo_tapo.runtime.scripted_runtime import (
    CharacterTokenizer,
    Script,
    ScriptedActor,
    ScriptedGenerator,
    ScriptedRuntime,
    arithmetic_script,
)
from nemo_tapo.scoring import PolicyComparison
from nemo_tapo.stages.reinforce import make_query_source
from nemo_tapo.tasks import arithmetic
from nemo_tapo.tasks.arithmetic_task import ArithmeticTask
from nemo_tapo.train import train
from nemo_tapo.types import Experience, Kind, Request, Row, StepRecord
from nemo_tapo.utils.errors import Stopped
from nemo_tapo.utils.signals import Stop

torch.set_num_threads(1)
SMALL: dict[str, Any] = {
    "rollout": {"queries_per_step": 6, "max_tokens": 300},
    "tapo": {"max_tokens": 800},
    "model": {"max_length": 4000},
    "optimizer": {"lr": 1e-2, "warmup_steps": 0},
    "steps": 4,
}


class Memory:
    """A recorder that keeps everything."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.metrics: list[dict[str, float]] = []
        self.rows: list[list[Row]] = []
        self.experience: list[Experience] = []
        self.warnings: list[str] = []
        self.resumed = -1

    def phase(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def resume(self, step: int, history: Sequence[Any]) -> None:
        self.resumed, self.restored = step, history

    def history(self) -> list[str]:
        return []

    def step(self, record: StepRecord) -> None:
        self.steps.append(record.step)
        self.metrics.append(dict(record.metrics))
        self.experience.append(record.experience)
        self.rows.append(list(record.rows))


def settings(**changes: Any) -> RunConfig:
    raw = {k: dict(v) if isinstance(v, dict) else v for k, v in SMALL.items()}
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        if leaf:
            raw.setdefault(section, {})[leaf.replace("lambda_", "lambda")] = value
        else:
            raw[section] = value
    return validate(raw)


def run(
    cfg: RunConfig, folder: Path, stop: Stop | None = None, script: Script = arithmetic_script
) -> tuple[Memory, ScriptedRuntime]:
    runtime, memory = ScriptedRuntime(script), Memory()
    task = ArithmeticTask(cfg.task.arithmetic, cfg.seed)
    kind = TAPO if cfg.algorithm == "tapo" else GRPO
    algorithm = kind(cfg, Tools(runtime.generator, runtime.tokenizer, task))
    usable, bad = add_prompts(task.train_queries()[:60], runtime.tokenizer, 1000)
    assert not bad
    order = QueryOrder(usable, cfg.rollout.queries_per_step, cfg.seed)
    queries = make_query_source(cfg.rollout, order, algorithm)
    loop = LoopConfig(
        folder,
        cfg.steps,
        cfg.optimizer,
        cfg.loss,
        checkpoint_every=2,
        checkpoint_keep=cfg.checkpoint.keep,
        keep_best=cfg.checkpoint.keep_best,
        fingerprint=cfg.fingerprint("tapo", "rollout"),
    )
    validation = None
    if cfg.evaluation.every is not None:
        sets = {name: add_prompts(found, runtime.tokenizer, 1000)[0] for name, found in task.benchmarks().items()}
        validation = Validation(cfg, algorithm.tools, sets)
    asyncio.run(train(loop, algorithm, runtime, queries, memory, stop or Stop(), validation))
    return memory, runtime


def weights(runtime: ScriptedRuntime) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in runtime.actor.model.parameters()])


def test_every_query_pair_and_row_is_accounted_for(tmp_path: Path) -> None:
    memory, runtime = run(settings(), tmp_path)
    assert memory.steps == [1, 2, 3, 4]
    assert runtime.generator.weight_updates == 5  # before the first rollouts and after each update
    for metrics, rows in zip(memory.metrics, memory.rows, strict=True):
        assert metrics["tapo/eligible"] + metrics["tapo/mastered"] + metrics["tapo/beyond"] == 6
        dropped = sum(metrics[f"tapo/dropped/{reason}"] for reason in DROP_REASONS)
        assert metrics["tapo/parsed"] + dropped == metrics["tapo/pairs"]
        assert metrics["tapo/correct"] <= metrics["tapo/parsed"]
        assert metrics["tokens/synthesised"] > metrics["tapo/pairs"]
        assert metrics["rows"] == len(rows) == 48 + metrics["tapo/parsed"]
        assert sum(v for k, v in metrics.items() if k.startswith("grade/")) == 48
        groups = metrics["tapo/mixed_groups"] + metrics["tapo/single_groups"] + metrics["tapo/uniform_groups"]
        assert groups == metrics["tapo/groups"]
    assert any(m["tapo/pairs"] > m["tapo/parsed"] > 0 for m in memory.metrics)
    assert any(m["tapo/mixed_groups"] > 0 for m in memory.metrics)


def test_constructed_rows_stand_in_the_querys_own_context(tmp_path: Path) -> None:
    memory, _ = run(settings(), tmp_path)
    constructed = [row for rows in memory.rows for row in rows if row.kind is Kind.CONSTRUCTED]
    prompts = {r.query.uid: r.query.prompt_ids for e in memory.experience for g in e.groups for r in g.rollouts}
    assert constructed
    for row in constructed:
        assert row.group.endswith("_reflected")
        assert row.prompt_ids == prompts[row.group.removesuffix("_reflected")]
        assert row.generation_logprobs is None
    for metrics in memory.metrics:
        assert metrics.get("ratio_deviation") == 0.0


def test_overlong_rollouts_count_in_everything_but_the_gradient(tmp_path: Path) -> None:
    """Of the first step, whose policy is the same: rollouts, pairs and advantages stay, the truncated rows go."""
    kept, _ = run(settings(rollout__max_tokens=64, steps=1), tmp_path / "keep")
    masked, _ = run(settings(rollout__max_tokens=64, rollout__overlong="mask", steps=1), tmp_path / "mask")
    rollouts = [r for g in kept.experience[0].groups for r in g.rollouts]
    cut = {r.uid for r in rollouts if r.completion.truncated}
    assert 0 < len(cut) < len(rollouts)
    assert masked.experience[0].groups == kept.experience[0].groups
    assert masked.experience[0].constructions == kept.experience[0].constructions
    assert masked.rows[0] == [row for row in kept.rows[0] if row.uid not in cut]  # with the same advantages
    found = masked.metrics[0]
    assert found["rollouts/masked"] == len(cut) and "rollouts/masked" not in kept.metrics[0]
    assert found["rows"] == len(rollouts) - len(cut) + found["tapo/rows"]
    assert found["reward/mean"] == kept.metrics[0]["reward/mean"]
    # the mean is over the rows that remain, as under NeMo-RL's sample_mask
    original = [row for row in masked.rows[0] if row.kind is Kind.ORIGINAL]
    coefficient = collate(masked.rows[0], 0).loss_coef[0]
    assert float(coefficient) == pytest.approx(1 / len(original) / len(original[0].response_ids))


def test_a_step_of_truncated_rollouts_alone_has_no_gradient(tmp_path: Path) -> None:
    cfg = settings(algorithm="grpo", rollout__max_tokens=1, rollout__overlong="mask", steps=1)
    memory, runtime = run(cfg, tmp_path)
    assert memory.rows == [[]] and memory.metrics[0]["rollouts/masked"] == 48
    assert memory.metrics[0]["grad_norm"] == 0.0
    assert torch.equal(weights(runtime), weights(ScriptedRuntime(arithmetic_script)))


def test_grpo_is_tapo_with_nothing_constructed(tmp_path: Path) -> None:
    """Thresholds that no query meets: the same rows, losses and weights as GRPO, bit for bit."""
    grpo, a = run(settings(algorithm="grpo"), tmp_path / "grpo")
    tapo, b = run(settings(tapo__n_pos=8, tapo__n_neg=1, rollout__samples_per_query=9), tmp_path / "x")
    none, c = run(settings(algorithm="grpo", rollout__samples_per_query=9), tmp_path / "none")
    assert all(row.kind is Kind.ORIGINAL for rows in grpo.rows for row in rows)
    assert sum(m["tapo/pairs"] for m in tapo.metrics) == 0
    assert tapo.rows == none.rows
    assert torch.equal(weights(b), weights(c))
    zero, d = run(settings(tapo__lambda_=0.0), tmp_path / "zero")
    assert sum(m["tapo/parsed"] for m in zero.metrics) > 0
    # lambda = 0: constructed rows weigh nothing; not bit for bit, they make the padded batch wider
    torch.testing.assert_close(weights(a), weights(d), rtol=1e-4, atol=1e-5)


def test_the_pipeline_changes_nothing_but_the_order_of_arrival(tmp_path: Path) -> None:
    overlapped, a = run(settings(), tmp_path / "a")
    barrier, b = run(settings(pipeline="barrier"), tmp_path / "b")
    assert overlapped.rows == barrier.rows
    assert torch.equal(weights(a), weights(b))
    assert a.generator.request_uids != b.generator.request_uids
    first_synthesis = next(i for i, uid in enumerate(b.generator.request_uids) if "_reflected" in uid)
    assert first_synthesis == 48  # with the barrier, every rollout of the step was asked for before
    assert next(i for i, uid in enumerate(a.generator.request_uids) if "_reflected" in uid) <= 48


@pytest.mark.parametrize(
    ("switch", "same_rows", "same_originals"),
    [
        ({"tapo__decoupled": False}, True, False),
        ({"tapo__negatives": False}, False, True),
        ({"tapo__uniform_group": "reward"}, True, True),
        ({"tapo__reflection_baseline": "with_originals"}, True, True),
        ({"tapo__suppression": False}, True, True),
    ],
)
def test_a_switch_changes_what_it_names(
    tmp_path: Path, switch: dict[str, Any], same_rows: bool, same_originals: bool
) -> None:
    """First step only: afterwards the weights differ, the scripted responses do not."""
    base, _ = run(settings(steps=1), tmp_path / "base")
    other, _ = run(settings(steps=1, **switch), tmp_path / "other")
    one, two = base.rows[0], other.rows[0]
    assert ([r.uid for r in one] == [r.uid for r in two]) is same_rows
    assert {r.uid for r in two} <= {r.uid for r in one}
    originals = [[(r.uid, r.advantage) for r in rows if r.kind is Kind.ORIGINAL] for rows in (one, two)]
    assert (originals[0] == originals[1]) is same_originals
    bare = [{r.uid: replace(r, advantage=0.0, group="") for r in rows} for rows in (one, two)]
    assert all(bare[0][uid] == row for uid, row in bare[1].items())
    if switch == {"tapo__suppression": False}:
        assert one == two
        assert other.metrics[0]["tapo/ots_weight_mean"] == 1.0
        assert base.metrics[0]["tapo/ots_weight_mean"] != 1.0
    if switch == {"tapo__negatives": False}:
        assert all(r.reward > 0 for r in two if r.kind is Kind.CONSTRUCTED)


def test_resume_goes_on_bit_for_bit(tmp_path: Path) -> None:
    cfg = settings(rollout__logprobs="always")
    whole, a = run(cfg, tmp_path / "whole")

    class StopAfterTwo(Stop):
        def check(self, what: str) -> None:
            if "step 2" in what:
                raise Stopped(2, what)

    with pytest.raises(Stopped, match="checkpoint of step 2"):
        run(cfg, tmp_path / "parts", StopAfterTwo())
    rest, b = run(cfg, tmp_path / "parts")
    assert rest.resumed == 3
    assert rest.steps == [3, 4]
    assert rest.rows == whole.rows[2:]
    assert torch.equal(weights(a), weights(b))


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run(settings(), tmp_path)
    with pytest.raises(ValueError, match=r"tapo\.m_max: 4 -> 3"):
        run(settings(tapo__m_max=3), tmp_path)


def test_several_updates_a_batch_keep_a_querys_rows_together(tmp_path: Path) -> None:
    memory, runtime = run(settings(loss__updates_per_batch=3, steps=2), tmp_path)
    assert runtime.actor.steps_done == 6
    assert memory.metrics[1]["ratio_deviation"] > 0  # the second and third update have moved away from pi_old
    assert all(m["engine_gap"] < 1e-6 for m in memory.metrics)  # of the first update, before the policy moves


def test_the_schedule_is_told_of_every_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of three updates end a schedule of six."""
    told: list[int] = []
    configure = ScriptedActor.configure

    async def noting(self: ScriptedActor, optimizer: OptimizerConfig, total_steps: int) -> None:
        told.append(total_steps)
        await configure(self, optimizer, total_steps)

    monkeypatch.setattr(ScriptedActor, "configure", noting)
    _, runtime = run(settings(loss__updates_per_batch=3, steps=2), tmp_path)
    assert told == [runtime.actor.steps_done] == [6]


def test_a_step_has_always_as_many_updates_and_a_query_is_in_one() -> None:
    uids = ["a/0", "b/0", "b/1", "b_reflected/0", "ift-b_reflected/0", "c/0", "ift-c_reflected/1"]
    rows = [Row(uid, uid, Kind.EXAMPLE, (1,), (2,)) for uid in uids]
    found = [[row.uid for row in part] for part in split_into_updates(rows, 3)]
    assert found == [["a/0"], ["b/0", "b/1", "b_reflected/0", "ift-b_reflected/0"], ["c/0", "ift-c_reflected/1"]]
    assert [len(part) for part in split_into_updates(rows[:4], 3)] == [0, 1, 3]
    assert split_into_updates([], 3) == [[], [], []]


def test_kl_is_reported_without_being_penalised(tmp_path: Path) -> None:
    memory, _ = run(settings(loss__kl_rows=5), tmp_path)
    assert memory.metrics[0]["kl_ref"] == 0.0
    assert memory.metrics[-1]["kl_ref"] > 0.0


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ({"ratio_deviation": 0.1}, "ratio"),
        ({"kl_ref": 0.1}, "reference is another model"),
        ({"engine_gap": 0.1}, "does not run the actor's weights"),
    ],
)
def test_first_step_faults_are_sentences(tmp_path: Path, metrics: dict[str, float], sentence: str) -> None:
    cfg = settings()
    loop = LoopConfig(tmp_path, 1, cfg.optimizer, cfg.loss)
    with pytest.raises(ValueError, match=sentence):
        PolicyComparison(loop, print).check(0, metrics, first=True)
    fine = {"ratio_deviation": 0.0, "kl_ref": 0.0, "engine_gap": 1e-4}
    PolicyComparison(loop, print).check(0, fine, first=True)


def test_a_stale_engine_is_told_at_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hand-over after the second update is lost: the third step samples by the weights before it."""
    hand_over = ScriptedGenerator.update_weights

    async def lose_the_third(self: ScriptedGenerator, weights: dict[str, torch.Tensor]) -> None:
        before = self.weights
        await hand_over(self, weights)
        if self.weight_updates == 3:  # the first is made before the first step
            self.weights = before

    cfg = settings(optimizer__lr=1e-4, optimizer__warmup_steps=0, steps=4)
    fine, _ = run(cfg, tmp_path / "fine")
    assert fine.warnings == []
    assert all(m["engine_gap"] < 1e-6 for m in fine.metrics)
    monkeypatch.setattr(ScriptedGenerator, "update_weights", lose_the_third)
    stale, _ = run(cfg, tmp_path / "stale")
    assert [warning.split(":")[0] for warning in stale.warnings] == ["step 3"]
    assert "does not run the actor's newest weights" in stale.warnings[0]
    assert stale.metrics[2]["engine_gap"] < 0.01  # engine_gap_bound alone would not have told it


@pytest.mark.parametrize(
    ("logprobs", "reported"),
    [("spot_check", [48, 3, 3, 3]), ("first_step", [48, 0, 0, 0]), ("always", [48] * 4), ("never", [0] * 4)],
)
def test_so_many_rollouts_are_compared(tmp_path: Path, logprobs: str, reported: list[int]) -> None:
    memory, _ = run(settings(rollout__logprobs=logprobs), tmp_path)
    assert [sum(row.generation_logprobs is not None for row in rows) for rows in memory.rows] == reported
    assert [("engine_gap" in metrics) for metrics in memory.metrics] == [count > 0 for count in reported]


def test_constructions_that_make_a_mistake_up_are_dropped_and_counted(tmp_path: Path) -> None:
    """Every reconstruction begins with a wrong line that no rollout wrote; its answer is right all the same."""

    def invents(prompt: str, request: Request) -> str:
        fixed = arithmetic_script(prompt, request)
        head, tag, tail = fixed.partition("<reconstruction>")
        return f"{head}{tag}a: 1+1=3\n{tail}"

    memory, _ = run(settings(), tmp_path / "as it is", script=invents)
    for metrics in memory.metrics:
        reasons = {key: n for key, n in metrics.items() if key.startswith("tapo/dropped/")}
        assert metrics["tapo/pairs"] == metrics["tapo/parsed"] + sum(reasons.values())
        assert metrics["tapo/parsed"] == metrics["tapo/rows"] == 0
    assert sum(m["tapo/dropped/error_not_kept"] for m in memory.metrics) > 0
    lenient, _ = run(settings(tapo__keep_error=False), tmp_path / "lenient", script=invents)
    assert lenient.metrics[0]["tapo/rows"] > 0 == lenient.metrics[0]["tapo/kept_steps"]


def test_prompts_that_do_not_fit_are_counted_not_cut(tmp_path: Path) -> None:
    memory, runtime = run(settings(tapo__max_tokens=3990), tmp_path)
    for metrics in memory.metrics:
        assert metrics["tapo/dropped/prompt_too_long"] == metrics["tapo/pairs"]
    assert not any("_reflected" in uid for uid in runtime.generator.request_uids)


# ---- pipeline: deferred ----------------------------------------------------------------------------------------------


def test_deferred_constructions_are_those_of_the_step_before(tmp_path: Path) -> None:
    memory, runtime = run(settings(pipeline="deferred"), tmp_path)
    assert memory.experience[0].constructions == ()
    for before, after in zip(memory.experience[:-1], memory.experience[1:], strict=True):
        made = [c for c in after.constructions if c.dropped != "run_ended"]
        assert [c.pair for c in made] == list(before.waiting) != []
        chosen_from = {r.uid: r for group in before.groups for r in group.rollouts}
        assert all(chosen_from[c.pair.wrong.uid] == c.pair.wrong for c in made)
    last = memory.experience[-1]
    ended = [c.pair for c in last.constructions if c.dropped == "run_ended"]
    eligible = [g for g in last.groups if len(g.correct) >= 2 and len(g.incorrect) >= 4]
    assert (len(ended), last.waiting) == (sum(min(4, len(g.incorrect)) for g in eligible), ())
    assert len(ended) > 0
    begin, synthesised = 0, 0  # the requests of a step are its rollouts and the syntheses that waited, nothing else
    for experience in memory.experience:
        end = begin + 48 + synthesised
        arrived = runtime.generator.request_uids[begin:end]
        assert sum("_reflected" in uid for uid in arrived) == synthesised
        assert len({uid for uid in arrived if "_reflected" not in uid}) == 48
        begin, synthesised = end, len(experience.waiting)
    assert begin == len(runtime.generator.request_uids)


def test_deferred_counters_sum_up(tmp_path: Path) -> None:
    """Pairs are counted where they are constructed: every pair of the run once, the last step's as run_ended."""
    memory, _ = run(settings(pipeline="deferred"), tmp_path)
    waiting = [0.0, *(m["tapo/waiting"] for m in memory.metrics)]
    for step, (metrics, rows) in enumerate(zip(memory.metrics, memory.rows, strict=True)):
        dropped = sum(metrics[f"tapo/dropped/{reason}"] for reason in DROP_REASONS)
        assert metrics["tapo/parsed"] + dropped == metrics["tapo/pairs"]
        assert metrics["tapo/pairs"] - metrics["tapo/dropped/run_ended"] == waiting[step]
        assert metrics["rows"] == len(rows) == 48 + metrics["tapo/parsed"]
    assert waiting[-1] == 0 < memory.metrics[-1]["tapo/dropped/run_ended"]
    assert sum(m["tapo/dropped/run_ended"] for m in memory.metrics[:-1]) == 0
    overlapped, _ = run(settings(), tmp_path / "overlapped")
    assert "tapo/waiting" not in overlapped.metrics[0]


@pytest.mark.parametrize("after", [2, 4])
def test_a_deferred_run_resumes_bit_for_bit(tmp_path: Path, after: int) -> None:
    """The pairs that waited are in the checkpoint, hashed with it; the engine that sampled them is gone."""
    changes = {"tapo__reflection_baseline": "with_originals", "rollout__logprobs": "never"}
    cfg = settings(pipeline="deferred", steps=6, **changes)
    whole, a = run(cfg, tmp_path / "whole")

    class StopAfter(Stop):
        def check(self, what: str) -> None:
            if f"step {after}" in what:
                raise Stopped(2, what)

    with pytest.raises(Stopped):
        run(cfg, tmp_path / "parts", StopAfter())
    folder = tmp_path / "parts" / "checkpoints" / f"step-{after:06d}"
    state = json.loads((folder / "state.json").read_text())
    written = state["algorithm"]["waiting"]
    assert sum(kind == "Pair" for kind, _ in written) == whole.metrics[after - 1]["tapo/waiting"] > 0
    assert "state.json" in json.loads((folder / "manifest.json").read_text())
    rest, b = run(cfg, tmp_path / "parts")
    assert rest.rows == whole.rows[after:]
    assert [e.constructions for e in rest.experience] == [e.constructions for e in whole.experience[after:]]
    assert torch.equal(weights(a), weights(b))


def test_deferred_rows_are_judged_by_the_rollouts_that_they_come_from(tmp_path: Path) -> None:
    """With the rollouts in the baseline: those of the step before, although the query is drawn again in this one."""
    cfg = settings(pipeline="deferred", tapo__reflection_baseline="with_originals", rollout__queries_per_step=60)
    memory, _ = run(cfg, tmp_path)  # 60 queries in all: every step draws each of them
    checked = 0
    for before, rows in zip(memory.experience[:-1], memory.rows[1:], strict=True):
        for group in before.groups:
            mine = [r for r in rows if r.group == f"{group.query.uid}_reflected"]
            rewards = [*(r.reward for r in group.rollouts), *(r.reward for r in mine)]
            mean = sum(rewards) / len(rewards)
            deviation = (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5
            for row in mine:
                assert row.advantage == pytest.approx((row.reward - mean) / (deviation + 1e-6))
                checked += 1
    assert checked > 10


def test_deferred_pairs_are_part_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a step apart"):
        settings(pipeline="deferred", tapo__decoupled=False)
    deferred, overlapped = settings(pipeline="deferred"), settings()
    assert rl_fingerprint(deferred)["pipeline"] == "deferred"
    assert rl_fingerprint(overlapped) == rl_fingerprint(settings(pipeline="barrier"))
    grpo = [settings(algorithm="grpo", pipeline=pipeline) for pipeline in ("deferred", "overlapped")]
    assert rl_fingerprint(grpo[0]) == rl_fingerprint(grpo[1])  # GRPO has nothing to defer


def test_every_update_has_its_part_of_deferred_constructions() -> None:
    rollouts = [Row(f"{q}/0", q, Kind.ORIGINAL, (1,), (2,)) for q in "abcd"]
    waited = [Row(f"{q}_reflected/0", f"{q}_reflected", Kind.CONSTRUCTED, (1,), (2,)) for q in "wxyz"]
    found = [[row.uid for row in part] for part in split_into_updates([*rollouts, *waited], 2)]
    assert found == [
        ["a/0", "b/0", "w_reflected/0", "x_reflected/0"],
        ["c/0", "d/0", "y_reflected/0", "z_reflected/0"],
    ]


# ---- validation between steps ----------------------------------------------------------------------------------------


def answer_held_out(rights: list[int]) -> Script:
    """Answer as usual in training, and rights[v] of the first problems in validation v, whatever the order."""
    problems: dict[str, int] = {}
    asked = [0]

    def script(prompt: str, request: Request) -> str:
        if not request.uid.startswith("validation/"):
            return arithmetic_script(prompt, request)
        rank = problems.setdefault(request.uid, len(problems))
        measurement, asked[0] = asked[0] // 5, asked[0] + 1
        right = arithmetic.write_solution(arithmetic.parse_question(prompt), random.Random(0), mistake_rate=0.0)
        return right if rank < rights[measurement] else "no idea"

    return script


VALIDATED: dict[str, Any] = {"evaluation__every": 1, "evaluation__validation_problems": 5}


def test_validation_measures_what_is_right_and_changes_nothing_that_is_trained(tmp_path: Path) -> None:
    plain, a = run(settings(), tmp_path / "plain")
    memory, b = run(settings(**VALIDATED), tmp_path / "validated", script=answer_held_out([1, 3, 2, 3]))
    assert [m["validation/arithmetic/accuracy"] for m in memory.metrics] == [0.2, 0.6, 0.4, 0.6]
    assert [m["validation/accuracy"] for m in memory.metrics] == [0.2, 0.6, 0.4, 0.6]
    assert [m["validation/best_step"] for m in memory.metrics] == [1, 2, 2, 2]
    assert all(m["validation/arithmetic/truncated"] == 0 < m["time/validation"] for m in memory.metrics)
    assert memory.rows == plain.rows and torch.equal(weights(a), weights(b))
    third = {**VALIDATED, "evaluation__every": 3, "evaluation__validation_samples": 2}
    memory, _ = run(settings(**third), tmp_path / "third")
    assert ["validation/accuracy" in m for m in memory.metrics] == [False, False, True, True]  # and after the last
    assert not any("validation" in key for key in plain.metrics[0])


def test_the_best_validated_checkpoint_is_saved_and_kept(tmp_path: Path) -> None:
    """Checkpoints are due at steps 2 and 4 and one is kept; the best are those of 1 and then 3."""
    cfg = settings(**VALIDATED, checkpoint__keep=1, checkpoint__keep_best=True, steps=6)
    run(cfg, tmp_path, script=answer_held_out([2, 1, 4, 3, 4, 0]))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000003", "step-000006"]
    state = json.loads((tmp_path / "checkpoints" / "step-000006" / "state.json").read_text())
    assert state["validation"] == {"best_step": 3, "best_accuracy": 0.8}


def test_a_validated_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, a = run(settings(**VALIDATED, checkpoint__keep_best=True), tmp_path / "whole")
    stop = Stop()
    stop.request(signal.SIGINT)
    with pytest.raises(Stopped):
        run(settings(**VALIDATED, checkpoint__keep_best=True), tmp_path / "parts", stop=stop)
    rest, b = run(settings(**VALIDATED, checkpoint__keep_best=True), tmp_path / "parts")
    assert rest.steps == [2, 3, 4]
    assert torch.equal(weights(a), weights(b))
    for mine, other in zip(rest.metrics, whole.metrics[1:], strict=True):
        keys = {key for key in other if key.startswith("validation/")}
        assert keys and {key: mine[key] for key in keys} == {key: other[key] for key in keys}


def test_a_set_without_room_for_a_rollout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="arithmetic has no problem that leaves room for a rollout"):
        run(settings(**VALIDATED, model__max_length=302), tmp_path)
    tools = Tools(None, None, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the task has no held-out set"):
        Validation(settings(**VALIDATED), tools, {})


# ---- dynamic sampling ------------------------------------------------------------------------------------------------


def kind_of(uid: str) -> str:
    """Return what the next script makes of a query: by its number, all right, all wrong, or 4 of 8 right."""
    return ("right", "wrong", "mixed", "mixed", "wrong")[int(uid.removeprefix("train-")) % 5]


def answer_by_query(prompt: str, request: Request) -> str:
    if "_reflected" in request.uid:
        return arithmetic_script(prompt, request)
    uid, index = request.uid.split("/")
    right = kind_of(uid) == "right" or (kind_of(uid) == "mixed" and int(index) % 2 == 0)
    solution = arithmetic.write_solution(arithmetic.parse_question(prompt), random.Random(0), mistake_rate=0.0)
    return solution if right else "no idea"


def expect_selection(cfg: RunConfig) -> list[tuple[list[str], list[str]]]:
    """(queries trained on, queries sampled) of each step, walking along the order one query at a time."""
    task = ArithmeticTask(cfg.task.arithmetic, cfg.seed)
    queries, _ = add_prompts(task.train_queries()[:60], CharacterTokenizer(), 1000)
    epochs = [QueryOrder(queries, 60, cfg.seed).queries(epoch) for epoch in range(10)]  # one step an epoch
    P, factor = cfg.rollout.queries_per_step, cfg.rollout.dynamic_sampling
    assert factor is not None
    steps, epoch, place = [], 0, 0
    for _ in range(cfg.steps):
        if 60 - place < P:
            epoch, place = epoch + 1, 0
        sampled: list[str] = []
        while place < 60 and len(sampled) < factor * P and sum(kind_of(u) == "mixed" for u in sampled) < P:
            sampled.append(epochs[epoch][place].uid)
            place += 1
        spare = P - sum(kind_of(u) == "mixed" for u in sampled)
        trained = []
        for uid in sampled:
            if kind_of(uid) == "mixed" or spare > 0:
                trained.append(uid)
                spare -= kind_of(uid) != "mixed"
        steps.append((trained, sampled))
    return steps


@pytest.mark.parametrize("pipeline", ["overlapped", "barrier", "deferred"])
@pytest.mark.parametrize("factor", [4.0, 1.5])
def test_queries_of_equal_rewards_are_replaced_in_the_order_of_the_queries(
    factor: float, pipeline: str, tmp_path: Path
) -> None:
    cfg = settings(rollout__dynamic_sampling=factor, pipeline=pipeline, steps=7)
    memory, runtime = run(cfg, tmp_path, script=answer_by_query)
    expected = expect_selection(cfg)
    asked = {uid.split("/")[0] for uid in runtime.generator.request_uids if "_reflected" not in uid}
    assert asked == {uid for _, sampled in expected for uid in sampled}
    for experience, metrics, (trained, sampled) in zip(memory.experience, memory.metrics, expected, strict=True):
        assert [group.query.uid for group in experience.groups] == trained
        assert len(trained) == 6
        replaced = [group.query.uid for group in experience.replaced]
        assert replaced == [uid for uid in sampled if uid not in trained]
        assert metrics["queries/sampled"] == len(sampled) == 6 + len(replaced)
        for kind in ("right", "wrong"):
            assert metrics[f"queries/replaced/all_{kind}"] == sum(kind_of(uid) == kind for uid in replaced)
        assert metrics["queries/replaced/ungraded"] == 0
        kept = [kind_of(uid) for uid in trained]
        assert metrics["queries/uniform_kept"] == 6 - kept.count("mixed")
        assert metrics["tapo/eligible"] == kept.count("mixed")  # 4 right and 4 wrong; no equal rewards are eligible
        assert (metrics["tapo/mastered"], metrics["tapo/beyond"]) == (kept.count("right"), kept.count("wrong"))
        assert sum(v for k, v in metrics.items() if k.startswith("grade/")) == 8 * len(sampled)
        assert metrics["reward/mean"] == pytest.approx(
            sum({"right": 1, "wrong": 0, "mixed": 0.5}[kind_of(uid)] for uid in sampled) / len(sampled)
        )
    assert any(m["queries/uniform_kept"] for m in memory.metrics) is (factor == 1.5)


def test_dynamic_sampling_resumes_bit_for_bit(tmp_path: Path) -> None:
    cfg = settings(rollout__dynamic_sampling=3.0, rollout__logprobs="never", pipeline="deferred", steps=5)
    whole, a = run(cfg, tmp_path / "whole", script=answer_by_query)
    stop = Stop()
    stop.request(signal.SIGINT)
    with pytest.raises(Stopped):
        run(cfg, tmp_path / "parts", stop=stop, script=answer_by_query)
    rest, b = run(cfg, tmp_path / "parts", script=answer_by_query)
    assert rest.steps == [2, 3, 4, 5]
    assert rest.rows == whole.rows[1:] and torch.equal(weights(a), weights(b))


def test_dynamic_sampling_without_anything_to_replace_changes_nothing(tmp_path: Path) -> None:
    """Two right ones of eight everywhere: the queries, rows and weights of a run without it."""

    def script(prompt: str, request: Request) -> str:
        first = "_reflected" not in request.uid and int(request.uid.split("/")[1]) < 2
        solution = arithmetic.write_solution(arithmetic.parse_question(prompt), random.Random(0), 0.0) if first else ""
        return solution if first else arithmetic_script(prompt, request) if "_reflected" in request.uid else "no idea"

    cfg = settings(steps=12, rollout__logprobs="never")
    plain, a = run(cfg, tmp_path / "plain", script=script)
    changed = settings(steps=12, rollout__logprobs="never", rollout__dynamic_sampling=2.0)
    dynamic, b = run(changed, tmp_path / "dynamic", script=script)
    assert plain.rows == dynamic.rows and torch.equal(weights(a), weights(b))


def test_the_last_queries_of_an_epoch_that_are_too_few_are_left_out() -> None:
    queries, _ = add_prompts(
        ArithmeticTask(settings().task.arithmetic, 0).train_queries()[:10], CharacterTokenizer(), 99
    )
    order = QueryOrder(queries, 4, seed=0)
    assert [order.skip_rest(p) for p in (0, 4, 6, 7, 8, 10, 17, 26)] == [0, 4, 6, 10, 10, 10, 20, 26]
    first = [q.uid for q in order.starting_at(0, 99)]
    assert sorted(first) == sorted(q.uid for q in queries)  # the whole epoch, and nothing of the next
    assert [q.uid for q in order.starting_at(6, 3)] == first[6:9]
    assert [q.uid for q in order.starting_at(10, 4)] == [q.uid for q in order.queries(2)]  # two steps an epoch
