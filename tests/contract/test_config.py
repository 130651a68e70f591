"""NeMo-RL's config files as this package composes and checks them, against NeMo-RL's own loader and classes."""

from __future__ import annotations

import ast
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_tapo.runtime.nemo_rl.config import cluster_run, describe_run, validate
from nemo_tapo.runtime.nemo_rl.config.checkout import compose_config
from nemo_tapo.runtime.nemo_rl.config.key_fates import get_fate, list_leaves
from nemo_tapo.runtime.nemo_rl.config.known_keys import find_unknown_paths, list_paths, read_known_keys
from nemo_tapo.runtime.nemo_rl.runtime import prepare_master_config
from tests.helpers.cluster_files import cluster_file

pytestmark = pytest.mark.nemo_rl

SOURCE = Path(os.environ.get("NEMO_RL_SRC", "/nowhere"))
THEIRS = sorted((SOURCE / "examples").rglob("*.yaml"))
CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
RECIPES = sorted(
    p for p in CONFIGS.glob("*-megatron*.yaml") if not p.stem.startswith("sft-")
)  # these: test_sft_data.py


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


# ---- what NeMo-RL's trainer does with its keys, and this loop in its place -------------------------------------------

# Keys that `grpo_train` reads and that are not refused: who reads them here, or why nobody has to.
SERVED = {
    "checkpointing.checkpoint_must_save_by", "checkpointing.metric_name", "checkpointing.save_period",
    "cluster.gpus_per_node", "cluster.num_nodes", "grpo.async_grpo.enabled", "grpo.max_num_steps",
    "grpo.num_generations_per_prompt", "grpo.num_prompts_per_step", "grpo.overlong_filtering",
    "grpo.use_dynamic_sampling",
    "grpo.skip_reference_policy_logprobs_calculation", "loss_fn.force_on_policy_ratio",
    "policy.generation.colocated.enabled", "policy.generation.vllm_cfg.async_engine",
    "policy.make_sequence_length_divisible_by", "policy.max_total_sequence_length", "policy.refit_buffer_size_gb",
}  # fmt: skip
NOTED = {"grpo.max_num_epochs", "grpo.use_leave_one_out_baseline", "grpo.val_period"}
WITHOUT_EFFECT = {
    "grpo.calculate_advantages_on_gpu", "grpo.debug_payload_metrics",  # how it computes and what it prints
    "grpo.stop_at_validation_threshold", "grpo.val_at_end", "grpo.val_at_start", "grpo.val_start_at",  # see val_period
    "logger.wandb", "logger.wandb_enabled",  # its Logger reads them itself
    "policy.generation.vllm_cfg.enable_vllm_metrics_logger",  # graphs of the engine
    "policy.generation.vllm_cfg.vllm_metrics_logger_interval",
}  # fmt: skip


def keys_read_by(function: str) -> set[str]:
    """The dotted keys below `master_config` that a function of grpo.py reads, by attribute, index or `.get`."""
    module = ast.parse((SOURCE / "nemo_rl" / "algorithms" / "grpo.py").read_text())
    (body,) = (node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == function)
    paths = {path for node in ast.walk(body) if (path := dotted(node)) and path[0] == "master_config"}
    return {".".join(path[1:]) for path in paths if len(path) > 2 and path[-1] != "get"}


def dotted(node: ast.AST) -> tuple[str, ...] | None:
    match node:
        case ast.Name(id=name):
            return (name,)
        case ast.Attribute(value=owner, attr=name):
            pass
        case ast.Subscript(value=owner, slice=ast.Constant(value=str(name))):
            pass
        case ast.Call(func=ast.Attribute(value=owner, attr="get"), args=[ast.Constant(value=str(name)), *_]):
            pass
        case _:
            return None
    inner = dotted(owner)
    return None if inner is None else (*inner, name)


def test_each_key_of_nemo_rls_trainer_is_served_refused_or_known_to_have_no_effect() -> None:
    """This loop stands in the trainer's place: a key that only the trainer reads would do nothing, without a word."""
    read = keys_read_by("grpo_train")
    sections = {path.rpartition(".")[0] for path in read}
    leaves = {path for path in read if path not in sections}
    refused = {path for path in leaves if any(path == p or path.startswith(p + ".") or p.startswith(path + ".")
                                              for p in validate.CHECKED_PATHS)}  # fmt: skip
    assert len(leaves) > 25
    assert leaves - refused - SERVED - NOTED - WITHOUT_EFFECT == set()


