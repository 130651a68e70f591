"""Go on from a finished run with more steps, as a branch: a folder of its own that names its parent.

```
runs/a               steps=100, finished; stays as it is
runs/a-steps-200     steps=200: the records, the cold start and the last checkpoint of runs/a, and 100 steps more
  parent.json        {"folder": "/data/runs/a", "step": 100, "manifest_sha256": ..., "learning_rate": ...}
```
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import yaml

from nemo_tapo.checkpoint import MANIFEST, STATE, Checkpoint, find_latest, make_manifest, remove_on_failure
from nemo_tapo.config.run_config import RunConfig, rl_fingerprint
from nemo_tapo.evaluation import results
from nemo_tapo.evaluation.sample_store import get_evaluation_folder
from nemo_tapo.utils.files import make_building_folder, publish_folder, sha256, write_json
from nemo_tapo.utils.run_folder import CONFIG, lock_folder

PARENT = "parent.json"
BEFORE = "before"  # the evaluation that does not depend on the number of steps
CHECKPOINTS = "checkpoints"
# What a run makes at its end or for itself; a branch takes everything else. Of evaluations it takes `before`.
NOT_TAKEN = ("hf", CHECKPOINTS, "evaluation*", "report.html", "*.png", CONFIG, "run.lock", "slurm", "tmp-*", PARENT)


@dataclass(frozen=True)
class Branch:
    """A finished run and the folder in which it goes on."""

    parent: Path
    folder: Path
    checkpoint: Checkpoint  # the parent's last
    steps: int  # of the branch, counted from the parent's first
    learning_rate: str  # a sentence on what it does at the parent's end

    @property
    def sentence(self) -> str:
        """Say where the run goes on, and from what."""
        return (
            f"{self.parent} is a finished run of {self.checkpoint.step} steps: it goes on to {self.steps} in "
            f"{self.folder}, a branch that names it as its parent. {self.learning_rate}"
        )


def find_branch(cfg: RunConfig, command: str) -> Branch | None:
    """Return the branch in which `command` would go on; None if its output is not a run of fewer steps.

    Only the number of steps may differ: other changes are refused where the run resumes. Raises ValueError if the run
    is not finished, or if the branch's folder is something else.
    """
    if command not in ("run", "train") or cfg.runtime == "nemo_rl" or _read_steps(cfg.output) in (None, cfg.steps):
        return None
    found = find_latest(cfg.output / CHECKPOINTS, warn=lambda text: None)
    if found is None:
        return None
    before, now = found.state["fingerprint"], rl_fingerprint(cfg)
    if {k for k in before.keys() | now.keys() if before.get(k) != now.get(k)} != {"steps"} or cfg.steps < found.step:
        return None
    if found.step < before["steps"]:
        raise ValueError(
            f"{cfg.output} is a run of {before['steps']} steps that has done {found.step}: finish it with "
            f"steps={before['steps']}, then steps={cfg.steps} goes on from there; or choose another `output`."
        )
    folder = cfg.output.with_name(f"{cfg.output.name}-steps-{cfg.steps}")
    if folder.exists() and _read_parent(folder) != str(cfg.output.resolve()):
        raise ValueError(
            f"{cfg.output} would go on in {folder}, which is there and is no branch of it: move one of them away."
        )
    return Branch(cfg.output, folder, found, cfg.steps, describe_learning_rate(cfg, found.step))


def continue_as_branch(cfg: RunConfig, branch: Branch) -> RunConfig:
    """Make the branch unless it is there, and return the configuration with its folder as output.

    The parent is locked while it is copied and never changed. Raises ValueError if a process is at work in it, DiskFull
    if there is no room.
    """
    if not branch.folder.exists():
        with lock_folder(branch.parent):
            _build(branch, rl_fingerprint(cfg))
    return cfg.model_copy(update={"output": branch.folder})


def describe_learning_rate(cfg: RunConfig, done: int) -> str:
    """Say how the learning rate after `done` steps goes on, and whether the branch is what one run would have been."""
    from nemo_tapo.runtime.local.lr_schedule import compute_learning_rate

    optimizer, updates = cfg.optimizer, cfg.loss.updates_per_batch
    if optimizer.schedule == "constant" and cfg.rollout.lag:
        return (
            f"The learning rate is constant, but step {done + 1} is sampled by the weights after step {done} and in "
            f"one run by those before it (rollout.lag): so the result is not that of one run of {cfg.steps} steps."
        )
    if optimizer.schedule == "constant":
        return f"The learning rate is constant, so the result is that of one run of {cfg.steps} steps."
    last = compute_learning_rate(optimizer, done * updates, done * updates)
    following = compute_learning_rate(optimizer, done * updates + 1, cfg.steps * updates)
    return (
        f"The learning rate ended at {last:.2g}; in step {done + 1} it is {following:.2g} and follows the cosine of "
        f"{cfg.steps} steps from there, so the result is not that of one run of {cfg.steps} steps."
    )


def _build(branch: Branch, fingerprint: dict[str, object]) -> None:
    building = make_building_folder(branch.folder)
    with remove_on_failure(building, branch.folder):
        shutil.copytree(
            branch.parent,
            building,
            ignore=lambda folder, names: _leave_out(folder, names, branch.parent),
            dirs_exist_ok=True,
        )
        if before := results.read_results(branch.parent).get(BEFORE):
            results.store_result(building, BEFORE, before)
            source = get_evaluation_folder(branch.parent, BEFORE)
            if source.is_dir():
                shutil.copytree(source, get_evaluation_folder(building, BEFORE), dirs_exist_ok=True)
        origin = {
            "folder": str(branch.parent.resolve()),
            "step": branch.checkpoint.step,
            "manifest_sha256": sha256(branch.checkpoint.path / MANIFEST),
            "learning_rate": branch.learning_rate,
        }
        write_json(building / PARENT, origin)
        copy = building / CHECKPOINTS / branch.checkpoint.path.name
        shutil.copytree(branch.checkpoint.path, copy)
        write_json(copy / STATE, branch.checkpoint.state | {"fingerprint": fingerprint, "parent": origin})
        write_json(copy / MANIFEST, make_manifest(copy))
        publish_folder(branch.folder, building)


def _leave_out(folder: str, names: Iterable[str], parent: Path) -> list[str]:
    if Path(folder) != parent:
        return []
    return [name for name in names if any(fnmatch(name, pattern) for pattern in NOT_TAKEN)]


def _read_steps(folder: Path) -> int | None:
    """Return the number of steps in the folder's config.yaml; None without one, or if it says none."""
    try:
        written = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    steps = written.get("steps") if isinstance(written, dict) else None
    return steps if isinstance(steps, int) else None


def _read_parent(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / PARENT).read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
