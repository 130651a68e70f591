"""Make the records of one step, a query at a time: a step's tokens are many, and its records several times as large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from nemo_tapo.config.sections import TapoConfig
from nemo_tapo.equations.selection import Zone, classify_zone
from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.tracking.records import (
    get_outcome,
    make_skipped_record,
    make_threshold_entry,
    make_trajectory_record,
    take_fair_share,
)
from nemo_tapo.types import Construction, Group, Kind, Query, Rollout, Row, StepRecord, UpdateResult
from nemo_tapo.utils.jsonl import Record
from nemo_tapo.utils.token_text import TokenPieces

# In a step, in query order: of so many tokens of rollouts the log-probabilities are stored, and of so many of pairs the
# weights.
MOST_SCORED_TOKENS = 2_000_000
LOGPROB_DECIMALS = 4  # of the stored ones: they are looked at, not computed with


class StepRecords:
    """Makes the records of a run's steps; rollout_store.py and records.py describe them."""

    def __init__(self, tokenizer: Tokenizer, tapo: TapoConfig | None) -> None:
        """Decode with `tokenizer`; `tapo` has the thresholds of Eq. 3, or is None if nothing is constructed."""
        self._pieces, self._tapo = TokenPieces(tokenizer.decode), tapo

    def make_query_records(self, record: StepRecord) -> Iterator[Record]:
        """Yield one record a query of the step, in query order; then those of pairs that earlier rollouts gave."""
        trained = TrainedRows(record.rows, record.results)
        own, earlier = _sort_by_query(record.experience.groups, record.experience.constructions)
        scored = _take_within(
            (rollout, len(rollout.completion.token_ids))
            for group in record.experience.groups
            for rollout in group.rollouts
            if rollout.completion.logprobs is not None
        )
        weighted = _take_within((each, len(each.response_ids)) for pairs in own + earlier for each in pairs)
        for group, constructions in zip(record.experience.groups, own, strict=True):
            rollouts = [self._make_rollout(r, trained.get_advantage(r.uid), id(r) in scored) for r in group.rollouts]
            thresholds = {rollout.grade.correct_at for rollout in group.rollouts} - {None}
            zone = self._find_zone(group)
            yield {
                **_describe_query(group.query),
                "zone": zone.value if zone else None,
                **({"correct_at": thresholds.pop()} if thresholds else {}),
                "rollouts": rollouts,
                "pairs": [self._make_indexed_pair(each, trained, id(each) in weighted) for each in constructions],
            }
        for constructions in earlier:
            query = constructions[0].pair.wrong.query
            pairs = [self._make_indexed_pair(each, trained, id(each) in weighted) for each in constructions]
            yield {**_describe_query(query), "zone": None, "earlier": True, "rollouts": [], "pairs": pairs}

    def make_trajectory_records(self, record: StepRecord, limit: int | None = None) -> tuple[list[Record], int]:
        """Return every pair with its weights and advantage, and every ineligible query with its zone, in query order.

        At most `limit` of them (None: all): the outcomes take turns, so that a rare one (a drop, say) is not crowded
        out. Also returns how many are left out.
        """
        own, earlier = _sort_by_query(record.experience.groups, record.experience.constructions)
        subjects: list[tuple[Group, str] | Construction] = []
        for group, constructions in zip(record.experience.groups, own, strict=True):
            zone = self._find_zone(group)
            if zone is not None and zone is not Zone.ELIGIBLE:
                subjects.append((group, zone.value))
            subjects += constructions
        subjects += [construction for constructions in earlier for construction in constructions]
        kept = subjects if limit is None else take_fair_share(subjects, limit, _name_outcome)
        trained = TrainedRows(record.rows, record.results)
        records = [
            self._make_pair(each, trained) if isinstance(each, Construction) else make_skipped_record(*each)
            for each in kept
        ]
        return records, len(subjects) - len(kept)

    def _find_zone(self, group: Group) -> Zone | None:
        return classify_zone(group, self._tapo.n_pos, self._tapo.n_neg) if self._tapo else None

    def _make_rollout(self, rollout: Rollout, advantage: float | None, with_scores: bool) -> Record:
        completion, grade = rollout.completion, rollout.grade
        scored: Record = {}
        if with_scores and completion.logprobs is not None:
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

    def _make_pair(self, construction: Construction, trained: TrainedRows, with_weights: bool = True) -> Record:
        weights = trained.get_weights(construction.pair.uid) if with_weights else []
        ids = construction.response_ids if weights else ()
        advantage = trained.get_advantage(construction.pair.uid)
        return make_trajectory_record(construction, self._pieces.split(ids), weights, advantage)

    def _make_indexed_pair(self, construction: Construction, trained: TrainedRows, with_weights: bool) -> Record:
        return {
            **self._make_pair(construction, trained, with_weights),
            "wrong_index": construction.pair.wrong.index,
            "right_index": construction.pair.right.index,
        }


def _take_within(sized: Iterable[tuple[Rollout | Construction, int]]) -> set[int]:
    """Return, by `id`, those that have at most MOST_SCORED_TOKENS together; each comes with its number of tokens."""
    chosen, tokens = set(), 0
    for each, length in sized:
        if tokens + length <= MOST_SCORED_TOKENS:
            chosen.add(id(each))
            tokens += length
    return chosen


class TrainedRows:
    """Looks up what the step's rows were trained with, by uid."""

    def __init__(self, rows: Sequence[Row], results: Sequence[UpdateResult]) -> None:
        """Take the rows in the order of the updates."""
        self._rows = {row.uid: (index, row) for index, row in enumerate(rows)}
        # with several updates a row has several weights, so there is no single number to show
        self._weights = results[0].token_weights if len(results) == 1 else None

    def get_advantage(self, uid: str) -> float | None:
        """Return a row's advantage; None if there is no such row."""
        return self._rows[uid][1].advantage if uid in self._rows else None

    def get_weights(self, uid: str) -> list[float]:
        """Return the OTS weights of a constructed row's response, one a token; none if the actor returned none."""
        if self._weights is None or uid not in self._rows:
            return []
        index, row = self._rows[uid]
        if row.kind is not Kind.CONSTRUCTED:
            return []
        weights: list[float] = self._weights[index, len(row.prompt_ids) : row.length].tolist()
        return weights


def _name_outcome(subject: tuple[Group, str] | Construction) -> str:
    """Return what `get_outcome` says of the record that will be made."""
    if not isinstance(subject, Construction):
        return get_outcome({"kind": "skipped", "zone": subject[1]})
    threshold = make_threshold_entry(subject.grade)
    return get_outcome({"kind": "pair", "dropped": subject.dropped, "reward": subject.reward, **threshold})


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
