"""What the NeMo-RL runtime makes of a configuration before anything is started, and how it exports."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import re
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from nemo_tapo.config.run_config import RunConfig, rl_fingerprint, validate
from nemo_tapo.runtime.nemo_rl import hf_export
from nemo_tapo.runtime.nemo_rl.actor import BatchShape, make_update_result, pad_batch, reorder_rows
from nemo_tapo.runtime.nemo_rl.checkpoint_manager import seal
from nemo_tapo.runtime.nemo_rl.hf_export import HFConverter
from nemo_tapo.runtime.nemo_rl.runtime import (
    NemoRLRuntime,
    PlaceholderDataset,
    keeps_reference,
    make_policy,
    prepare_master_config,
)
from nemo_tapo.types import Batch, Kind, Row
from nemo_tapo.utils.errors import RuntimeFailure, Stopped
from nemo_tapo.utils.signals import Stop

MASTER: dict[str, Any] = {
    "policy": {"generation": {"temperature": 1.0, "top_p": 1.0, "top_k": None, "max_new_tokens": 999}},
    "grpo": {"val_period": 10, "val_at_start": True, "val_at_end": True, "num_prompts_per_step": 32},
    "data": {"shuffle": True, "num_workers": 4, "use_multiple_dataloader": False},
}


def settings(**changes: Any) -> RunConfig:
    return validate({"rollout": {"max_tokens": 300}, "tapo": {"max_tokens": 800}, **changes})


def test_the_engine_samples_as_the_command_wants_it_and_the_callers_master_stays() -> None:
    before = copy.deepcopy(MASTER)
    train = prepare_master_config(MASTER, settings(), "train")["policy"]["generation"]
    assert (train["temperature"], train["top_p"], train["max_new_tokens"]) == (1.0, 1.0, 800)
    grpo = prepare_master_config(MASTER, settings(algorithm="grpo"), "train")["policy"]["generation"]
    assert grpo["max_new_tokens"] == 300
    cfg = settings(evaluation={"temperature": 0.6, "top_p": 0.9, "max_tokens": 500})
    evaluate = prepare_master_config(MASTER, cfg, "evaluate")["policy"]["generation"]
    assert (evaluate["temperature"], evaluate["top_p"], evaluate["max_new_tokens"]) == (0.6, 0.9, 500)
    assert (evaluate["val_temperature"], evaluate["val_top_p"]) == (0.6, 0.9)  # main's setup wants them alike
    assert before == MASTER


def test_an_evaluation_measures_no_synthesis_which_has_another_temperature() -> None:
    with pytest.raises(ValueError, match="synthesis_queries = 8: NeMo-RL's engine samples all with the evaluat"):
        prepare_master_config(MASTER, settings(evaluation={"synthesis_queries": 8}), "evaluate")


def test_an_evaluation_takes_the_model_and_not_the_newest_checkpoint_of_a_run() -> None:
    master = {**MASTER, "checkpointing": {"checkpoint_dir": "results/run"}}
    assert prepare_master_config(master, settings(), "train")["checkpointing"]["checkpoint_dir"] == "results/run"
    evaluate = prepare_master_config(master, settings(output="runs/x"), "evaluate")
    assert evaluate["checkpointing"]["checkpoint_dir"] == "runs/x/evaluation/no-checkpoints"


def test_checkpoints_are_written_at_once_where_a_release_can_write_them_later() -> None:
    """NeMo-RL issues 3312 and 4183; the writer of DTensor v2 is waited for by nobody."""
    later = {"async_save": True, "ckpt_assume_constant_structure": True, "ckpt_fully_parallel_save_process_group": "dp"}
    megatron = {**MASTER, "policy": {**MASTER["policy"], "megatron_cfg": {"enabled": True, "checkpoint": later}}}
    assert prepare_master_config(megatron, settings(), "train")["policy"]["megatron_cfg"]["checkpoint"] == {
        "async_save": False, "ckpt_assume_constant_structure": False, "ckpt_fully_parallel_save_process_group": "dp",
    }  # fmt: skip
    assert later["async_save"]
    v070 = {**MASTER, "policy": {**MASTER["policy"], "megatron_cfg": {"enabled": True}}}
    assert prepare_master_config(v070, settings(), "train")["policy"]["megatron_cfg"] == {"enabled": True}
    dtensor = {**MASTER, "policy": {**MASTER["policy"], "dtensor_cfg": {"enabled": True}}}
    assert prepare_master_config(dtensor, settings(), "train")["checkpointing"]["is_async"] is False


def test_the_engines_log_probabilities_are_at_its_temperature() -> None:
    """vLLM's default is another; v0.7.0 sets it, main takes it from the configuration."""
    engine = prepare_master_config(MASTER, settings(), "train")["policy"]["generation"]["vllm_cfg"]
    assert engine == {"logprobs_mode": "processed_logprobs"}


