"""Evaluate a model, as a stage of the main job or as the command `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_tapo.config.run_config import to_yaml
from nemo_tapo.endpoint.client import Endpoint
from nemo_tapo.evaluation import results
from nemo_tapo.evaluation.accuracy import measure_change
from nemo_tapo.evaluation.benchmarks import (
    EvaluationTarget,
    evaluate,
    make_settings_entry,
    measure_synthesis,
)
from nemo_tapo.evaluation.model_files import (
    get_model_identity,
    get_workspace,
    is_checkpoint,
    locate_model,
    make_evaluation_name,
)
from nemo_tapo.evaluation.sample_store import get_evaluation_folder
from nemo_tapo.evaluation.samplers import EndpointSampler, EngineSampler, ResponseSampler
from nemo_tapo.utils.files import hash_json, replace_text

if TYPE_CHECKING:
    from nemo_tapo.stages.session import Session

SECTION = "evaluation.endpoint"


async def evaluate_weights(
    session: Session, name: str, weights: Path, against: str | None = None, shown: Path | None = None
) -> None:
    """Evaluate the model that the engine holds and add the result to evaluation.json under `name`.

    weights: the folder that the engine's weights come from.
    against: the name of an earlier evaluation in the same output folder; the paired difference from it is added.
    shown: the path that the results show for the model, if not `weights`.
    """
    sampler = EngineSampler(session.runtime.generator, session.cfg, session.runtime.tokenizer)
    target = EvaluationTarget(name, get_model_identity(weights), session.benchmarks)
    await _evaluate_target(session, target, str(shown or weights), sampler, against, session.cfg.synthesis_queries)


async def evaluate_only(session: Session) -> str:
    """Evaluate model.path, or the endpoint's model if an endpoint is configured. Return the table of results."""
    cfg = session.cfg
    if cfg.evaluation.endpoint.url:
        async with Endpoint(cfg.evaluation.endpoint, SECTION) as endpoint:
            name = endpoint.model
            # A server does not reveal its weights: the model name it is asked for has to identify them.
            model = {"endpoint": name, "extra_body": dict(endpoint.cfg.extra_body)}
            target = EvaluationTarget(name, model, session.benchmarks)
            await _evaluate_target(session, target, name, EndpointSampler(endpoint, cfg.evaluation))
    else:
        name, path = make_evaluation_name(cfg.model.path), cfg.model.path
        # The runtime has already verified a checkpoint and assembled it in the workspace.
        weights = get_workspace(cfg) if is_checkpoint(path) else locate_model(path, get_workspace(cfg))
        await evaluate_weights(session, name, weights, shown=path)
    from nemo_tapo.evaluation.tables import format_tables

    return format_tables({name: results.read_results(session.output)[name]})


async def _evaluate_target(
    session: Session,
    target: EvaluationTarget,
    shown: str,
    sampler: ResponseSampler,
    against: str | None = None,
    synthesis_queries: int = 0,
) -> None:
    """Evaluate `target` and write its results; `shown` is the name of the model in them."""
    cfg, folder = session.cfg, get_evaluation_folder(session.output, target.name)
    evaluated = await evaluate(cfg, target, sampler, session.tools.grade, session.progress, session.stop)
    result: dict[str, Any] = {
        "model": shown,
        "settings": make_settings_entry(cfg),
        **evaluated.summary,
    }
    replace_text(folder / "config.yaml", to_yaml(cfg))
    if synthesis_queries:
        result["synthesis"] = await _evaluate_synthesis(session, target, synthesis_queries)
    if against:
        before = results.read_evaluation(get_evaluation_folder(cfg.output, against))
        result["change"] = {"from": against, **measure_change(before.graded, evaluated.graded)}
    results.store_result(session.output, target.name, result)
    session.stop.check(f"{session.output / results.RESULTS} written")


async def _evaluate_synthesis(session: Session, target: EvaluationTarget, queries: int) -> dict[str, Any]:
    """Return the result entry "synthesis": the stored one if its settings are the same, else a new measurement."""
    decisive = session.cfg.fingerprint("tapo", "rollout") | session.cfg.grading_identity
    settings = hash_json([target.model, queries, decisive])
    known = results.read_results(session.output).get(target.name, {}).get("synthesis", {})
    if known.get("settings") == settings:
        return dict(known)
    session.progress.set_phase("measuring synthesis")
    return {"settings": settings, **await measure_synthesis(session.cfg, session.tools, target.benchmarks, queries)}
