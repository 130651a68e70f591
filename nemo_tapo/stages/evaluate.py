"""Evaluation as a stage of the main job and as a command of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_tapo.config.run_config import as_yaml
from nemo_tapo.endpoint.client import Endpoint
from nemo_tapo.evaluation import results
from nemo_tapo.evaluation.accuracy import change
from nemo_tapo.evaluation.benchmarks import Benchmarks, digest, evaluate, measure_synthesis, shown_settings
from nemo_tapo.evaluation.model_files import is_checkpoint, locate, name_of
from nemo_tapo.evaluation.sample_store import folder_of
from nemo_tapo.evaluation.samplers import EndpointSampler, EngineSampler, Sampler
from nemo_tapo.utils.files import replace_text

if TYPE_CHECKING:
    from nemo_tapo.stages.session import Session
from nemo_tapo.evaluation.model_files import identity, workspace

SECTION = "evaluation.endpoint"


async def evaluation(
    session: Session, name: str, weights: Path, against: str | None = None, shown: Path | None = None
) -> None:
    """Evaluates what the engine holds, the model in the folder `weights`; adds it to evaluation.json as `name`.

    against: the name of an earlier evaluation in the same folder, to which the paired difference is added. shown: the
    path by which the user knows the model, where it is another.
    """
    sampler = EngineSampler(session.runtime.generator, session.cfg)
    synthesis = session.cfg.synthesis_queries
    await _evaluation(session, name, str(shown or weights), identity(weights), sampler, against, synthesis)


async def evaluate_only(session: Session) -> str:
    """Evaluates model.path, or the endpoint's model if there is one; returns the table."""
    cfg = session.cfg
    if cfg.evaluation.endpoint.url:
        async with Endpoint(cfg.evaluation.endpoint, SECTION) as endpoint:
            name = endpoint.model
            # Nothing tells the weights behind a server: its word for them has to do.
            model = {"endpoint": name, "extra_body": dict(endpoint.cfg.extra_body)}
            await _evaluation(session, name, name, model, EndpointSampler(endpoint, cfg.evaluation))
    else:
        name, path = name_of(cfg.model.path), cfg.model.path
        # A checkpoint was verified and put together for the engine to start with.
        weights = workspace(cfg) if is_checkpoint(path) else locate(path, workspace(cfg))
        await evaluation(session, name, weights, shown=path)
    from nemo_tapo.evaluation.tables import as_text

    return as_text({name: results.stored(session.output)[name]})


async def _evaluation(
    session: Session,
    name: str,
    shown: str,
    model: Mapping[str, Any],
    sampler: Sampler,
    against: str | None = None,
    synthesis_queries: int = 0,
) -> None:
    """model: its identity. shown: how results name it."""
    cfg, benchmarks, folder = session.cfg, session.benchmarks, folder_of(session.output, name)
    evaluated = await evaluate(
        cfg, name, model, benchmarks, sampler, session.tools.grade, session.progress, session.stop
    )
    result: dict[str, Any] = {
        "model": shown,
        "settings": shown_settings(cfg),
        **evaluated.summary,
    }
    replace_text(folder / "config.yaml", as_yaml(cfg))
    if synthesis_queries:
        result["synthesis"] = await _synthesis(session, name, model, benchmarks, synthesis_queries)
    if against:
        before = results.read_evaluated(folder_of(cfg.output, against))
        result["change"] = {"from": against, **change(before.graded, evaluated.graded)}
    results.store(session.output, name, result)
    session.stop.check(f"{session.output / results.RESULTS} written")


async def _synthesis(
    session: Session, name: str, model: Mapping[str, Any], benchmarks: Benchmarks, queries: int
) -> dict[str, Any]:
    """The entry "synthesis". Not measured again if it was, with the same settings."""
    asked = digest([model, queries, session.cfg.fingerprint("tapo", "rollout")])
    known = results.stored(session.output).get(name, {}).get("synthesis", {})
    if known.get("settings") == asked:
        return dict(known)
    session.progress.status("measuring synthesis")
    return {"settings": asked, **await measure_synthesis(session.cfg, session.tools, benchmarks, queries)}
