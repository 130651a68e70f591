"""Record what decides a step's advantages, counters and loss, without any text: `groups.jsonl`, one object a line::

    {"step": 3, "kind": "group", "uid": "7", "prompt": 12, "rewards": [0.0, 1.0, ...], "outcomes": ["wrong", ...],
     "tokens": [17, 17, ...], "truncated": [], "advantages": [-1.0, 1.0, ...]}
    {"step": 3, "kind": "construction", "uid": "7_reflected/0", "prompt": 12, "wrong": 0, "right": 3, "dropped": null,
     "reward": 1.0, "outcome": "right", "tokens": 51, "kept_tokens": 9, "valid_tokens": 0, "kept_share": 0.5,
     "kept_steps": 1, "request": 80, "answer": 66, "decoded": 66, "advantage": 0.577, "weight_sum": 49.2}

Lists have one entry a rollout, in their order. `prompt`, `tokens`, `request`, `answer` and `decoded` (of the answer, by
the engine) are numbers of tokens; `truncated` names rollouts that the length limit cut off. `advantages` holds null
where a rollout is in no training row. `weight_sum` adds up the OTS weights (Eq. 7) of the tokens that carry loss; null
if the actor did not return them. Where they apply there are also `correct_at` (`Grade`), `left_out` (`Lesson`), and
`group_rewards` of a pair that an earlier step chose. `nemo-tapo replay` (report/step_replay.py) reads them back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from nemo_tapo.types import (
    REFLECTED_SUFFIX,
    Completion,
    Construction,
    Experience,
    Grade,
    Group,
    Lesson,
    Pair,
    Query,
    Rollout,
    Row,
    StepRecord,
)
from nemo_tapo.utils.errors import get_first_line
from nemo_tapo.utils.jsonl import Appender, Lines, Record, read_lines

GROUPS_FILE = "groups.jsonl"
GROUP, CONSTRUCTION = "group", "construction"  # kinds of lines


class GroupWriter:
    """Appends the records of a step to `groups.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self._lines = Appender(folder / GROUPS_FILE)

    @property
    def notes(self) -> Sequence[str]:
        """Sentences about a damaged file that was found."""
        return self._lines.notes

    def write(self, record: StepRecord) -> None:
        """Append a line a query and a line a construction."""
        self._lines.append({"step": record.step, **line} for line in make_group_records(record))

    def truncate_after(self, step: int) -> int:
        """Drop the steps after `step`, for a resumed run; return how many lines were dropped."""
        return self._lines.truncate_after(step)

    def close(self) -> None:
        self._lines.close()


def read_group_records(folder: Path) -> Lines:
    """Read `groups.jsonl`; `notes` names lines that are damaged."""
    return read_lines(folder / GROUPS_FILE, skip_damaged=True)


def make_group_records(record: StepRecord) -> list[Record]:
    """Make the lines of a step, groups first, both in the order of the experience."""
    rows = {row.uid: row for row in record.rows}
    sums = _sum_weights(record)
    left_out = {lesson.rollout.uid: lesson.left_out for lesson in record.experience.lessons}
    groups = {group.query.uid: group for group in record.experience.groups}
    lines = [_describe_group(group, rows, left_out) for group in record.experience.groups]
    for construction in record.experience.constructions:
        uid = construction.pair.uid
        own = groups.get(construction.pair.wrong.query.uid)
        lines.append(_describe_construction(construction, own, rows.get(uid), sums.get(uid)))
    return lines


def _describe_group(group: Group, rows: Mapping[str, Row], left_out: Mapping[str, str | None]) -> Record:
    rollouts = group.rollouts
    return {
        "kind": GROUP,
        "uid": group.query.uid,
        "prompt": len(group.query.prompt_ids),
        "rewards": [r.reward for r in rollouts],
        "outcomes": [r.grade.outcome for r in rollouts],
        "tokens": [len(r.completion.token_ids) for r in rollouts],
        "truncated": [r.index for r in rollouts if r.completion.truncated],
        "advantages": [rows[r.uid].advantage if r.uid in rows else None for r in rollouts],
        **_describe_threshold(rollouts[0].grade if rollouts else None),
        **({"left_out": [left_out.get(r.uid) for r in rollouts]} if left_out else {}),
    }


def _describe_construction(
    construction: Construction, own: Group | None, row: Row | None, weight_sum: float | None
) -> Record:
    """Return the line of one pair; `own` is this step's group of its query, if there is one."""
    pair, grade = construction.pair, construction.grade
    earlier = own is None or own.rollouts[pair.wrong.index] is not pair.wrong
    return {
        "kind": CONSTRUCTION,
        "uid": pair.uid,
        "prompt": len(pair.wrong.query.prompt_ids),
        "wrong": pair.wrong.index,
        "right": pair.right.index,
        "dropped": construction.dropped,
        "reward": construction.reward,
        "outcome": grade.outcome if grade else None,
        "tokens": len(construction.response_ids),
        "kept_tokens": construction.kept_tokens,
        "valid_tokens": construction.valid_tokens,
        "turn_tokens": construction.turn_tokens,
        "kept_share": construction.kept_share,
        "kept_steps": construction.kept_steps,
        "request": len(construction.request_ids),
        "answer": len(construction.answer_ids),
        "decoded": construction.decoded_tokens,
        "advantage": row.advantage if row else None,
        "weight_sum": weight_sum,
        **_describe_threshold(grade),
        **({"group_rewards": list(pair.group_rewards)} if earlier else {}),
    }


def _describe_threshold(grade: Grade | None) -> Record:
    return {} if grade is None or grade.correct_at is None else {"correct_at": grade.correct_at}


def _sum_weights(record: StepRecord) -> dict[str, float]:
    """Return {uid: sum of the row's OTS weights over the tokens with loss}; with several updates there are several."""
    if len(record.results) != 1 or record.results[0].token_weights is None:
        return {}
    weights = record.results[0].token_weights
    return {row.uid: float(weights[i, row.loss_columns].double().sum()) for i, row in enumerate(record.rows)}


def read_experience(lines: Iterable[Record], tell_fault: Callable[[str], None]) -> Experience:
    """Return the experience of a step from its lines; token ids are all 0, texts empty.

    A malformed line is left out and told: its uid and what is wrong with it.
    """
    groups: dict[str, Group] = {}
    lessons: list[Lesson] = []
    constructions: list[Construction] = []
    for line in lines:
        try:
            if line["kind"] == GROUP:
                group = _read_group(line)
                reasons = line.get("left_out", [])
                lessons += [Lesson(r, why) for r, why in zip(group.rollouts, reasons, strict=bool(reasons))]
                groups[line["uid"]] = group
            else:
                constructions.append(_read_construction(line, groups))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            tell_fault(f"the line of {line.get('uid')!r} is damaged ({get_first_line(error)})")
    return Experience(tuple(groups.values()), tuple(constructions), lessons=tuple(lessons))


def _read_group(line: Record) -> Group:
    query = Query(line["uid"], "", "", prompt_ids=_blank(line["prompt"]))
    columns = zip(line["rewards"], line["outcomes"], line["tokens"], line["advantages"], strict=True)
    return Group(
        query,
        tuple(
            Rollout(
                query,
                index,
                Completion(_blank(tokens), "", index in line["truncated"]),
                Grade(float(reward), str(outcome), correct_at=line.get("correct_at")),
            )
            for index, (reward, outcome, tokens, _) in enumerate(columns)
        ),
    )


def _read_construction(line: Record, groups: Mapping[str, Group]) -> Construction:
    name, _, index = line["uid"].rpartition("/")
    uid = name.removesuffix(REFLECTED_SUFFIX)
    grade = None if line["outcome"] is None else Grade(line["reward"], line["outcome"], None, line.get("correct_at"))
    return Construction(
        _read_pair(line, uid, int(index), groups.get(uid)),
        line["dropped"],
        kept_tokens=line["kept_tokens"],
        valid_tokens=line["valid_tokens"],
        turn_tokens=line.get("turn_tokens", 0),  # records of earlier versions have none
        kept_share=line["kept_share"],
        kept_steps=line["kept_steps"],
        response_ids=_blank(line["tokens"]),
        request_ids=_blank(line["request"]),
        answer_ids=_blank(line["answer"]),
        decoded_tokens=line["decoded"],
        grade=grade,
    )


def _read_pair(line: Record, uid: str, index: int, own: Group | None) -> Pair:
    """Return the pair of a construction: of this step's group, or of a step before whose rollouts are elsewhere."""
    if "group_rewards" not in line:
        if own is None:
            raise ValueError(f"the group of query {uid} is not there")
        rewards = tuple(r.reward for r in own.rollouts if r.grade.graded)
        return Pair(own.rollouts[line["wrong"]], own.rollouts[line["right"]], index, rewards)
    query = Query(uid, "", "", prompt_ids=_blank(line["prompt"]))
    wrong, right = (
        Rollout(query, line[name], Completion((), "", False), Grade(reward, name))
        for name, reward in (("wrong", 0.0), ("right", 1.0))
    )
    return Pair(wrong, right, index, tuple(line["group_rewards"]))


def _blank(tokens: int) -> tuple[int, ...]:
    """Return so many token ids: only their number matters."""
    if not isinstance(tokens, int) or tokens < 0:
        raise ValueError(f"{tokens!r} is no number of tokens")
    return (0,) * tokens
