"""How far a run of a sweep is, from what its folder holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from nemo_tapo.config.run_config import RunConfig, flatten
from nemo_tapo.evaluation.results import RESULTS
from nemo_tapo.sweeps.expand import Job
from nemo_tapo.utils.files import replace_text
from nemo_tapo.utils.run_folder import CONFIG

FAILED, LOG, LOCK = "failed.json", "sweep.log", "sweep.lock"

# Settings that change no number of a run, and those of which more can be asked for later.
FREE = (
    "output", "parts", "pipeline", "trajectories_per_step", "max_bad_rows", "engine_gap_bound", "rollout.logprobs",
    "evaluation.runs", "evaluation.samples",
)  # fmt: skip
ONLY_OF_TRAINING = ("steps", "algorithm", "rollout.", "tapo.", "opsd.", "loss.", "optimizer.")
FREE_SECTIONS = ("local.", "checkpoint.", "coldstart.", "pretrain.", "filter.", "judge.", "evaluation.endpoint.")


class State(Enum):
    """Of a run's folder."""

    NEW = "new"
    STARTED = "half-way"  # stopped, killed, or at work
    FAILED = "failed"
    DONE = "done"


@dataclass(frozen=True)
class Failure:
    """How a run ended that did not succeed."""

    code: int  # of its process
    reason: str  # its last sentence


def state_of(job: Job) -> State:
    """Raises ValueError if an evaluation.json is damaged."""
    if finished(job):
        return State.DONE
    if (job.folder / FAILED).is_file():
        return State.FAILED
    return State.STARTED if (job.folder / CONFIG).is_file() else State.NEW


def evaluation_of(train: bool) -> str:
    """The name of the evaluation in which a row's run ends."""
    return "after" if train else "before"


def finished(job: Job) -> bool:
    """Whether the run's last evaluation is there, with as many runs and samples as are asked for."""
    made = evaluation(job.folder, evaluation_of(job.row.train)).get("settings", {})
    asked = job.cfg.evaluation
    return (made.get("runs"), made.get("samples")) == (asked.runs, asked.samples)


def evaluation(folder: Path, name: str) -> dict[str, Any]:
    """An entry of the folder's evaluation.json, {} if it is not there. Raises ValueError if that is damaged."""
    path = folder / RESULTS
    if not path.is_file():
        return {}
    entry = read_mapping(path, "remove it, the evaluation is made anew from its samples").get(name, {})
    if not isinstance(entry, dict) or not isinstance(entry.get("settings", {}), dict):
        raise ValueError(
            f"{path} has no mapping under {name}: remove it, the evaluation is made anew from its samples."
        )
    return entry


def read_mapping(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON file that holds a mapping. Raises ValueError with the remedy for one that does not."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        raise ValueError(f"{path} is not JSON: {remedy}.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no mapping: {remedy}.")
    return found


def failure(folder: Path) -> Failure | None:
    """What the folder's failed.json says. Raises ValueError if that is damaged."""
    path = folder / FAILED
    if not path.is_file():
        return None
    found = read_mapping(path, "the run failed, why is in its sweep.log")
    return Failure(found.get("code", 1), str(found.get("reason", "it is not noted why")))


def note_failure(folder: Path, found: Failure) -> None:
    replace_text(folder / FAILED, json.dumps({"code": found.code, "reason": found.reason}) + "\n")


def differences(job: Job) -> list[str]:
    """ "steps: 40 -> 80", one text for each setting in which the folder's run is another than the job's.

    Raises ValueError if the folder's config.yaml is damaged.
    """
    then = stored(job.folder)
    if then is None:
        return []
    a, b = (deciding(cfg, job.row.train) for cfg in (then, job.cfg))
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in sorted({*a, *b}) if a.get(key) != b.get(key)]


def stored(folder: Path) -> RunConfig | None:
    """The settings that the folder's run was started with; None without a file of them.

    Raises ValueError, naming the file, for one that is empty, cut short, or has settings that there are not.
    """
    from nemo_tapo.runtime.registry import load_either

    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        if whole(path):
            return load_either(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    raise ValueError(f"{path}: it is empty or cut short. Remove it: the run writes it anew.")


def whole(path: Path) -> bool:
    """Whether a run's config.yaml was written to its end: a kill may leave the beginning, whose rest would read as
    defaults. A file that is no YAML is for its reader to refuse.
    """
    import yaml

    from nemo_tapo.runtime.nemo_rl.config.cluster_run import is_nemo_rl

    text = path.read_text()
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError:
        return True
    last = [] if is_nemo_rl(path) else [*RunConfig.model_fields][-1:]
    return text.endswith("\n") and isinstance(raw, dict) and all(name in raw for name in last)


def deciding(cfg: RunConfig, train: bool) -> dict[str, Any]:
    """The settings that decide a run's numbers, flat; those that its algorithm does not read are left out."""
    flat = flatten(cfg.model_dump(mode="json", by_alias=True))
    flat["model.path"] = str(cfg.model.path.resolve()) if cfg.model.path.exists() else str(cfg.model.path)
    free = list(FREE_SECTIONS)
    free += [] if train else ONLY_OF_TRAINING
    free += [] if cfg.constructs else ["tapo."]
    free += [] if cfg.algorithm == "opsd" else ["opsd."]
    return {key: value for key, value in flat.items() if key not in FREE and not key.startswith(tuple(free))}


def require_same(jobs: tuple[Job, ...]) -> None:
    """Raises ValueError, a sentence a run, for folders that hold a run with other settings."""
    faults = []
    for job in jobs:
        try:
            changed = differences(job)
        except ValueError as error:
            faults.append(str(error))
            continue
        if changed:
            shown = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
            faults.append(f"{job.folder} holds a run with other settings ({shown}).")
    if faults:
        raise ValueError("\n".join([*faults, "Choose another output=FOLDER, or restore the settings."]))
