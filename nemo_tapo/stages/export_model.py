"""Take a finished run's model away: weights, tokenizer, chat template and a model card, checked tensor by tensor."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml

from nemo_tapo.checkpoint import find_fault, remove_on_failure
from nemo_tapo.report.model_card import BaseModel, make_model_card
from nemo_tapo.stages.session import MODEL_FOLDER
from nemo_tapo.utils.files import make_building_folder, publish_folder, write_json
from nemo_tapo.utils.run_folder import CONFIG, lock_folder

CARD, MODEL_CONFIG = "README.md", "config.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def export_model(run: Path, target: Path, base: str | None = None, licence: str | None = None) -> str:
    """Write the model of the finished `run` into the new folder `target`; return a sentence on what is in it.

    `base` and `licence` name the base model in the card where the run's own records do not. Raises ValueError if the
    run is not finished or damaged, or if `target` has something in it; DiskFull if there is no room. `target` appears
    when every tensor was read back and compared.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is there already: choose another folder for the model.")
    if not run.is_dir():
        raise ValueError(f"no run folder {run}")
    with lock_folder(run) if os.access(run, os.W_OK) else nullcontext():
        config = _read_config(run)
        source = _find_model(run)
        parameters = check_model(source, run)
        building = make_building_folder(target)
        with remove_on_failure(building, target):
            for file in sorted(source.iterdir()):
                if file.is_file() and file.name != CARD:
                    shutil.copyfile(file, building / file.name)
            _set_dtype(building)
            card = make_model_card(target.name, run, config, _find_base(config, source, base, licence), parameters)
            (building / CARD).write_text(card, encoding="utf-8")
            compare_models(source, building)
            publish_folder(target, building)
    size = sum(file.stat().st_size for file in target.iterdir()) / 2**20
    return f"{target}: {parameters:,} parameters, {size:,.1f} MiB, model card in {target / CARD}."


def check_model(model: Path, run: Path) -> int:
    """Return the number of parameters of a run's model after a check of its files and of every tensor.

    Raises ValueError, with a sentence, if a file is missing or damaged, a value is not finite, or the weights are not
    those of the run's last checkpoint (where that is in this package's own layout).
    """
    again = "The same command as before writes it again from the last checkpoint."
    for names in ((MODEL_CONFIG,), TOKENIZERS, ("tokenizer_config.json",)):
        if not any((model / name).is_file() for name in names):
            raise ValueError(f"{model} is incomplete: it has no {' or '.join(names)}. {again}")
    tokenizer = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    if "chat_template" not in tokenizer and not any((model / name).is_file() for name in TEMPLATES):
        raise ValueError(f"{model} is incomplete: its tokenizer has no chat template. {again}")
    with _open_weights(model) as weights:
        for name in weights:
            if not torch.isfinite(weights[name]).all():
                raise ValueError(f"{model} is damaged: '{name}' has values that are not finite. {again}")
        parameters = sum(weights[name].numel() for name in weights)
    checkpoint = max((run / "checkpoints").glob("step-*"), default=None)
    if checkpoint is None:
        return parameters
    fault = find_fault(checkpoint)
    if fault is not None:
        raise ValueError(f"the run's last checkpoint {checkpoint} is damaged ({fault}): its model cannot be checked.")
    if (checkpoint / "model.safetensors").is_file():
        try:
            compare_models(checkpoint, model)
        except ValueError as error:
            raise ValueError(f"{error} {again}") from None
    return parameters


def compare_models(expected: Path, given: Path) -> None:
    """Raise ValueError, which names the first difference, unless both folders hold the same tensors, bit for bit."""
    with _open_weights(expected) as one, _open_weights(given) as other:
        for name in sorted(set(one) ^ set(other)):
            raise ValueError(f"{given} differs from {expected}: '{name}' is in one of them only.")
        for name in one:
            a, b = one[name], other[name]
            if a.dtype != b.dtype or a.shape != b.shape or not torch.equal(a, b):
                raise ValueError(f"{given} differs from {expected} in '{name}'.")


class _Weights:
    """The tensors of a folder's safetensors files, read one at a time."""

    def __init__(self, handles: dict[str, Any]) -> None:
        self._handles = handles

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._handles[name].get_tensor(name)
        return tensor


@contextmanager
def _open_weights(folder: Path) -> Iterator[_Weights]:
    from safetensors import SafetensorError, safe_open

    files = [f for f in sorted(folder.glob("*.safetensors")) if f.name != "optimizer.safetensors"]
    if not files:
        raise ValueError(f"{folder} is incomplete: it has no *.safetensors.")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        for name in sorted(named - {file.name for file in files}):
            raise ValueError(f"{folder} is incomplete: {index.name} names {name}, which is not there.")
    handles: dict[str, Any] = {}
    for file in files:
        try:
            handle = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged: {error}.") from None
        names: list[str] = handle.keys()  # type: ignore[no-untyped-call]
        handles |= dict.fromkeys(names, handle)
    yield _Weights(handles)


def _find_model(run: Path) -> Path:
    if (run / MODEL_FOLDER).is_dir():
        return run / MODEL_FOLDER
    steps = sorted((run / "checkpoints").glob("step-*"))
    if steps:
        raise ValueError(
            f"{run} is not at its end: it has checkpoints up to {steps[-1].name} and no model yet. The same command "
            "as before goes on from there."
        )
    raise ValueError(f"{run} has no {MODEL_FOLDER}/: nothing was trained there.")


def _read_config(run: Path) -> dict[str, Any]:
    """Return the run's settings; of a NeMo-RL configuration, this package's part."""
    file = run / CONFIG
    if not file.is_file():
        raise ValueError(f"{run} is no folder of a run: it has no {CONFIG}.")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} is damaged: it holds no settings.")
    if "tapo" in values and "policy" in values:  # NeMo-RL's keys are beside ours
        model = {"path": values["policy"].get("model_name", "")}
        return {"algorithm": "tapo", **values["tapo"], "model": model, "grpo": values.get("grpo")}
    return values


def _find_base(config: dict[str, Any], model: Path, name: str | None, licence: str | None) -> BaseModel:
    path = str((config.get("model") or {}).get("path", "unknown"))
    shown = name or (Path(path).name if Path(path).exists() or Path(path).is_absolute() else path)
    return BaseModel(shown, licence or _read_licence(model / CARD))


def _read_licence(card: Path) -> str | None:
    """Return the licence in the front matter of the base model's own card, which travels with its files."""
    if not card.is_file():
        return None
    parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    try:
        head = yaml.safe_load(parts[1]) if len(parts) == 3 else None
    except yaml.YAMLError:
        return None
    return str(head["license"]) if isinstance(head, dict) and head.get("license") else None


def _set_dtype(folder: Path) -> None:
    """Let config.json name the type in which the weights are stored: loaders would round them to another one."""
    with _open_weights(folder) as weights:
        kinds = {str(weights[name].dtype).removeprefix("torch.") for name in weights}
    file = folder / MODEL_CONFIG
    config = json.loads(file.read_text(encoding="utf-8"))
    if len(kinds) == 1:
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        write_json(file, config | {key: kinds.pop()})