def test_nemo_rls_own_validation_is_off() -> None:
    grpo = prepare_master_config(MASTER, settings(), "train")["grpo"]
    assert (grpo["val_period"], grpo["val_at_start"], grpo["val_at_end"]) == (0, False, False)


def test_a_cold_start_samples_as_rl_does_and_from_the_model_that_is_named() -> None:
    master = {**MASTER, "checkpointing": {"checkpoint_dir": "results/run"}}
    one = {"output": "runs/x", "coldstart": {"writer": "model"}}
    own = prepare_master_config(master, settings(**one), "coldstart")
    assert own["policy"]["generation"]["max_new_tokens"] == 800  # of a synthesis
    assert own["checkpointing"]["checkpoint_dir"] == "runs/x/evaluation/no-checkpoints"
    with pytest.raises(ValueError, match=r"tapo\.temperature = 0\.7"):
        prepare_master_config(master, settings(**one, tapo={"temperature": 0.7}), "coldstart")
    served = settings(coldstart={"writer": "endpoint"}, tapo={"temperature": 0.7, "max_tokens": 800})
    assert prepare_master_config(master, served, "coldstart")["policy"]["generation"]["max_new_tokens"] == 300


@pytest.mark.parametrize("command", ["run", "pretrain"])
def test_commands_with_two_optimizers_are_refused(command: str) -> None:
    with pytest.raises(ValueError, match=f"`nemo-tapo {command}` does not run on NeMo-RL"):
        prepare_master_config(MASTER, settings(), command)


def test_two_temperatures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tapo\.temperature = 0\.7 .* at one temperature"):
        prepare_master_config(MASTER, settings(tapo={"temperature": 0.7}), "train")


def test_a_reference_is_kept_for_a_report_too() -> None:
    given: dict[str, Any] = {}
    make_policy(lambda **keywords: given.update(keywords), keeps_reference(settings()), init_reference_model=False)
    assert given == {"init_reference_model": True}  # loss.kl_rows is 64 by default
    assert not keeps_reference(settings(loss={"kl_rows": 0}))
    assert not keeps_reference(settings(algorithm="reflective_sft"))  # it has no rows of which a KL is told


def test_the_stand_in_has_as_many_steps_as_the_run() -> None:
    data = PlaceholderDataset(32 * 500)
    assert len(data) // 32 == 500 and data[7] == 7


def test_filling_up_keeps_the_rows_and_adds_rows_that_no_loss_sees() -> None:
    from nemo_tapo.batch import collate

    shape = BatchShape(train_rows=8, row_multiple=4, width_multiple=8, data_parallel=2, pad_id=9, temperature=1.0)
    rows = [Row(f"q/{i}", "q", Kind.ORIGINAL, (1, 2, 3), (4,) * (i + 1), 1.0, 0.5, (-0.1,) * (i + 1)) for i in range(3)]
    batch = collate(rows, pad_id=9)
    whole = pad_batch(batch, 8, shape)
    assert whole.input_ids.shape == (8, 8)  # six columns, to a multiple of eight
    for name, value in whole.as_dict().items():
        mine = batch.as_dict()[name]
        kept = value[:3, : mine.shape[1]] if value.ndim == 2 else value[:3]
        assert kept.equal(mine), name
        assert value.dtype == mine.dtype, name
    added = whole.select(list(range(3, 8)))
    assert (added.input_ids == 9).all() and added.input_lengths.tolist() == [2] * 5
    for zero in (added.token_mask, added.sample_mask, added.loss_coef, added.advantages, added.constructed):
        assert not zero.any()
    assert isinstance(whole, Batch) and whole.prev_logprobs is None


