"""Every YAML of the repository through the real validation; the cluster's recipes through their plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nemo_tapo.config.load import load_config
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.config.sections import DatasetConfig
from nemo_tapo.planning import memory
from nemo_tapo.runtime.nemo_rl.config import describe_run
from nemo_tapo.runtime.nemo_rl.config.checkout import compose_config, find_source, get_source_hint
from nemo_tapo.runtime.nemo_rl.config.cluster_run import is_nemo_rl_config
from nemo_tapo.runtime.nemo_rl.sft_recipe import complete_recipe, is_sft

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "examples" / "configs"
RUNS = sorted(CONFIGS.glob("*.yaml"))
BASES = {"tapo_math_megatron"}  # inherited by recipes; names no GPUs of its own
CLUSTER = [path for path in RUNS if is_nemo_rl_config(path)]
SFT = [path for path in CLUSTER if path.stem.startswith("sft-")]  # of NeMo-RL's own SFT, which trains the cold start
COLDSTART = [path for path in CLUSTER if path.stem.startswith("coldstart-")]
RECIPES = [path for path in CLUSTER if path.stem not in BASES and path not in SFT + COLDSTART]
HYBRID = {"nanov2"}  # models with layers of several kinds, for which `plan` estimates no memory
FRAGMENTS = sorted((CONFIGS / "data").glob("*.yaml"))
SWEEPS = [path for name in ("sweeps", "ablations") for path in (CONFIGS / name).glob("*.yaml")]  # test_sweep_expand.py
PRESETS = sorted((CONFIGS / "opsd").glob("*.yaml"))  # loaded by test_opsd.py


def need_source() -> None:
    if find_source() is None:
        pytest.skip(f"the cluster's recipes inherit from NeMo-RL's files: {get_source_hint()}")


def test_every_yaml_is_of_a_kind_that_is_checked() -> None:
    known = {*RUNS, *FRAGMENTS, *PRESETS, *SWEEPS}
    assert set(CONFIGS.rglob("*.y*ml")) == known
    assert len(RECIPES) >= 16


@pytest.mark.parametrize("path", [p for p in RUNS if p not in CLUSTER], ids=lambda p: p.stem)
def test_local_configs(path: Path) -> None:
    assert isinstance(load_config(path), RunConfig)


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda p: p.stem)
def test_data_sets(path: Path) -> None:
    DatasetConfig.model_validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_cluster_recipes(path: Path) -> None:
    """Keys, settings, division, lengths and memory; the name says what the recipe does."""
    need_source()
    run = describe_run.load_checked_run(path)
    algorithm, model, size, place, *_ = path.stem.split("-")
    assert run.cfg.algorithm == algorithm
    assert size in str(run.cfg.model.path).lower().replace("-", "")
    assert place == f"{run.setup.nodes}n{run.setup.gpus_per_node}g"
    assert path.stem.endswith("-async") == bool(run.cfg.rollout.lag) == (not run.setup.colocated)
    assert path.stem in run.master["checkpointing"]["checkpoint_dir"] == str(run.cfg.output)
    assert path.stem in run.master["logger"]["log_dir"]
    if model in HYBRID:
        assert "no estimate of memory and time: the shape of model" in describe_run.describe(run)
        return
    shape = describe_run.get_model_shape(str(run.cfg.model.path))
    for phase in memory.phases(shape, run.setup, run.assumed):
        assert phase.total < 0.95 * phase.capacity, phase.name  # an estimate needs some room


@pytest.mark.parametrize("path", [p for p in RECIPES if "0.6b" not in p.stem], ids=lambda p: p.stem)
def test_recipes_have_the_papers_settings(path: Path) -> None:
    """Section 4.1 of arXiv 2606.18844."""
    need_source()
    cfg = describe_run.load_checked_run(path).cfg
    assert (cfg.rollout.queries_per_step, cfg.rollout.samples_per_query, cfg.steps) == (32, 8, 500)
    assert (cfg.tapo.n_pos, cfg.tapo.n_neg, cfg.tapo.m_max, cfg.tapo.weight) == (2, 4, 4, 1.0)
    assert (cfg.tapo.w_min, cfg.tapo.w_max) == (0.01, 10.0)
    assert (cfg.optimizer.lr, cfg.optimizer.schedule, cfg.optimizer.min_lr_ratio) == (1e-6, "cosine", 0.0)
    assert (cfg.loss.kl_coef, cfg.loss.token_mean, cfg.loss.updates_per_batch) == (0.0, False, 1)
    assert not cfg.model.enable_thinking
    assert cfg.task.mathematics.train is not None and len(cfg.task.mathematics.benchmarks) == 3


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem.startswith("tapo")], ids=lambda p: p.stem)
def test_the_grpo_twin_differs_in_the_algorithm_alone(path: Path) -> None:
    need_source()
    twin = path.with_name(path.name.replace("tapo-", "grpo-", 1))
    one, other = describe_run.load_checked_run(path), describe_run.load_checked_run(twin)
    assert other.cfg.algorithm == "grpo" and other.setup.update_rows == other.setup.originals
    same = {"algorithm": "tapo", "output": one.cfg.output}
    assert other.cfg.model_copy(update=same) == one.cfg


@pytest.mark.parametrize("path", SFT, ids=lambda p: p.stem)
def test_sft_recipes(path: Path) -> None:
    """They are NeMo-RL's: this package's commands refuse them, and say who runs them."""
    need_source()
    master = compose_config(path)
    assert is_sft(master)
    with pytest.raises(ValueError, match=r"is a recipe of NeMo-RL's SFT, which its own examples/run_sft\.py runs"):
        describe_run.load_checked_run(path)
    _, _, size, place, *_ = path.stem.split("-")
    assert size in master["policy"]["model_name"].lower().replace("-", "")
    assert place == f"{master['cluster']['num_nodes']}n{master['cluster']['gpus_per_node']}g"
    assert path.stem in master["checkpointing"]["checkpoint_dir"] and path.stem in master["logger"]["log_dir"]
    assert master["data"]["default"]["prompt_file"] is None  # the prompts are whole
    assert not master["policy"]["tokenizer"]["chat_template_kwargs"]["enable_thinking"]


@pytest.mark.parametrize("path", COLDSTART, ids=lambda p: p.stem)
def test_coldstart_recipes_have_the_papers_settings(path: Path) -> None:
    """Sections 3.2 and 4.1 of arXiv 2606.18844; the SFT recipe that they name is completed with the same numbers."""
    need_source()
    cfg = describe_run.load_checked_run(path).cfg
    c = cfg.coldstart
    assert (c.queries, c.corrections_per_query, c.sft_examples, c.ift_examples) == (None, 1, 30_000, 15_000)
    assert (c.epochs, c.optimizer.lr, c.optimizer.warmup_steps, c.optimizer.schedule) == (3, 5e-6, 50, "cosine")
    assert path.stem in str(cfg.output) and c.writer == "model"
    assert c.sft_recipe is not None and c.sft_recipe.name in {p.name for p in SFT}
    theirs = compose_config(ROOT / c.sft_recipe)
    done = complete_recipe(cfg, cfg.output, 45_000, c.max_length or 0)
    optimizer, scheduler = (done["policy"]["megatron_cfg"][name] for name in ("optimizer", "scheduler"))
    assert (optimizer["lr"], scheduler["lr_decay_style"]) == (5e-6, "cosine")
    # 50 updates: Megatron counts those done, and the first one has lr / 50
    assert (scheduler["lr_warmup_iters"], scheduler["lr_warmup_init"]) == (49, pytest.approx(1e-7))
    assert done["sft"]["max_num_steps"] == theirs["sft"]["max_num_steps"] == 3 * (45_000 // 64)
    assert theirs["policy"]["megatron_cfg"]["scheduler"] == pytest.approx(scheduler)
    assert Path(theirs["data"]["train"]["data_path"]).absolute() == Path(done["data"]["train"]["data_path"])


def test_32b_on_one_node_is_refused_with_the_class_that_breaks_it() -> None:
    need_source()
    recipe = CONFIGS / "tapo-qwen3-32b-8n8g-megatron-tp8.yaml"
    with pytest.raises(ValueError, match="the largest part is optimizer"):
        describe_run.load_checked_run(recipe, ["cluster.num_nodes=1"])
