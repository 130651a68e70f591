"""The corrections of the cold start: every answer on disk with its outcome as it comes, so that none is asked twice.

<folder>/corrections/
    settings.json       what decides them: the samples, the writer, the prompt
    corrections.jsonl   one pair a line: its rollouts, the outcome, the answer as it was written
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_tapo.algorithms.reflection import construct
from nemo_tapo.algorithms.synthesis import Synthesis
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.evaluation.benchmarks import digest
from nemo_tapo.evaluation.sample_store import Store, cut_torn_line
from nemo_tapo.stages.coldstart import base_samples
from nemo_tapo.stages.coldstart.writers import UNANSWERED, Writer, identity_of
from nemo_tapo.types import Completion, Construction, Pair, Query
from nemo_tapo.utils.concurrency import at_once

if TYPE_CHECKING:
    from nemo_tapo.stages.session import Session

FOLDER = NAME = "corrections"
ACCEPTED, REFUSED = "accepted", "refused_by_verifier"
FIELDS = {"uid", "wrong", "reference", "texts", "outcome", "kept_share", "answer"}


@dataclass(frozen=True)
class Corrections:
    """What became of the pairs."""

    accepted: tuple[Construction, ...]  # in the order of the pairs
    outcomes: Counter[str]  # they sum up to the pairs


async def correct(
    session: Session, pairs: Sequence[Pair], writer: Writer, queries: Sequence[Query], folder: Path
) -> Corrections:
    """A correction of every pair, those on disk not asked for again.

    An answer to a pair that is no longer there, as its query was sampled again, is passed over.

    Raises Stopped on request, ValueError for a damaged line, and what the writer raises; what was answered until then
    is kept.
    """
    cfg, outcomes = session.cfg, dict[str, str]()
    accepted: dict[str, Construction] = {}
    synthesis = Synthesis(cfg, session.tools)
    with Store(folder / FOLDER, {**settings_of(cfg), "data": base_samples.data_digest(queries)}) as store:
        path = store.path(NAME)
        by_uid = {pair.uid: pair for pair in pairs}
        for row in read(path):
            pair = by_uid.get(row["uid"])
            if pair is None or row["texts"] != texts_of(pair):
                continue  # of a query that was sampled again and answered otherwise
            outcomes[pair.uid] = row["outcome"]
            if row["outcome"] == ACCEPTED:
                answer = Completion((), row["answer"], False)
                accepted[pair.uid] = construct(pair, answer, session.tools.tokenizer, synthesis.rules)
        missing = [pair for pair in pairs if pair.uid not in outcomes]
        stage = session.progress.stage("correcting", len(pairs), "pairs", done=len(outcomes))

        async def one(pair: Pair) -> None:
            construction = await writer.correct(pair)
            outcome = outcomes[pair.uid] = outcome_of(construction)
            if outcome == ACCEPTED:
                accepted[pair.uid] = construction
            if outcome != UNANSWERED:
                store.append(NAME, row_of(construction, outcome))
            stage.note(f"{len(accepted)} of {len(outcomes)} accepted")
            stage.advance()

        await at_once(missing, one, writer.at_once, session.stop)
    session.stop.check(f"{stage.done} of {stage.total} pairs are in {path}")
    return Corrections(
        tuple(accepted[pair.uid] for pair in pairs if pair.uid in accepted),
        Counter(outcomes[pair.uid] for pair in pairs),
    )


def outcome_of(construction: Construction) -> str:
    """ "accepted", or why not: only what the verifier accepts is learned from (section 3.2)."""
    if construction.dropped is not None:
        return construction.dropped
    return ACCEPTED if construction.reward > 0 else REFUSED


def texts_of(pair: Pair) -> str:
    """What the writer was shown, as a digest."""
    return digest([pair.wrong.text, pair.reference.text])


def row_of(construction: Construction, outcome: str) -> dict[str, Any]:
    """One line of JSON; what the answer holds is found again by parsing it."""
    pair = construction.pair
    return {
        "uid": pair.uid,
        "wrong": pair.wrong.uid,
        "reference": pair.reference.uid,
        "texts": texts_of(pair),
        "outcome": outcome,
        "kept_share": construction.kept_share,
        "answer": construction.raw,
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of corrections.jsonl, a half-written last one cut off. Raises ValueError for one that is damaged."""
    cut_torn_line(path)
    if not path.is_file():
        return []
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, Mapping) or row.keys() != FIELDS:
                raise ValueError(
                    f"{path}: line {number} is no correction; remove that line: its pair is asked for again and "
                    "nothing else is lost."
                )
            rows.append(dict(row))
    return rows


def settings_of(cfg: RunConfig) -> dict[str, Any]:
    """What decides the pairs and the answers."""
    t, before = cfg.tapo, base_samples.settings_of(cfg)
    return {
        **before,
        "coldstart": {
            **before["coldstart"],
            "corrections_per_query": cfg.coldstart.corrections_per_query,
            **identity_of(cfg),
        },
        "tapo": {
            "prompt": t.prompt,
            "max_tokens": t.max_tokens,
            "temperature": t.temperature,
            "leak_words": list(t.leak_words),
            "min_kept_share": t.min_kept_share,
            "full_reconstruction": t.full_reconstruction,
        },
        "model.max_length": cfg.model.max_length,
    }
