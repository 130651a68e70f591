"""Run the main job: cold start, evaluation, RL, evaluation, report."""

from __future__ import annotations

from pathlib import Path

from nemo_tapo.stages.coldstart.stage import run_coldstart
from nemo_tapo.stages.evaluate import evaluate_weights
from nemo_tapo.stages.reinforce import reinforce
from nemo_tapo.stages.session import MODEL_FOLDER, Session
from nemo_tapo.tracking.progress import Progress
from nemo_tapo.train import hand_over_weights


async def main_job(session: Session) -> None:
    """Run cold start, evaluation before, RL, evaluation after and report, or the parts of these that `parts` names."""
    parts, model = session.cfg.parts, session.cfg.model.path
    if "coldstart" in parts:
        model = await run_coldstart(session, session.output / "coldstart")
        await hand_over_weights(session.runtime)
    if "before" in parts:
        await evaluate_weights(session, "before", model)
    if "train" in parts:
        await reinforce(session, model)
        model = session.output / MODEL_FOLDER
    if "after" in parts:
        await evaluate_weights(session, "after", model, against="before" if "before" in parts else None)
    if "report" in parts:
        write_run_page(session.output, session.progress)


async def train_only(session: Session) -> None:
    """Run RL from model.path, then write the report."""
    await reinforce(session, session.cfg.model.path)
    write_run_page(session.output, session.progress)


def write_run_page(folder: Path, progress: Progress) -> None:
    """Write the plots and the HTML page of a run folder from the records in it."""
    from nemo_tapo.report.html import write_page

    stage = progress.start_stage("report", 1, "page")
    write_page(folder)
    stage.advance()
