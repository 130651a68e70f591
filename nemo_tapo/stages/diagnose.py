"""`nemo-tapo diagnose`: sample, construct and probe once, and say whether TAPO is likely to help this model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from nemo_tapo.algorithms.continuation import Continuation
from nemo_tapo.algorithms.prefilled import find_prefix_end
from nemo_tapo.algorithms.reasoning_steps import find_step_ends
from nemo_tapo.evaluation import diagnosis
from nemo_tapo.evaluation.benchmarks import collect_once
from nemo_tapo.interfaces import Task
from nemo_tapo.types import Pair, Rollout
from nemo_tapo.utils.concurrency import run_concurrently
from nemo_tapo.utils.files import replace_text
from nemo_tapo.utils.seeding import seed_from

if TYPE_CHECKING:
    from nemo_tapo.stages.session import Session

RESULT = "diagnosis.json"


async def diagnose(session: Session) -> str:
    """Write <output>/diagnosis.json and return it as text. Raises ValueError if there is no query."""
    cfg = session.cfg
    queries = session.train_queries()[: cfg.diagnose.queries]
    if not queries:
        raise ValueError("there is no training query to diagnose the model by.")
    session.progress.start_stage("sampling and constructing")
    algorithm, experience = await collect_once(cfg, session.tools, queries)
    session.stop.check("nothing was written")
    session.progress.start_stage("probing")
    probes = await probe_prefixes(session, [construction.pair for construction in experience.constructions])
    metrics = algorithm.compute_metrics(experience, algorithm.make_rows(experience))
    found = diagnosis.summarise(experience, metrics, probes, cfg.diagnose.turn)
    result = {"model": str(cfg.model.path), **found}
    replace_text(session.output / RESULT, json.dumps(result, indent=1) + "\n")
    return f"{diagnosis.describe(found)}\n\n{session.output / RESULT}"


async def probe_prefixes(session: Session, pairs: list[Pair]) -> list[diagnosis.PrefixProbe]:
    """Let the model go on behind the first wrong step of each wrong rollout, and behind as many right ones.

    A step counts as wrong whether or not the rollout took it back: those that it did not would be those that the model
    does not see. There are no probes where the task does not tell where a response is wrong.
    """
    continuation, settings = Continuation(session.cfg, session.tools), session.cfg.diagnose
    found = {}  # {uid of the wrong rollout: (its prefix's end, a right rollout)}
    for pair in pairs:
        end = find_first_error(session.task, pair.wrong)
        if end is not None:
            found[pair.wrong.uid] = (pair.wrong, find_prefix_end(pair.wrong.text, end), pair.right)

    async def probe(rollout: Rollout, end: int, behind_error: bool) -> diagnosis.PrefixProbe:
        prefix = continuation.cut(rollout, end)
        seed = seed_from(session.cfg.seed, "diagnose", rollout.uid, end, behind_error)
        completion = await continuation.sample(rollout, prefix, seed)
        turned = diagnosis.turns_soon(completion.text, settings.turn)
        return diagnosis.PrefixProbe(behind_error, turned, await continuation.is_right(rollout, prefix, completion))

    probes = []
    for wrong, end, right in found.values():
        probes.append(probe(wrong, end, True))
        steps = sum(step_end <= end for step_end in find_step_ends(wrong.text))
        taken_back = find_first_error(session.task, right)
        before = find_step_ends(right.text)[:-1]  # not behind the answer, where nothing is left to say
        ends = [each for each in before if taken_back is None or each < taken_back][:steps]
        if ends:
            probes.append(probe(right, find_prefix_end(right.text, ends[-1]), False))
    return list(await run_concurrently(probes))


def find_first_error(task: Task, rollout: Rollout) -> int | None:
    """Return where the first wrong step of a rollout ends, taken back later or not; None if the task knows of none."""
    ends = find_step_ends(rollout.text)
    for end in ends:
        error = task.locate_error(rollout.query, rollout.text[:end])
        if error is not None:
            return next(each for each in ends if each >= error)
    return None