def test_another_order_keeps_the_width() -> None:
    """Megatron without packing takes the width that it is given: a multiple of TP it must stay."""
    from nemo_tapo.batch import collate

    shape = BatchShape(train_rows=4, row_multiple=4, width_multiple=8, data_parallel=2, pad_id=9, temperature=1.0)
    whole = pad_batch(collate([Row("q/0", "q", Kind.ORIGINAL, (1, 2), (3, 4, 5))], pad_id=9), 4, shape)
    turned = reorder_rows(whole, [3, 2, 1, 0])
    assert turned.input_ids.shape == (4, 8)
    for name, value in turned.as_dict().items():
        assert value.flip(0).equal(whole.as_dict()[name]), name


def test_an_update_that_nothing_is_reported_of() -> None:
    """DTensor's workers say nothing of micro-batches without a valid row."""
    idle = make_update_result({"loss": torch.zeros(1), "grad_norm": torch.zeros(1), "all_mb_metrics": {}})
    assert (idle.loss, idle.grad_norm, idle.metrics) == (0.0, 0.0, {})
    assert math.isnan(idle.learning_rate)


def test_what_experts_and_further_heads_report_is_among_the_metrics() -> None:
    found = make_update_result(
        {
            "loss": torch.zeros(1), "grad_norm": torch.zeros(1), "all_mb_metrics": {"loss": [0.5], "lr": [1e-6]},
            "moe_metrics": {"load_balancing_loss": torch.tensor(1.25), "z_loss": 0.5}, "mtp_metrics": {"loss_0": 2.0},
        }
    )  # fmt: skip
    assert found.metrics == {"loss": 0.5, "moe/load_balancing_loss": 1.25, "moe/z_loss": 0.5, "mtp/loss_0": 2.0}


def test_a_checkpoint_of_other_settings_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "step_1").mkdir()
    state = {"step": 1, "fingerprint": rl_fingerprint(settings(seed=7))}
    (tmp_path / "step_1" / "tapo.json").write_text(json.dumps(state))
    seal(tmp_path / "step_1")
    master = {**MASTER, "checkpointing": {"checkpoint_dir": str(tmp_path)}}
    with pytest.raises(ValueError, match=r"other settings \(seed: 7 -> 0\)"):
        asyncio.run(NemoRLRuntime.start(master, settings()))


def test_export_is_nemo_rls_converter_on_the_newest_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (9, 10):
        (tmp_path / f"step_{step}").mkdir()
        (tmp_path / f"step_{step}" / "tapo.json").write_text(json.dumps({"step": step}))
    source = tmp_path / "nemo"
    (source / "examples" / "configs").mkdir(parents=True)
    monkeypatch.setenv("NEMO_RL_SRC", str(source))
    convert = HFConverter(tmp_path, {"megatron_cfg": {"enabled": True}, "model_name": str(tmp_path / "old")})
    command = convert.command(tmp_path / "hf")
    assert command[1:] == [
        str(source / "examples/converters/convert_megatron_to_hf.py"),
        "--config", str(tmp_path / "step_10/config.yaml"),
        "--megatron-ckpt-path", str(tmp_path / "step_10/policy/weights/iter_0000000"),
        "--hf-ckpt-path", str(tmp_path / "hf"),
    ]  # fmt: skip
    with pytest.raises(RuntimeFailure, match=r"checkpoint saved, but NeMo-RL's converter failed .*By hand: "):
        convert(tmp_path / "hf")  # the script is not there
    dtensor = HFConverter(tmp_path, {"dtensor_cfg": {"enabled": True}}).command(tmp_path / "hf")
    assert dtensor[1].endswith("convert_dcp_to_hf.py") and "--dcp-ckpt-path" in dtensor


