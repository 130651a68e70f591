"""Make the records of one step: of every query with its rollouts and pairs, and of these the trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nemo_tapo.config.sections import TapoConfig
from nemo_tapo.equations.selection import Zone, classify_zone
from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.tracking.records import make_skipped_record, make_trajectory_record
from nemo_tapo.types import Construction, Group, Kind, Query, Rollout, Row, StepRecord, UpdateResult
from nemo_tapo.utils.jsonl import Record
from nemo_tapo.utils.token_text import TokenPieces

MOST_SCORED_TOKENS = 2_000_000  # in a step: of so many the log-probabilities are stored, in query order
LOGPROB_DECIMALS = 4  # of the stored ones: they are looked at, not computed with


class StepRecords:
    """Makes the records of a run's steps; rollout_store.py and records.py describe them."""

    def __init__(self, tokenizer: Tokenizer, tapo: TapoConfig | None) -> None:
        """Decode with `tokenizer`; `tapo` has the thresholds of Eq. 3, or is None if nothing is constructed."""
        self._pieces, self._tapo = TokenPieces(tokenizer.decode), tapo

    def make_query_records(self, record: StepRecord) -> list[Record]:
        """Return one record a query of the step, in query order; then those of pairs that earlier rollouts gave."""
        weights = collect_weights(record.rows, record.results)
        advantages = {row.uid: row.advantage for row in record.rows}
        own, earlier = _sort_by_query(record.experience.groups, record.experience.constructions)
        scored = _choose_scored(record.experience.groups)

        def make_pairs(constructions: Sequence[Construction]) -> list[Record]:
            return [
                self._make_pair(each, weights.get(each.pair.uid, []), advantages.get(each.pair.uid))
                for each in constructions
            ]

        records = []
        for group, constructions in zip(record.experience.groups, own, strict=True):
            rollouts = [self._make_rollout(r, advantages.get(r.uid), id(r) in scored) for r in group.rollouts]
            thresholds = {rollout.grade.correct_at for rollout in group.rollouts} - {None}
            zone = self._find_zone(group)
            records.append(
                {
                    **_describe_query(group.query),
                    "zone": zone.value if zone else None,
                    **({"correct_at": thresholds.pop()} if thresholds else {}),
                    "rollouts": rollouts,
                    "pairs": make_pairs(constructions),
                }
            )
        for constructions in earlier:
            query = constructions[0].pair.wrong.query
            pairs = make_pairs(constructions)
            records.append({**_describe_query(query), "zone": None, "earlier": True, "rollouts": [], "pairs": pairs})
        return records

    def make_trajectory_records(self, record: StepRecord, queries: Sequence[Record]) -> list[Record]:
        """Return every pair with its weights and advantage, and every ineligible query with its zone, in query order.

        queries: what `make_query_records` returned for the same step.
        """
        groups = {group.query.uid: group for group in record.experience.groups}
        records: list[Record] = []
        for query in queries:
            if query["zone"] not in (None, Zone.ELIGIBLE.value):
                records.append(make_skipped_record(groups[query["uid"]], query["zone"]))
            own = ("wrong_index", "right_index")
            records += [{key: value for key, value in pair.items() if key not in own} for pair in query["pairs"]]
        return records

    def _find_zone(self, group: Group) -> Zone | None:
        return classify_zone(group, self._tapo.n_pos, self._tapo.n_neg) if self._tapo else None

    def _make_rollout(self, rollout: Rollout, advantage: float | None, is_scored: bool) -> Record:
        completion, grade = rollout.completion, rollout.grade
        scored: Record = {}
        if is_scored and completion.logprobs is not None:
            logprobs = [round(each, LOGPROB_DECIMALS) for each in completion.logprobs]
            scored = {"logprobs": logprobs, "tokens": self._pieces.split(completion.token_ids)}
        return {
            "text": completion.text,
            "length": len(completion.token_ids),
            "reward": grade.reward,
            "correct": grade.correct,
            "graded": grade.graded,
            "outcome": grade.outcome,
            "extracted": grade.answer,
            "truncated": completion.truncated,
            "advantage": advantage,
            "detail": grade.detail,
            **scored,
        }

    def _make_pair(self, construction: Construction, weights: Sequence[float], advantage: float | None) -> Record:
        ids = construction.response_ids if weights else ()
        return {
            **make_trajectory_record(construction, self._pieces.split(ids), weights, advantage),
            "wrong_index": construction.pair.wrong.index,
            "right_index": construction.pair.right.index,
        }


def _choose_scored(groups: Sequence[Group]) -> set[int]:
    """Return the rollouts, by `id`, whose log-probabilities are stored."""
    chosen, tokens = set(), 0
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        length = len(rollout.completion.token_ids)
        if rollout.completion.logprobs is not None and tokens + length <= MOST_SCORED_TOKENS:
            chosen.add(id(rollout))
            tokens += length
    return chosen


def collect_weights(rows: Sequence[Row], results: Sequence[UpdateResult]) -> dict[str, list[float]]:
    """Return {uid: OTS weights of the response's tokens} of every constructed row, if the actor returned them.

    Rows are in the order of the updates.
    """
    weights: dict[str, list[float]] = {}
    if len(results) != 1 or results[0].token_weights is None:
        return weights  # with several updates a row has several weights, so there is no single number to show
    for i, row in enumerate(rows):
        if row.kind is Kind.CONSTRUCTED:
            weights[row.uid] = results[0].token_weights[i, len(row.prompt_ids) : row.length].tolist()
    return weights


def _describe_query(query: Query) -> Record:
    return {"uid": query.uid, "question": query.question, "answer": query.answer}


def _sort_by_query(
    groups: Sequence[Group], constructions: Sequence[Construction]
) -> tuple[list[list[Construction]], list[list[Construction]]]:
    """Return the constructions of each group, and those of rollouts that are in no group (pipeline: deferred).

    The query of an earlier rollout may be drawn again, so the rollout itself decides and not the query's uid.
    """
    places: Mapping[int, int] = {id(r): i for i, group in enumerate(groups) for r in group.rollouts}
    own: list[list[Construction]] = [[] for _ in groups]
    earlier: dict[str, list[Construction]] = {}
    for construction in constructions:
        wrong = construction.pair.wrong
        if id(wrong) in places:
            own[places[id(wrong)]].append(construction)
        else:
            earlier.setdefault(wrong.query.uid, []).append(construction)
    return own, list(earlier.values())
