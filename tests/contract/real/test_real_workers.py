"""Steps of TAPO on NeMo-RL's own policy workers and vLLM engines: nothing of NeMo-RL is replaced by a stand-in.

A run samples, constructs, scores, updates, hands its weights over, saves and exports as on a cluster; only the GPUs do
not exist (shim/). Engine and actor compute log-probabilities independently of each other, so that they agree at the
second and third step only if the engine has the weights of the update before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from real_run import RealRun

pytestmark = pytest.mark.timeout(1200)
ASYNC = "policy.generation.vllm_cfg.async_engine=true"
DISTRIBUTED = "policy.megatron_cfg.optimizer.use_distributed_optimizer=true"
TP_2 = "policy.megatron_cfg.tensor_model_parallel_size=2"
PP_2 = "policy.megatron_cfg.pipeline_model_parallel_size=2"
BF16 = ("policy.precision=bfloat16", "policy.generation.vllm_cfg.precision=bfloat16")
OWN_GPU = (  # the second GPU is the engine's
    "policy.generation.colocated.enabled=false",
    "policy.generation.colocated.resources.gpus_per_node=1",
    "policy.generation.colocated.resources.num_nodes=null",
)
ONE_STEP_OFF = (
    *OWN_GPU,
    ASYNC,
    "grpo.async_grpo.enabled=true",
    "loss_fn.use_importance_sampling_correction=true",
)
SMALL_EVALUATION = ("tapo.evaluation.problems=8", "tapo.evaluation.samples=2", "tapo.evaluation.runs=1")
RATES = [1.5e-4, 2.25e-4, 3e-4]  # of the recipes' warm-up
megatron = pytest.mark.megatron
Trained = Callable[..., RealRun]


def check_agreement(run: RealRun) -> None:
    """Assert that engine and actor are one policy at every step, and that the policy moves."""
    steps = run.steps
    assert [m["step"] for m in steps] == [1, 2, 3]
    for m in steps:
        assert m["token_mult_prob_error"] == pytest.approx(1.0, abs=1e-4), m
        assert abs(m["gen_kl_error"]) < 1e-6 and 0 < m["engine_gap"] < 1e-4, m
        assert m["ratio_deviation"] < 1e-5 and m["grad_norm"] > 0, m
    assert [m["lr"] for m in steps] == pytest.approx(RATES)
    assert abs(steps[0]["kl_ref"]) < 1e-6 < 1e-4 < steps[2]["kl_ref"]


def check_files(run: RealRun) -> None:
    """Assert that constructions were learned from, and that checkpoints and the exported model are there."""
    assert sum(m["tapo/parsed"] for m in run.steps) > 0
    assert (run.folder / "checkpoints" / "step_3" / "manifest.json").is_file()
    assert (run.folder / "hf" / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Three steps, done once for each recipe and layout."""

    @functools.cache
    def train(recipe: str, gpus: int, overrides: tuple[str, ...] = ()) -> RealRun:
        return RealRun(tmp_path_factory.mktemp(recipe), recipe, gpus, overrides).succeed()

    return train


@pytest.mark.parametrize(
    ("recipe", "gpus", "overrides"),
    [
        pytest.param("dtensor", 1, (), id="dtensor-sync"),
        pytest.param("dtensor", 1, (ASYNC,), id="dtensor-async"),
        pytest.param("dtensor", 2, (), id="dtensor-dp2-two-engines"),
        pytest.param("dtensor", 2, OWN_GPU, id="dtensor-engine-apart"),
        pytest.param("megatron", 1, (), id="megatron-sync", marks=megatron),
        pytest.param("megatron", 2, (ASYNC, DISTRIBUTED), id="megatron-dp2-distributed-async", marks=megatron),
        pytest.param("megatron", 2, (TP_2, DISTRIBUTED), id="megatron-tp2-distributed", marks=megatron),
        pytest.param("megatron", 2, (PP_2,), id="megatron-pp2", marks=megatron),
    ],
)
def test_engine_and_actor_agree_at_every_step(
    recipe: str, gpus: int, overrides: tuple[str, ...], trained: Trained
) -> None:
    run = trained(recipe, gpus, overrides)
    check_agreement(run)
    check_files(run)


def test_in_bf16_engine_and_actor_stay_within_the_bound(trained: Trained) -> None:
    run = trained("dtensor", 1, BF16)
    assert [m["step"] for m in run.steps] == [1, 2, 3]
    for m in run.steps:
        assert 1e-4 < m["engine_gap"] < 0.05, m  # rounded, and within the default of tapo.engine_gap_bound
        assert m["ratio_deviation"] < 1e-5 and m["grad_norm"] > 0, m
    check_files(run)


def test_one_step_off_the_engine_is_an_update_behind_and_no_more(trained: Trained) -> None:
    run = trained("dtensor", 2, ONE_STEP_OFF)
    first, second, third = run.steps
    assert [m["rollouts/lag"] for m in run.steps] == [0, 1, 1]
    assert first["engine_gap"] < 1e-4 < second["engine_gap"]
    assert third["engine_gap"] < 2 * second["engine_gap"]  # an engine without new weights: 2.9 times (TestLostWeights)
    assert all(m["grad_norm"] > 0 for m in run.steps)
    check_files(run)


@megatron
def test_megatron_and_dtensor_make_the_same_first_update(trained: Trained) -> None:
    """NeMo-RL seeds an engine by its place, so one sync engine samples the same in both."""
    sampled, updates = [], []
    for recipe in ("dtensor", "megatron"):
        run = trained(recipe, 1, ())
        sampled.append([line for line in run.read_lines("trajectories.jsonl") if line["step"] == 1])
        updates.append([run.steps[0][name] for name in ("loss", "grad_norm", "entropy", "tapo/ots_weight_mean")])
    assert sampled[0] == sampled[1]
    assert updates[0] == pytest.approx(updates[1], rel=1e-5)


class TestLostWeights:
    """Engines that drop the weights they receive: the run has to tell, nothing else does."""

    def test_from_the_first_hand_over_on_it_ends_at_the_first_step(self, tmp_path: Path) -> None:
        run = RealRun(tmp_path / "run", "dtensor", variables={"NEMO_RL_LOSES_WEIGHTS": "0"})
        assert run.finish() == 2
        assert "the engine does not run the actor's weights" in run.tail()
        assert not (run.folder / "metrics.jsonl").exists() or not run.steps

    def test_later_it_is_told_and_shows_in_the_metrics(self, tmp_path: Path) -> None:
        run = RealRun(tmp_path / "run", "dtensor", variables={"NEMO_RL_LOSES_WEIGHTS": "1"}).succeed()
        first, _, last = run.steps
        assert first["engine_gap"] < 1e-4 and last["engine_gap"] > 0.01
        assert last["gen_kl_error"] > 1e-4
        with pytest.raises(AssertionError):
            check_agreement(run)
        assert "step 3: log-probabilities of engine and actor differ" in run.log.read_text(errors="replace")


@pytest.mark.parametrize("recipe", ["dtensor", pytest.param("megatron", marks=megatron)])
def test_a_killed_run_goes_on_from_its_checkpoint_and_is_evaluated(recipe: str, tmp_path: Path) -> None:
    run = RealRun(tmp_path / "run", recipe)
    run.kill_after(run.folder / "checkpoints" / "step_1")
    run.succeed()
    check_agreement(run)  # the third step's rate and KL are those of a run that was not killed
    check_files(run)
    run.succeed("evaluate", f"policy.model_name={run.folder / 'hf'}", *SMALL_EVALUATION)
    assert (run.folder / "evaluation.json").is_file()
