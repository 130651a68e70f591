"""NeMo-RL's config files as this package composes and checks them, against NeMo-RL's own loader and classes."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.runtime.nemo_rl.config import cluster_run, describe_run
from nemo_tapo.runtime.nemo_rl.config.checkout import compose_config
from nemo_tapo.runtime.nemo_rl.config.known_keys import find_unknown_paths, list_paths, read_known_keys

pytestmark = pytest.mark.nemo_rl

SOURCE = Path(os.environ.get("NEMO_RL_SRC", "/nowhere"))
THEIRS = sorted((SOURCE / "examples").rglob("*.yaml"))
CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
RECIPES = sorted(p for p in CONFIGS.glob("*qwen3*.yaml") if not p.stem.startswith("sft-"))  # these: test_sft_data.py


@pytest.fixture(autouse=True)
def variables_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/nowhere")  # some of NeMo-RL's files interpolate it


@cache
def composed(path: Path) -> dict[str, Any] | str:
    """The file, or why it cannot be resolved on its own."""
    try:
        return compose_config(path)
    except ValueError as error:
        return str(error)


def test_all_of_nemo_rls_files_compose_as_its_own_loader_composes_them() -> None:
    from nemo_rl.utils.config import load_config, register_omegaconf_resolvers
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register_omegaconf_resolvers()
    compared = 0
    for path in sorted((SOURCE / "examples" / "configs").rglob("*.yaml")):
        try:
            theirs = OmegaConf.to_container(load_config(path), resolve=True, throw_on_missing=True)
        except OmegaConfBaseException:
            continue  # it names what only a command line gives
        assert composed(path) == theirs, path
        compared += 1
    assert compared > 200


def test_none_of_nemo_rls_files_has_an_unknown_key() -> None:
    keys = read_known_keys(SOURCE)
    checked = 0
    for path in THEIRS:
        values = composed(path)
        if isinstance(values, dict) and "grpo" in values:
            assert list(find_unknown_paths(values, keys)) == [], path
            checked += 1
    assert checked > 150


def test_nemo_rls_classes_have_no_key_that_is_unknown_here() -> None:
    """The classes as pydantic and TypedDict see them, a few levels down, against what was read from their source."""
    from nemo_rl.algorithms.grpo import GRPOConfig, MasterConfig
    from nemo_rl.algorithms.loss.loss_functions import ClippedPGLossConfig
    from nemo_rl.models.policy import MegatronConfig, PolicyConfig

    known = set(list_paths(read_known_keys(SOURCE)))
    for prefix, section in (
        ("", MasterConfig),
        ("grpo.", GRPOConfig),
        ("loss_fn.", ClippedPGLossConfig),
        ("policy.", PolicyConfig),
        ("policy.megatron_cfg.", MegatronConfig),
    ):
        names = getattr(section, "model_fields", None) or section.__annotations__
        assert {f"{prefix}{name}" for name in names} <= known, prefix


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_pass_nemo_rls_own_validation(path: Path) -> None:
    from nemo_rl.algorithms.grpo import MasterConfig

    run = describe_run.load_checked_run(path)
    master = MasterConfig(**run.master)
    assert master.policy["train_global_batch_size"] == run.setup.update_rows
    assert master.model_dump()["tapo"]["n_pos"] == 2  # ours travels with it into the saved config.yaml


def test_every_misspelt_key_of_a_recipe_is_refused() -> None:
    """One key at a time loses its last letter; sections that take any key are left out."""
    master = compose_config(CONFIGS / "tapo-qwen3-8b-1n8g-megatron.yaml")
    keys = read_known_keys(SOURCE)
    told = 0
    for name, section in master.items():
        if name in ("tapo", "env") or not isinstance(section, dict):
            continue
        for key in section:
            if keys.sections[name].free or key[:-1] in keys.sections[name].sections:
                continue
            wrong = {name: {(k[:-1] if k == key else k): v for k, v in section.items()}}
            sentences = list(cluster_run.find_unknown_keys(wrong, SOURCE))
            assert len(sentences) == 1 and f"unknown key '{name}.{key[:-1]}'" in sentences[0]
            told += 1
    assert told > 60


def test_a_misspelling_names_the_key_that_was_meant() -> None:
    for override, meant in (
        ("+policy.megatron_cfg.tensor_parallel_size=2", "policy.megatron_cfg.tensor_model_parallel_size"),
        ("+grpo.num_prompt_per_step=2", "grpo.num_prompts_per_step"),
        ("+policy.generation.vllm_cfg.gpu_memory_utilisation=0.5", "policy.generation.vllm_cfg.gpu_memory_utilization"),
        ("+n_pos=2", "tapo.n_pos"),
    ):
        with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
            cluster_run.load_cluster_run(CONFIGS / "tapo-qwen3-8b-1n8g-megatron.yaml", [override])


@pytest.mark.parametrize("key", ["policy.megatron_cfg.use_fused_linear_logprobs", "policy.sequence_packing.fuse_loss"])
def test_a_loss_that_takes_no_logits_is_refused_whether_the_release_has_the_key_or_not(key: str) -> None:
    """v0.7.0 has the first under another name, which "did you mean" would recommend."""
    recipe = CONFIGS / "tapo-qwen3-8b-1n8g-megatron.yaml"
    with pytest.raises(ValueError, match="is not supported: the OTS weight needs the logits") as told:
        cluster_run.load_cluster_run(recipe, [f"+{key}=true"])
    assert "did you mean" not in str(told.value)
