"""Tell how far a run of a sweep is, from the files in its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from nemo_tapo.config.algorithms import list_own_sections
from nemo_tapo.config.run_config import RunConfig, flatten_settings
from nemo_tapo.evaluation.results import RESULTS
from nemo_tapo.sweeps.expand import SweepJob
from nemo_tapo.utils.files import replace_text
from nemo_tapo.utils.run_folder import CONFIG

FAILURE_FILE, LOG_FILE, LOCK_FILE = "failed.json", "sweep.log", "sweep.lock"

# Settings that do not change a run's numbers, and sizes that may be raised later.
IGNORED_KEYS = (
    "output", "parts", "pipeline", "trajectories_per_step", "rollouts_gib", "record_groups", "max_bad_rows",
    "engine_gap_bound",
    "rollout.logprobs", "evaluation.runs", "evaluation.samples",
)  # fmt: skip
TRAINING_SETTINGS = ("steps", "algorithm", "rollout.", "tapo.", "loss.", "optimizer.")
IGNORED_SECTIONS = ("local.", "checkpoint.", "coldstart.", "pretrain.", "filter.", "judge.", "evaluation.endpoint.")


class RunState(Enum):
    """The state of a run, read from its folder."""

    NEW = "new"
    STARTED = "half-way"  # stopped, killed, or still running
    FAILED = "failed"
    DONE = "done"


@dataclass(frozen=True)
class Failure:
    """The exit code and the reason of a failed run.

    >>> Failure(code=1, reason="the disk is full.").code
    1
    """

    code: int  # exit code of its process
    reason: str  # the last sentence that it printed


def read_run_state(job: SweepJob) -> RunState:
    """Return the state of a run. Raises ValueError if its evaluation.json is damaged."""
    if is_finished(job):
        return RunState.DONE
    if (job.folder / FAILURE_FILE).is_file():
        return RunState.FAILED
    return RunState.STARTED if (job.folder / CONFIG).is_file() else RunState.NEW


def get_final_evaluation(train: bool) -> str:
    """Return the name of the evaluation with which a row's run ends.

    >>> get_final_evaluation(train=True), get_final_evaluation(train=False)
    ('after', 'before')
    """
    return "after" if train else "before"


def is_finished(job: SweepJob) -> bool:
    """Return whether the run's last evaluation exists, with as many runs and samples as were asked for."""
    made = read_evaluation(job.folder, get_final_evaluation(job.row.train)).get("settings", {})
    asked = job.cfg.evaluation
    return (made.get("runs"), made.get("samples")) == (asked.runs, asked.samples)


def read_evaluation(folder: Path, name: str) -> dict[str, Any]:
    """Return an entry of the folder's evaluation.json; {} without one. Raises ValueError if the file is damaged."""
    path = folder / RESULTS
    if not path.is_file():
        return {}
    entry = read_json_mapping(path, "remove it, the evaluation is made anew from its samples").get(name, {})
    if not isinstance(entry, dict) or not isinstance(entry.get("settings", {}), dict):
        raise ValueError(
            f"{path} has no mapping under {name}: remove it, the evaluation is made anew from its samples."
        )
    return entry


def read_json_mapping(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON file that holds a mapping. Raises ValueError, with the remedy, if it does not."""
    try:
        mapping = json.loads(path.read_text())
    except ValueError:
        raise ValueError(f"{path} is not JSON: {remedy}.") from None
    if not isinstance(mapping, dict):
        raise ValueError(f"{path} holds no mapping: {remedy}.")
    return mapping


def read_failure(folder: Path) -> Failure | None:
    """Return what the folder's failed.json says; None without one. Raises ValueError if it is damaged."""
    path = folder / FAILURE_FILE
    if not path.is_file():
        return None
    entry = read_json_mapping(path, "the run failed, why is in its sweep.log")
    return Failure(entry.get("code", 1), str(entry.get("reason", "it is not noted why")))


def write_failure(folder: Path, failure: Failure) -> None:
    replace_text(folder / FAILURE_FILE, json.dumps({"code": failure.code, "reason": failure.reason}) + "\n")


def list_changed_settings(job: SweepJob) -> list[str]:
    """Return the settings in which the folder's run differs from the job, as in "steps: 40 -> 80".

    Raises ValueError if the folder's config.yaml is damaged.
    """
    before = read_stored_config(job.folder)
    if before is None:
        return []
    a, b = (select_deciding_settings(cfg, job.row.train) for cfg in (before, job.cfg))
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in sorted({*a, *b}) if a.get(key) != b.get(key)]


def read_stored_config(folder: Path) -> RunConfig | None:
    """Return the settings with which the folder's run was started; None without a config.yaml.

    Raises ValueError, naming the file, if it is empty, cut short, or has unknown settings.
    """
    from nemo_tapo.runtime.registry import load_run_config

    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        if is_complete(path):
            return load_run_config(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    raise ValueError(f"{path}: it is empty or cut short. Remove it: the run writes it anew.")


def is_complete(path: Path) -> bool:
    """Return whether a run's config.yaml was written to its end.

    A killed run may leave only the beginning of the file, and the missing settings would be read as defaults. For a
    file that is not valid YAML the result is True: the code that reads it reports the fault.
    """
    import yaml

    from nemo_tapo.runtime.nemo_rl.config.cluster_run import is_nemo_rl_config

    text = path.read_text()
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError:
        return True
    last = [] if is_nemo_rl_config(path) else [*RunConfig.model_fields][-1:]
    return text.endswith("\n") and isinstance(raw, dict) and all(name in raw for name in last)


def select_deciding_settings(cfg: RunConfig, train: bool) -> dict[str, Any]:
    """Return the settings that decide a run's numbers, as {dotted key: value}.

    Settings that the run's algorithm does not read are left out.
    """
    flat = flatten_settings(cfg.model_dump(mode="json", by_alias=True))
    flat["model.path"] = str(cfg.model.path.resolve()) if cfg.model.path.exists() else str(cfg.model.path)
    ignored = list(IGNORED_SECTIONS)
    ignored += [f"{section}." for section in list_own_sections(leave_out=cfg.algorithm if train else None)]
    ignored += [] if train else TRAINING_SETTINGS
    ignored += [] if cfg.constructs else ["tapo."]
    kept = {key: value for key, value in flat.items() if key not in IGNORED_KEYS and not key.startswith(tuple(ignored))}
    return kept | ({"pipeline": "deferred"} if train and cfg.deferred else {})  # otherwise it decides speed alone


def require_same_settings(jobs: tuple[SweepJob, ...]) -> None:
    """Raise ValueError, with one sentence per run, for folders that hold a run with other settings."""
    faults = []
    for job in jobs:
        try:
            changed = list_changed_settings(job)
        except ValueError as error:
            faults.append(str(error))
            continue
        if changed:
            shown = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
            faults.append(f"{job.folder} holds a run with other settings ({shown}).")
    if faults:
        raise ValueError("\n".join([*faults, "Choose another output=FOLDER, or restore the settings."]))