CONVERTER = """
import pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--hf-ckpt-path") + 1])
assert not out.exists(), "it refuses a folder that exists"
out.mkdir()
(out / "begun").touch()
ACTION
"""
MODEL = Path(__file__).parents[2] / "assets" / "tiny-coldstart"
COPY = f"import shutil; shutil.copytree({str(MODEL)!r}, out, dirs_exist_ok=True)"
LOSE = """
from safetensors.torch import load_file, save_file
file = out / "model.safetensors"
kept = {name: t for name, t in load_file(file).items() if "layers.1." not in name}
file.unlink()
save_file(kept, file)
"""


def converter(folder: Path, monkeypatch: pytest.MonkeyPatch, action: str, **options: Any) -> HFConverter:
    """A run of one checkpoint, whose converter is a script that does `action`."""
    step = folder / "checkpoints" / "step_1"
    step.mkdir(parents=True)
    (step / "tapo.json").write_text('{"step": 1}')
    scripts = folder / "nemo" / "examples" / "converters"
    scripts.mkdir(parents=True)
    (folder / "nemo" / "examples" / "configs").mkdir()
    (scripts / "convert_megatron_to_hf.py").write_text(CONVERTER.replace("ACTION", action))
    monkeypatch.setenv("NEMO_RL_SRC", str(folder / "nemo"))
    policy = {"megatron_cfg": {"enabled": True}, "model_name": str(MODEL), "precision": "float32"}
    return HFConverter(folder / "checkpoints", policy, **options)


def test_an_export_that_was_interrupted_does_not_block_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = converter(tmp_path, monkeypatch, COPY)
    (tmp_path / "tmp-hf").mkdir()
    (tmp_path / "tmp-hf" / "half").write_text("x")
    convert(tmp_path / "tmp-hf")
    assert (tmp_path / "tmp-hf" / "model.safetensors").is_file() and not (tmp_path / "tmp-hf" / "half").exists()


def test_an_export_without_a_layer_is_a_failure_though_the_converter_ended_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = converter(tmp_path, monkeypatch, COPY + LOSE)
    with pytest.raises(RuntimeFailure, match=r"is not the trained one's \(layers without any tensor: 1\)\. By hand: "):
        convert(tmp_path / "tmp-hf")


@pytest.mark.timeout(60)
def test_an_export_that_hangs_ends_and_so_do_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = "import subprocess\n(out / 'pid').write_text(str(subprocess.Popen(['sleep', '600']).pid))\n"
    convert = converter(tmp_path, monkeypatch, child + "time.sleep(600)", timeout=900.0)
    pid = tmp_path / "tmp-hf" / "pid"
    clock = SimpleNamespace(sleep=time.sleep, monotonic=lambda: 1000.0 if pid.is_file() and pid.read_text() else 0.0)
    monkeypatch.setattr(hf_export, "time", clock)
    with pytest.raises(RuntimeFailure, match=r"converter did not end within 900 seconds \(tapo\.call_timeout\)"):
        convert(tmp_path / "tmp-hf")
    gone = int(pid.read_text())
    deadline = time.monotonic() + 20
    while psutil.pid_exists(gone) and psutil.Process(gone).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.timeout(60)
def test_a_stop_ends_an_export_and_the_next_job_makes_it_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Stop()
    convert = converter(tmp_path, monkeypatch, "time.sleep(600)", check_stop=stop.check)
    timer = threading.Timer(1.0, stop.request, [signal.SIGUSR1])
    timer.start()
    with pytest.raises(Stopped, match="stopped by SIGUSR1; training is done and its checkpoint saved"):
        convert(tmp_path / "tmp-hf")
    timer.join()
    (tmp_path / "nemo" / "examples" / "converters" / "convert_megatron_to_hf.py").write_text(
        CONVERTER.replace("ACTION", COPY)
    )
    HFConverter(convert.checkpoints, convert.policy)(tmp_path / "tmp-hf")
    assert (tmp_path / "tmp-hf" / "config.json").is_file()


def test_one_module_alone_imports_nemo_rl() -> None:
    package = Path(__file__).parents[2] / "nemo_tapo"
    imports = re.compile(r"^\s*(from|import) nemo_rl\b|import_module\(.nemo_rl", re.MULTILINE)
    found = [path.relative_to(package).as_posix() for path in package.rglob("*.py") if imports.search(path.read_text())]
    assert found == ["runtime/nemo_rl/compat.py"]
