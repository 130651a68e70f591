"""Find the model that a path means: a Hugging Face directory, a finished run, or a checkpoint of a run.

assets/tiny-base                        the directory itself
runs/demo                               runs/demo/hf
runs/demo/checkpoints/step-000050       its weights, with the configuration and the tokenizer of the run's model
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import yaml

from nemo_tapo.checkpoint import MANIFEST, find_fault
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.evaluation.sample_store import get_evaluation_folder
from nemo_tapo.utils.files import sha256

HF, CHECKPOINTS, INITIAL, WEIGHTS = "hf", "checkpoints", "initial", "model.safetensors"
ASSEMBLED = "model"  # subfolder of the evaluation's folder: the directory assembled from a checkpoint


def make_evaluation_name(path: Path) -> str:
    """Return the name of an evaluation of the model at `path`.

    >>> make_evaluation_name(Path("runs/demo/hf"))
    'demo'
    >>> make_evaluation_name(Path("runs/demo/coldstart/hf")), make_evaluation_name(Path("assets/tiny-base"))
    ('demo-coldstart', 'tiny-base')
    >>> make_evaluation_name(Path("runs/demo/checkpoints/step-000050"))
    'demo-step-000050'
    """
    path = path.resolve()
    if is_checkpoint(path):
        return f"{make_evaluation_name(path.parent.parent)}-{path.name}"
    if path.name == HF:
        path = path.parent
    return f"{path.parent.name}-{path.name}" if path.name == "coldstart" else path.name


def is_checkpoint(path: Path) -> bool:
    """Return whether `path` names a checkpoint of a run, by its parent folder or by its manifest."""
    return path.resolve().parent.name == CHECKPOINTS or (path / MANIFEST).is_file()


def locate_model(path: Path, workspace: Path) -> Path:
    """Return the Hugging Face directory of the model that `path` names.

    For a checkpoint, the directory is assembled in `workspace`. Any path other than a run or a checkpoint is
    returned unchanged. Raises ValueError for a run without a result, for a damaged checkpoint, and for a checkpoint
    whose model's configuration cannot be found.
    """
    if is_checkpoint(path):
        return assemble_model(path, workspace)
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


def assemble_model(checkpoint: Path, folder: Path) -> Path:
    """Make a Hugging Face directory of a checkpoint in `folder`: copies of the small files, and a link to the weights.

    Replaces `folder` if it exists. Raises ValueError as `locate_model` does.
    """
    fault = "it is not there" if not checkpoint.is_dir() else find_fault(checkpoint)
    if fault is None and not (checkpoint / WEIGHTS).is_file():
        fault = f"{WEIGHTS} is missing; other layouts have to be converted to a Hugging Face directory first"
    if fault:
        raise ValueError(f"checkpoint {checkpoint}: {fault}.")
    base = find_model_of_run(checkpoint)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in sorted(base.iterdir()):
        if file.is_file() and file.suffix in (".json", ".jinja", ".txt", ".model") and "safetensors" not in file.name:
            shutil.copyfile(file, folder / file.name)
    (folder / WEIGHTS).symlink_to((checkpoint / WEIGHTS).resolve())
    return folder


def find_model_of_run(checkpoint: Path) -> Path:
    """Return the directory with the configuration and the tokenizer of a checkpoint's run; training changes neither.

    Raises ValueError if it is in none of the usual places.
    """
    stage = checkpoint.resolve().parent.parent
    named = [_read_model_path(folder / "config.yaml") for folder in (stage, stage.parent)]
    candidates = [stage / HF, stage / INITIAL, *(path for path in named if path is not None)]
    for path in candidates:
        if (path / "config.json").is_file():
            return path
    raise ValueError(
        f"checkpoint {checkpoint} has weights alone, and the model it was started from is none of "
        f"{', '.join(map(str, candidates))}: bring it to one of these places."
    )


def _read_model_path(config: Path) -> Path | None:
    """Read model.path from a run's config.yaml; None if there is no such file."""
    if not config.is_file():
        return None
    raw = yaml.safe_load(config.read_text(encoding="utf-8"))
    return Path(raw["model"]["path"])


def hash_weights(folder: Path) -> str:
    """Return the SHA-256 over all weight files of a Hugging Face directory.

    Takes about a second per gigabyte. Raises ValueError if there is no weight file.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"model.path: no *.safetensors in '{folder}'.")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {sha256(file)}\n".encode())
    return digest.hexdigest()


def get_model_identity(model: Path) -> dict[str, str]:
    """Return what identifies a model's weights: their digest, or the model's name if it is not on this disk.

    >>> get_model_identity(Path("Qwen/Qwen3-8B"))
    {'name': 'Qwen/Qwen3-8B'}
    """
    return {"weights": hash_weights(model)} if model.is_dir() else {"name": str(model)}


def resolve_model_path(cfg: RunConfig) -> RunConfig:
    """Return `cfg` with model.path replaced by the Hugging Face directory that it means.

    For a checkpoint, that directory is made beside the samples of its evaluation. Raises ValueError as `locate_model`.
    """
    model = cfg.model.model_copy(update={"path": locate_model(cfg.model.path, get_workspace(cfg))})
    return cfg.model_copy(update={"model": model})


def get_workspace(cfg: RunConfig) -> Path:
    """Return the folder for a directory assembled from a checkpoint, beside the samples of its evaluation."""
    return get_evaluation_folder(cfg.output, make_evaluation_name(cfg.model.path)) / ASSEMBLED