def test_what_becomes_of_every_key_of_nemo_rls_files_is_known() -> None:
    """The keys of its exemplar files and recipes as they are written, and those that its trainer reads."""
    keys = {path for path in keys_read_by("grpo_train") if path.count(".") > 0}
    sections = {path.rpartition(".")[0] for path in keys}
    leaves = keys - sections
    files = 0
    for path in THEIRS:
        values = yaml.safe_load(path.read_text())
        if isinstance(values, dict) and "grpo" in values:
            leaves |= set(list_leaves({k: v for k, v in values.items() if k != "defaults"}))
            files += 1
    assert files > 80 and len(leaves) > 300
    assert [leaf for leaf in sorted(leaves) if get_fate(leaf) is None] == []


def test_the_multiple_of_a_sequence_is_what_nemo_rl_asks_for(tmp_path: Path) -> None:
    """Its own function, with every multiple up to 32, against what `plan` refuses."""
    data = ast.parse((SOURCE / "nemo_rl" / "models" / "megatron" / "data.py").read_text())
    (function,) = (n for n in data.body if getattr(n, "name", "") == "_get_pack_sequence_parameters_for_megatron")
    space: dict[str, Any] = {}
    exec(compile(ast.Module([function], []), "data.py", "exec"), space)  # the module itself needs Megatron-Bridge
    theirs = space[function.name]
    for tp, cp, sequence_parallel in ((2, 1, True), (2, 2, True), (2, 2, False), (1, 4, False), (4, 2, True)):
        ranks = {"tensor_model_parallel_size": tp, "context_parallel_size": cp, "sequence_parallel": sequence_parallel}
        for multiple in range(1, 33):
            asked = [f"policy.megatron_cfg.{name}={str(value).lower()}" for name, value in ranks.items()]
            asked += [f"policy.make_sequence_length_divisible_by={multiple}", "cluster.num_nodes=2"]
            asked += [f"policy.sequence_packing.{kind}_mb_tokens=10304" for kind in ("train", "logprob")]  # room enough
            assert is_refused(tmp_path, asked) is raises(theirs, ranks | {"pipeline_model_parallel_size": 1}, multiple)


def is_refused(folder: Path, overrides: list[str]) -> bool:
    try:
        cluster_run.load_cluster_run(cluster_file(folder), overrides)
    except ValueError as error:
        told = str(error)
    else:
        return False
    assert "make_sequence_length_divisible_by" in told and len(told.splitlines()) == 1
    return True


def raises(function: Any, ranks: dict[str, Any], multiple: int) -> bool:
    try:
        function(ranks, multiple, 512)
    except AssertionError:
        return True
    return False


def test_what_turns_asynchronous_checkpoints_on_is_turned_off() -> None:
    """The keys that a release forwards to Megatron's writer are among those that are set to false."""
    recipe = CONFIGS / "tapo-qwen3-8b-1n8g-megatron.yaml"
    run = describe_run.load_checked_run(recipe)
    master = prepare_master_config(run.master, run.cfg, "train")
    given = (run.master["policy"]["megatron_cfg"].get("checkpoint") or {}).items()
    left = (master["policy"]["megatron_cfg"].get("checkpoint") or {}).values()
    assert not any(left) and all(f"{key} is set to false" in "\n".join(run.notes) for key, value in given if value)
    setup = (SOURCE / "nemo_rl" / "models" / "megatron" / "setup.py").read_text()
    assert '"async_save",' in setup if given else "async_save=False," in setup


def test_nemo_rls_engine_takes_no_seed_with_a_request() -> None:
    """Once it does, the generator's `seed` can be used, and the plan's note on seeds is no longer true."""
    worker = ast.parse((SOURCE / "nemo_rl" / "models" / "generation" / "vllm" / "vllm_worker.py").read_text())
    calls = [n for n in ast.walk(worker) if isinstance(n, ast.Call) and ast.unparse(n.func) == "self.SamplingParams"]
    assert calls and all("seed" not in {keyword.arg for keyword in call.keywords} for call in calls)


def test_the_mode_of_log_probabilities_is_set_where_a_release_leaves_it_open() -> None:
    worker = (SOURCE / "nemo_rl" / "models" / "generation" / "vllm" / "vllm_worker.py").read_text()
    assert 'logprobs_mode="processed_logprobs"' in worker or 'self.cfg["vllm_cfg"].get("logprobs_mode")' in worker
