"""The stage function of each command, and the weights of its stages in the progress display.

The order of the stages is base -> cold start -> TAPO -> evaluation -> report; each can be resumed. A stage is done when
its result exists under its final name (a rename puts it there), so `nemo-tapo run` with the same output folder
continues a run that was stopped or killed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from nemo_tapo.stages.coldstart.stage import coldstart_only
from nemo_tapo.stages.diagnose import diagnose
from nemo_tapo.stages.evaluate import evaluate_only
from nemo_tapo.stages.filter_queries import filter_queries
from nemo_tapo.stages.main_job import main_job, train_only
from nemo_tapo.stages.pretrain import pretrain
from nemo_tapo.stages.session import Session

# The text that a stage returns is printed at the end.
STAGES: dict[str, Callable[[Session], Awaitable[str | None]]] = {
    "run": main_job,
    "pretrain": pretrain,
    "coldstart": coldstart_only,
    "train": train_only,
    "filter": filter_queries,
    "evaluate": evaluate_only,
    "diagnose": diagnose,
}

# The stages by their names in the progress display, with rough weights (seconds of the demo on two cores).
STAGE_WEIGHTS: dict[str, Sequence[tuple[str, float]]] = {
    "filter": (("starting engines", 20), ("filtering", 300)),
    "diagnose": (("starting engines", 20), ("sampling and constructing", 30), ("probing", 10)),
    "run": (
        ("starting engines", 20),
        ("sampling from the base", 30),
        ("correcting", 2),
        ("cold start", 150),
        ("evaluating (before)", 20),
        ("RL", 300),
        ("evaluating (after)", 20),
        ("report", 10),
    ),
}
