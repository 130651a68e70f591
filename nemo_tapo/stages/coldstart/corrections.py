"""Collect the corrections of the cold start. Each answer is written to disk at once, so no pair is asked for twice.

<folder>/corrections/
    settings.json       the settings that determine them: the samples, the writer, the prompt
    corrections.jsonl   one pair per line: its rollouts, the outcome, the unparsed answer
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_tapo.algorithms.synthesis import Synthesis
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.evaluation.sample_store import SampleStore, cut_torn_line
from nemo_tapo.stages.coldstart import base_samples
from nemo_tapo.stages.coldstart.writers import UNANSWERED, Writer, get_writer_identity
from nemo_tapo.types import Completion, Construction, Pair, Query
from nemo_tapo.utils.concurrency import for_each_concurrently
from nemo_tapo.utils.files import hash_json
from nemo_tapo.utils.jsonl import parse_checked_line

if TYPE_CHECKING:
    from nemo_tapo.stages.session import Session

FOLDER = NAME = "corrections"
ACCEPTED, REFUSED = "accepted", "refused_by_verifier"
FIELDS = {"uid", "wrong", "reference", "texts", "outcome", "kept_share", "answer"}


@dataclass(frozen=True)
class Corrections:
    """The accepted corrections, and the outcomes of all pairs."""

    accepted: tuple[Construction, ...]  # in the order of the pairs
    outcomes: Counter[str]  # pairs by outcome; the sum is the number of pairs


async def correct_pairs(
    session: Session, pairs: Sequence[Pair], writer: Writer, queries: Sequence[Query], folder: Path
) -> Corrections:
    """Get a correction of every pair, except those already on disk.

    An answer on disk is ignored if its pair no longer exists because the query was sampled again.

    Raises Stopped on request, ValueError for a damaged line, and the writer's exceptions. Earlier answers are kept.
    """
    cfg, outcomes = session.cfg, dict[str, str]()
    accepted: dict[str, Construction] = {}
    synthesis = Synthesis(cfg, session.tools)
    with SampleStore(
        folder / FOLDER, {**get_correction_settings(cfg), "data": base_samples.hash_queries(queries)}
    ) as store:
        path = store.path(NAME)
        by_uid = {pair.uid: pair for pair in pairs}
        for row in read_corrections(path):
            pair = by_uid.get(row["uid"])
            if pair is None or row["texts"] != hash_texts(pair):
                continue  # the query was sampled again, with other responses
            outcomes[pair.uid] = row["outcome"]
            if row["outcome"] == ACCEPTED:
                answer = Completion((), row["answer"], False)
                accepted[pair.uid] = synthesis.parse_answer(pair, answer)
        missing = [pair for pair in pairs if pair.uid not in outcomes]
        stage = session.progress.start_stage("correcting", len(pairs), "pairs", done=len(outcomes))

        async def correct_one(pair: Pair) -> None:
            construction = await writer.correct(pair)
            outcome = outcomes[pair.uid] = get_outcome(construction)
            if outcome == ACCEPTED:
                accepted[pair.uid] = construction
            if outcome != UNANSWERED:
                store.append_row(NAME, make_correction_row(construction, outcome))
            stage.set_note(f"{len(accepted)} of {len(outcomes)} accepted")
            stage.advance()

        await for_each_concurrently(missing, correct_one, writer.at_once, session.stop)
    session.stop.check(f"{stage.done} of {stage.total} pairs are in {path}")
    return Corrections(
        tuple(accepted[pair.uid] for pair in pairs if pair.uid in accepted),
        Counter(outcomes[pair.uid] for pair in pairs),
    )


def get_outcome(construction: Construction) -> str:
    """Return "accepted", or the reason why not. Only what the verifier accepts is trained on (section 3.2)."""
    if construction.dropped is not None:
        return construction.dropped
    return ACCEPTED if construction.correct else REFUSED


def hash_texts(pair: Pair) -> str:
    """Return a digest of the two responses that the writer is shown."""
    return hash_json([pair.wrong.text, pair.right.text])


def make_correction_row(construction: Construction, outcome: str) -> dict[str, Any]:
    """Return the JSON object for corrections.jsonl. It holds the unparsed answer, which is parsed again when read."""
    pair = construction.pair
    return {
        "uid": pair.uid,
        "wrong": pair.wrong.uid,
        "reference": pair.right.uid,
        "texts": hash_texts(pair),
        "outcome": outcome,
        "kept_share": construction.kept_share,
        "answer": construction.raw,
    }


def read_corrections(path: Path) -> list[dict[str, Any]]:
    """Read corrections.jsonl. A half-written last line is cut off. Raises ValueError for a damaged line."""
    cut_torn_line(path)
    if not path.is_file():
        return []
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = parse_checked_line(line)
            except ValueError:
                row = {}
            if row.keys() != FIELDS:
                raise ValueError(
                    f"{path}: line {number} is no correction; remove that line: its pair is asked for again and "
                    "nothing else is lost."
                )
            rows.append(row)
    return rows


def get_correction_settings(cfg: RunConfig) -> dict[str, Any]:
    """Return the settings that determine the pairs and the answers."""
    t, before = cfg.tapo, base_samples.get_sampling_settings(cfg)
    return {
        **before,
        "coldstart": {
            **before["coldstart"],
            "corrections_per_query": cfg.coldstart.corrections_per_query,
            **get_writer_identity(cfg),
        },
        "tapo": {
            "prompt": t.prompt,
            "max_tokens": t.max_tokens,
            "temperature": t.temperature,
            "leak_words": list(t.leak_words),
            "min_kept_share": t.min_kept_share,
            "keep_error": t.keep_error,
            "full_reconstruction": t.full_reconstruction,
        },
        "model.max_length": cfg.model.max_length,
    }
