"""`nemo-tapo compare A B`: two evaluations of the same problems, and what is between them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from nemo_tapo.evaluation.accuracy import Measures, change, names, require_same_problems
from nemo_tapo.evaluation.results import Evaluated, of_title, read_evaluated, titles
from nemo_tapo.evaluation.sample_store import FOLDER, SETTINGS, differences


def compare(first: Path, second: Path, width: int | None = None) -> str:
    """Both evaluations, their paired differences (second minus first), and which intervals exclude 0, as text.

    Raises ValueError if one is no finished evaluation, if they were sampled with other settings, or have not the same
    problems.
    """
    one, two = read_evaluated(find(first)), read_evaluated(find(second))
    require_comparable(one, two)
    gain = change(one.graded, two.graded)
    a, b = label(one, two), label(two, one)
    return tables({a: one.summary, b: two.summary}, gain, one.settings["samples"], width)


def find(folder: Path) -> Path:
    """The folder of an evaluation's samples: itself, or the only one of a run, or what the run was "after" its RL.

    Raises ValueError if there is none, or several to choose from.
    """
    if (folder / SETTINGS).is_file():
        return folder
    found = sorted(path.parent for path in folder.glob(f"{FOLDER}/*/{SETTINGS}"))
    after = [path for path in found if path.name == "after"]
    if not found:
        raise ValueError(f"{folder} holds no evaluation: run `nemo-tapo evaluate` with that output first.")
    if len(found) > 1 and not after:
        raise ValueError(f"{folder} holds several evaluations; name one of {', '.join(map(str, found))}.")
    return after[0] if after else found[0]


def require_comparable(one: Evaluated, two: Evaluated) -> None:
    """Raises ValueError, naming what differs: benchmarks, problems, sampling settings, or the problems' text.

    The model, the seed, the number of runs and the tokens that a chat template makes of a prompt may differ.
    """
    require_same_problems(one.graded, two.graded)
    sides = [_sampling(side.settings) for side in (one, two)]
    changed = differences(sides[0], sides[1], ["evaluation"])
    if changed:
        raise ValueError(f"the evaluations were sampled differently ({'; '.join(changed)}): evaluate one again.")
    texts = [name for name in sides[0]["data"] if sides[0]["data"][name] != sides[1]["data"][name]]
    if texts:
        raise ValueError(
            f"{', '.join(texts)}: the problems have the same names but other questions, prompts or answers."
        )


def _sampling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What two evaluations have to share."""
    return {
        "evaluation": {**settings["evaluation"], "samples": settings["samples"]},
        "data": {name: of["data"] for name, of in settings["benchmarks"].items()},
    }


def label(one: Evaluated, other: Evaluated) -> str:
    """As short as tells the two apart: the evaluation's name, or the run's before it."""
    name = unquote(one.folder.name)
    return name if one.folder.name != other.folder.name else f"{one.folder.resolve().parents[1].name}: {name}"


def tables(sides: Mapping[str, Mapping[str, Any]], gain: Mapping[str, Any], n: int, width: int | None) -> str:
    """The text of `compare`: a table a benchmark, then what is to be said of the differences."""
    from nemo_tapo.evaluation.tables import HEAD, LEGEND, Table, compared, print_tables

    found = [
        Table(title, [*sides, HEAD, "excludes 0"], rows)
        for title in titles(sides)
        if (rows := compared([of_title(side, title) for side in sides.values()], of_title(gain, title)))
    ]
    verdict = [f"{title}: {sentence(of_title(gain, title), n)}" for title in titles(sides)]
    return print_tables(found, [*verdict, LEGEND], width)


def sentence(gain: Measures, n: int) -> str:
    """ "outside what resampling the problems explains: pass@1, pass@2; within it: ..."."""
    outside = [name for name in names(n) if excludes_zero(gain, name)]
    if not outside:
        return "every interval of a difference holds 0; these problems do not tell the two apart."
    return f"the interval of the difference excludes 0 for {', '.join(outside)} ({len(names(n))} were looked at)."


def excludes_zero(gain: Measures, name: str) -> bool:
    low, high = gain[f"{name}/interval95"]
    return bool(low > 0 or high < 0)
