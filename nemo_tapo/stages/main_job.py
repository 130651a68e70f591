"""The main job: cold start, evaluation, RL, evaluation, report."""

from __future__ import annotations

from pathlib import Path

from nemo_tapo.stages.coldstart.stage import coldstart
from nemo_tapo.stages.evaluate import evaluation
from nemo_tapo.stages.reinforce import reinforce
from nemo_tapo.stages.session import MODEL, Session
from nemo_tapo.tracking.progress import Progress
from nemo_tapo.train import hand_over_weights


async def main_job(session: Session) -> None:
    """Cold start, evaluation before, RL, evaluation after, report; or those of them that `parts` names."""
    parts, model = session.cfg.parts, session.cfg.model.path
    if "coldstart" in parts:
        model = await coldstart(session, session.output / "coldstart")
        await hand_over_weights(session.runtime)
    if "before" in parts:
        await evaluation(session, "before", model)
    if "train" in parts:
        await reinforce(session, model)
        model = session.output / MODEL
    if "after" in parts:
        await evaluation(session, "after", model, against="before" if "before" in parts else None)
    if "report" in parts:
        report(session.output, session.progress)


async def train_only(session: Session) -> None:
    """RL from model.path."""
    await reinforce(session, session.cfg.model.path)
    report(session.output, session.progress)


def report(folder: Path, progress: Progress) -> None:
    """Plots and page from what the folder holds."""
    from nemo_tapo.report.html import write_page

    stage = progress.stage("report", 1, "page")
    write_page(folder)
    stage.advance()
