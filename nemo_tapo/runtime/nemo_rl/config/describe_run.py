"""Check a NeMo-RL config file and describe its plan, before anything is started."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from nemo_tapo.planning import plan_text
from nemo_tapo.planning.model_shape import ModelShape, get_model_shape
from nemo_tapo.runtime.nemo_rl.config import cluster_run, node_checks, validate
from nemo_tapo.runtime.nemo_rl.config.cluster_run import ClusterRun
from nemo_tapo.runtime.nemo_rl.config.validate import get_at_path


def load_checked_run(path: Path, overrides: Sequence[str] = ()) -> ClusterRun:
    """Load the run that a config file describes and check it against the model's shape and the GPUs' memory.

    Raises ValueError with one sentence for each reason why it could not run on its cluster.
    """
    run = cluster_run.load_cluster_run(path, overrides)
    raise_faults(find_faults(run))
    return run


def find_faults(run: ClusterRun) -> list[str]:
    """Return the reasons why the model's shape or the GPUs' memory do not allow a run."""
    shape = _read_shape(run)
    faults = list(validate.check_model(shape, run.setup)) if shape is not None else []
    if shape is not None and run.setup.megatron and not faults:
        faults = list(plan_text.find_faults(shape, run.setup, run.assumed))
    return faults


def raise_faults(faults: Sequence[str]) -> None:
    """Raise ValueError with one line for each fault, if there is any."""
    if faults:
        raise ValueError("\n".join(faults))


def require_environment(run: ClusterRun) -> None:
    """Raise ValueError for what the driver's node lacks; called when a run starts, not for a plan."""
    raise_faults(list(node_checks.check_environment(run.setup)))


def describe(run: ClusterRun, full: bool = False, faults: Sequence[str] = ()) -> str:
    """Return the plan as text: a summary that fits a screen of 80 x 24 characters.

    With `full` also the memory of each class, every note, and the whole configuration, this package's and NeMo-RL's.
    """
    summary = _summarize(run, faults)
    if not full:
        return summary
    ours = run.cfg.model_dump(mode="json", by_alias=True)
    return "\n".join(
        [
            *(f"# {line}" if line else "#" for line in summary.splitlines()),
            "# ---- details",
            *(f"#  {line}" for line in _make_plan(run)),
            "# ---- this package's settings",
            yaml.safe_dump(ours, sort_keys=False),
            "# ---- NeMo-RL's configuration",
            yaml.safe_dump(run.master, sort_keys=False),
        ]
    )


def _summarize(run: ClusterRun, faults: Sequence[str]) -> str:
    shape, setup, model = _read_shape(run), run.setup, run.master["policy"]["model_name"]
    verdict = f"it cannot run: {len(faults)} reason(s), below" if faults else "it can run, as far as this can tell"
    head = [
        plan_text.label("plan", verdict),
        plan_text.label("model", f"{model}" + (f", {shape.parameters / 1e9:.2f} B parameters" if shape else "")),
        plan_text.label("algorithm", f"{run.cfg.algorithm}, pipeline {run.cfg.pipeline}"),
        plan_text.label("output", f"{run.cfg.output} ({'goes on with it' if run.cfg.output.is_dir() else 'new'})"),
    ]
    if shape is None:
        body = plan_text.summarize_layout(setup)
        body += plan_text.wrap(f"no estimate of memory and time: {_explain_missing_shape(run)}")
    else:
        body = plan_text.summarize_plan(shape, setup, run.assumed)
    lines = [*head, *body]
    more = "--full shows every class of memory, the assumptions and all settings"
    room = max(0, plan_text.ROWS - len(lines) - 2)
    told = f"{len(run.notes)} on settings that are not used or mean something else here"
    notes = [f"  {note}" for note in run.notes[:room]]
    return plan_text.cut_lines([*lines, plan_text.label("notes", told), *notes, more])


def _make_plan(run: ClusterRun) -> Iterable[str]:
    shape = _read_shape(run)
    yield f"output: {run.cfg.output}, checkpoints: {get_at_path(run.master, 'checkpointing.checkpoint_dir')}"
    if shape is None:
        yield from plan_text.describe_step(run.setup)
        yield f"no estimate of memory and time: {_explain_missing_shape(run)}"
    else:
        yield from plan_text.describe_plan(shape, run.setup, run.assumed)
    yield from (f"note: {note}" for note in run.notes)


def _read_shape(run: ClusterRun) -> ModelShape | None:
    try:
        return get_model_shape(run.master["policy"]["model_name"])
    except ValueError:
        return None  # not a fault: NeMo-RL may support the model; the plan says why there is no estimate


def _explain_missing_shape(run: ClusterRun) -> str:
    try:
        get_model_shape(run.master["policy"]["model_name"])
    except ValueError as error:
        return str(error)
    raise AssertionError("asked only when there is no shape")


def as_yaml(run: ClusterRun) -> str:
    """Return the whole resolved configuration as YAML; `nemo-tapo train --config` can read it, without other files."""
    return yaml.safe_dump(run.master, sort_keys=False)
