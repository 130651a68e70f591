"""Keep NeMo-RL's conversion of a model apart from that of every other content under the same name.

NeMo-RL converts the Hugging Face model to Megatron's format once, and finds the result again by the model's name or
path alone: a folder that was made anew would train the former weights, and jobs that start together would write into
each other's conversion. So each content has a folder of its own here, and one job at a time converts into it.

    <root>/<name>-<digest>/     what the workers get as NRL_MEGATRON_CHECKPOINT_DIR: NeMo-RL writes below it
    <root>/<name>-<digest>/complete
    <root>/<name>-<digest>.lock
    <output>/converted-from     the folder's name, for the resumption of the run

`root` is where NeMo-RL itself would convert to. All nodes have to see it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_tapo.utils.files import replace_text

VARIABLE = "NRL_MEGATRON_CHECKPOINT_DIR"
COMPLETE, RECORD = "complete", "converted-from"
WRITTEN_LAST = "run_config.yaml"  # by NeMo-RL, in iter_0000000/
WEIGHTS = ("*.safetensors", "*.bin")
LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
POLL = 2.0  # seconds between two attempts to get the lock


def choose_conversion(policy: Mapping[str, Any], output: Path, resumed: bool, has_reference: bool) -> Path | None:
    """Return the folder of the conversion that a run starts from; None where NeMo-RL converts nothing.

    `policy` is NeMo-RL's section of that name. A resumed run goes on with the conversion that it began with, even if
    the model has been made anew since: its reference model stays the same. Raises ValueError if it has a reference
    model and that conversion is gone, and if there is no such model.
    """
    if not (policy.get("megatron_cfg") or {}).get("enabled") or policy.get("pretrained_checkpoint"):
        return None
    root, record = find_root(), output / RECORD
    present = root / name_conversion(policy["model_name"], policy.get("hf_config_overrides") or {})
    if not resumed or not record.is_file():
        return present
    first = root / record.read_text(encoding="utf-8").strip()
    if first == present or is_complete(first):
        return first
    if has_reference:
        raise ValueError(
            f"policy.model_name = {policy['model_name']} has changed since this run began, and {first}, its conversion "
            "at that time, is gone: put the former model back, or start another run (tapo.output)."
        )
    return present


@contextmanager
def use_conversion(folder: Path | None, policy: Mapping[str, Any], status: Callable[[str], None]) -> Iterator[None]:
    """Let NeMo-RL's setup, called inside the block, convert to `folder` or find a complete conversion there.

    Only one process converts; the others wait for it. What one that was killed left is removed, and so is a complete
    conversion with policy.megatron_cfg.force_reconvert_from_hf. Raises ValueError if `folder` cannot be made.
    """
    if folder is None:
        yield
        return
    anew = bool((policy.get("megatron_cfg") or {}).get("force_reconvert_from_hf"))
    with _set_variable(VARIABLE, str(folder)):
        if not anew and is_complete(folder):
            yield
            return
        with _lock(folder, status):
            if anew or not is_complete(folder):
                shutil.rmtree(folder, ignore_errors=True)
                status(f"starting NeMo-RL; it converts the model to {folder}")
                yield
                if any(folder.rglob(WRITTEN_LAST)):
                    (folder / COMPLETE).touch()
                return
        yield  # another process has converted it in the meantime


def record_conversion(folder: Path | None, output: Path) -> None:
    """Write down in the run's folder which conversion the run began with."""
    if folder is not None:
        output.mkdir(parents=True, exist_ok=True)
        replace_text(output / RECORD, folder.name + "\n")


def is_complete(folder: Path) -> bool:
    """Return True if a conversion has been written to its end."""
    return (folder / COMPLETE).is_file()


def find_root() -> Path:
    """Return the folder that NeMo-RL converts to by itself: what the environment names, or one in the user's home."""
    own, hub = (os.environ.get(name, "").strip() for name in (VARIABLE, "HF_HOME"))
    if own:
        return Path(own).absolute()
    return Path(hub or Path.home() / ".cache" / "huggingface").absolute() / "nemo_rl"


def name_conversion(model: str, overrides: Mapping[str, Any]) -> str:
    """Return the name of the folder for a model's present content, read with NeMo-RL's hf_config_overrides.

    Raises ValueError if there is no such model.
    """
    content = digest_folder(Path(model)) if Path(model).is_dir() else find_revision(model)
    about = json.dumps([model, content, overrides], sort_keys=True, default=str)
    return f"{Path(model).name}-{hashlib.sha256(about.encode()).hexdigest()[:16]}"


def digest_folder(folder: Path) -> str:
    """Return a digest of a Hugging Face directory: its config.json, and its weights' names, sizes, times and headers.

    Training changes neither sizes nor headers, so the time of the last change tells two models of one shape apart.
    """
    digest, config = hashlib.sha256(), folder / "config.json"
    if config.is_file():
        digest.update(config.read_bytes())
    for file in sorted(file for glob in WEIGHTS for file in folder.glob(glob)):
        with file.open("rb") as handle:
            about, header = os.fstat(handle.fileno()), b""
            if file.suffix == ".safetensors":
                header = handle.read(min(int.from_bytes(handle.read(8), "little"), LONGEST_HEADER))
        digest.update(repr((file.name, about.st_size, about.st_mtime_ns, header)).encode())
    return digest.hexdigest()


def find_revision(model: str) -> str:
    """Return the commit of a model on the Hugging Face Hub: the present one, or offline that of the cache.

    Raises ValueError if the model is neither there nor a folder.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "config.json")).parent.name
    except Exception as error:  # versions of huggingface_hub use different HTTP libraries with their own errors
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"policy.model_name = {model} is no folder on this node, and the Hugging Face Hub does not give it either "
            f"({why}): correct the name, or mount the folder into the container (--mounts)."
        ) from None


@contextmanager
def _set_variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable inside the block: NeMo-RL's workers get those of the driver when they are created."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _lock(folder: Path, status: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a conversion; wait for whoever has it. On a file system without locks nothing is locked."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(f"{folder.name}.lock").open("ab")
    except OSError as error:
        raise ValueError(
            f"{folder.parent}, where the model is converted to, cannot be written ({error.strerror}): set {VARIABLE} "
            "to a folder that all nodes see."
        ) from None
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                status(f"waiting for another run that converts the model to {folder}")
                time.sleep(POLL)
            except OSError:
                break
        yield
