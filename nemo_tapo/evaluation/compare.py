"""Compare two evaluations of the same problems: `nemo-tapo compare A B`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from nemo_tapo.evaluation.accuracy import Measures, list_measure_names, measure_change, require_same_problems
from nemo_tapo.evaluation.results import EvaluationResult, get_measures, list_titles, read_evaluation
from nemo_tapo.evaluation.sample_store import FOLDER, SETTINGS, list_differences


def compare_evaluations(first: Path, second: Path, width: int | None = None) -> str:
    """Return a text with both evaluations, their paired differences (second minus first), and whether those exclude 0.

    Raises ValueError if one of them is not a finished evaluation, if their sampling settings differ, or if their
    problems differ.
    """
    one, two = read_evaluation(find_evaluation(first)), read_evaluation(find_evaluation(second))
    require_comparable(one, two)
    gain = measure_change(one.graded, two.graded)
    a, b = make_label(one, two), make_label(two, one)
    return format_comparison({a: one.summary, b: two.summary}, gain, one.settings["samples"], width)


def find_evaluation(folder: Path) -> Path:
    """Return the folder of an evaluation's samples, given that folder or a run's.

    Of a run it is the evaluation "after" (RL), or the only one. Raises ValueError if the run has no evaluation, or
    several without an "after".
    """
    if (folder / SETTINGS).is_file():
        return folder
    folders = sorted(path.parent for path in folder.glob(f"{FOLDER}/*/{SETTINGS}"))
    after = [path for path in folders if path.name == "after"]
    if not folders:
        raise ValueError(f"{folder} holds no evaluation: run `nemo-tapo evaluate` with that output first.")
    if len(folders) > 1 and not after:
        raise ValueError(f"{folder} holds several evaluations; name one of {', '.join(map(str, folders))}.")
    return after[0] if after else folders[0]


def require_comparable(one: EvaluationResult, two: EvaluationResult) -> None:
    """Raise ValueError, naming what differs, unless two evaluations can be compared.

    They need the same benchmarks, problems, sampling settings, and texts of the problems.

    The model, the seed, the number of runs and the tokens that a chat template makes of a prompt may differ.
    """
    require_same_problems(one.graded, two.graded)
    sides = [_get_shared_settings(side.settings) for side in (one, two)]
    changed = list_differences(sides[0], sides[1], ["evaluation"])
    if changed:
        raise ValueError(f"the evaluations were sampled differently ({'; '.join(changed)}): evaluate one again.")
    texts = [name for name in sides[0]["data"] if sides[0]["data"][name] != sides[1]["data"][name]]
    if texts:
        raise ValueError(
            f"{', '.join(texts)}: the problems have the same names but other questions, prompts or answers."
        )


def _get_shared_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that two comparable evaluations share."""
    return {
        "evaluation": {**settings["evaluation"], "samples": settings["samples"]},
        "data": {name: entry["data"] for name, entry in settings["benchmarks"].items()},
    }


def make_label(one: EvaluationResult, other: EvaluationResult) -> str:
    """Return the shortest label that tells `one` from `other`: its name, with the run's name before it if needed."""
    name = unquote(one.folder.name)
    return name if one.folder.name != other.folder.name else f"{one.folder.resolve().parents[1].name}: {name}"


def format_comparison(
    sides: Mapping[str, Mapping[str, Any]], gain: Mapping[str, Any], n: int, width: int | None
) -> str:
    """Format a comparison: one table per benchmark, then one sentence per benchmark on the differences."""
    from nemo_tapo.evaluation.tables import HEAD, LEGEND, EvaluationTable, make_comparison_rows, render_tables

    tables = [
        EvaluationTable(title, [*sides, HEAD, "excludes 0"], rows)
        for title in list_titles(sides)
        if (
            rows := make_comparison_rows(
                [get_measures(side, title) for side in sides.values()], get_measures(gain, title)
            )
        )
    ]
    sentences = [f"{title}: {describe_change(get_measures(gain, title), n)}" for title in list_titles(sides)]
    return render_tables(tables, [*sentences, LEGEND], width)


def describe_change(gain: Measures, n: int) -> str:
    """Say in a sentence which measures' differences have an interval that excludes 0.

    >>> describe_change({f"{name}/interval95": [0.1, 0.2] for name in ("pass@1", "first@1", "maj@1")}, n=1)
    'the interval of the difference excludes 0 for pass@1, first@1, maj@1 (3 were looked at).'
    """
    names = list_measure_names(n)
    outside = [name for name in names if excludes_zero(gain, name)]
    if not outside:
        return "every interval of a difference holds 0; these problems do not tell the two apart."
    return f"the interval of the difference excludes 0 for {', '.join(outside)} ({len(names)} were looked at)."


def excludes_zero(gain: Measures, name: str) -> bool:
    """Return whether the 95% interval of the measure's difference lies on one side of 0."""
    low, high = gain[f"{name}/interval95"]
    return bool(low > 0 or high < 0)
