"""Which model a path means: a Hugging Face directory, a finished run, or a checkpoint of a run.

assets/tiny-base                        itself
runs/demo                               runs/demo/hf
runs/demo/checkpoints/step-000050       its weights, with the configuration and tokenizer of the run's model
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from nemo_tapo.checkpoint import MANIFEST, find_fault
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.evaluation.sample_store import folder_of
from nemo_tapo.utils.files import sha256

if TYPE_CHECKING:
    pass

HF, CHECKPOINTS, INITIAL, WEIGHTS = "hf", "checkpoints", "initial", "model.safetensors"
ASSEMBLED = "model"  # of a checkpoint, within the evaluation's folder


def name_of(path: Path) -> str:
    """What an evaluation of `path` is called: "tiny-base", "demo", "demo-step-000050", "demo-coldstart"."""
    path = path.resolve()
    if is_checkpoint(path):
        return f"{name_of(path.parent.parent)}-{path.name}"
    if path.name == HF:
        path = path.parent
    return f"{path.parent.name}-{path.name}" if path.name == "coldstart" else path.name


def is_checkpoint(path: Path) -> bool:
    return path.resolve().parent.name == CHECKPOINTS or (path / MANIFEST).is_file()


def locate(path: Path, workspace: Path) -> Path:
    """The Hugging Face directory of what `path` names; one for a checkpoint is put together in `workspace`.

    Raises ValueError for a run without a result, a damaged checkpoint, and one whose model is not to be found. Other
    paths are returned as they are.
    """
    if is_checkpoint(path):
        return assemble(path, workspace)
    if (path / "config.json").is_file():
        return path
    if (path / HF).is_dir():
        return path / HF
    steps = sorted((path / CHECKPOINTS).glob("step-*"))
    if steps:
        raise ValueError(
            f"{path} has no {HF} yet, the run is not at its end; a checkpoint can be given, as {steps[-1]}."
        )
    return path


def assemble(checkpoint: Path, folder: Path) -> Path:
    """A Hugging Face directory of a checkpoint in `folder`: copies of the small files, a link to the weights."""
    fault = "it is not there" if not checkpoint.is_dir() else find_fault(checkpoint)
    if fault is None and not (checkpoint / WEIGHTS).is_file():
        fault = f"{WEIGHTS} is missing; other layouts have to be converted to a Hugging Face directory first"
    if fault:
        raise ValueError(f"checkpoint {checkpoint}: {fault}.")
    base = model_of_run(checkpoint)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in sorted(base.iterdir()):
        if file.is_file() and file.suffix in (".json", ".jinja", ".txt", ".model") and "safetensors" not in file.name:
            shutil.copyfile(file, folder / file.name)
    (folder / WEIGHTS).symlink_to((checkpoint / WEIGHTS).resolve())
    return folder


def model_of_run(checkpoint: Path) -> Path:
    """Where the configuration and the tokenizer of a checkpoint's run are: training leaves them as they were."""
    stage = checkpoint.resolve().parent.parent
    named = [_path_in(folder / "config.yaml") for folder in (stage, stage.parent)]
    candidates = [stage / HF, stage / INITIAL, *(path for path in named if path is not None)]
    for path in candidates:
        if (path / "config.json").is_file():
            return path
    raise ValueError(
        f"checkpoint {checkpoint} has weights alone, and the model it was started from is none of "
        f"{', '.join(map(str, candidates))}: bring it to one of these places."
    )


def _path_in(config: Path) -> Path | None:
    """model.path of a run's config.yaml."""
    if not config.is_file():
        return None
    raw = yaml.safe_load(config.read_text(encoding="utf-8"))
    return Path(raw["model"]["path"])


def weights_digest(folder: Path) -> str:
    """sha256 over every weight file of a Hugging Face directory. Reads them all: about a second a gigabyte."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"model.path: no *.safetensors in '{folder}'.")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {sha256(file)}\n".encode())
    return digest.hexdigest()


def identity(model: Path) -> dict[str, str]:
    """What tells a model's weights from others': a digest of them; of one that is not on this disk, its name."""
    return {"weights": weights_digest(model)} if model.is_dir() else {"name": str(model)}


def model_of(cfg: RunConfig) -> RunConfig:
    """`cfg` with the directory that its model.path means; one for a checkpoint is made beside its samples."""
    model = cfg.model.model_copy(update={"path": locate(cfg.model.path, workspace(cfg))})
    return cfg.model_copy(update={"model": model})


def workspace(cfg: RunConfig) -> Path:
    return folder_of(cfg.output, name_of(cfg.model.path)) / ASSEMBLED
