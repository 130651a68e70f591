"""Define the types that travel from a query to a training row.

Letters used in names and docstrings throughout the package:
P queries in a step, K rollouts a query, B rows, S padded row length, T a response's tokens, V vocabulary.

One worked example, followed through every type below::

    Query       uid "7"  question "47+38=?"  answer "85"  prompt_ids <user>47+38=?</user><assistant>
    Rollout     uid "7/0"  text "47+38=75\n\\boxed{75}"  reward 0.0      (K = 8 of them form a Group)
    Rollout     uid "7/3"  text "47+38=85\n\\boxed{85}"  reward 1.0
    Pair        wrong "7/0", reference "7/3"                              (Eq. 3)
    Construction  analysis "The carry was forgotten."
                  reconstruction "47+38=75\nWait, the carry was forgotten: 47+38=85\n\\boxed{85}"
                  kept "47+38=75\n"  -> the first 9 tokens are the rollout's own token ids
    Row         group "7_reflected"  kind CONSTRUCTED  prompt_ids the *query's*, response_ids the reconstruction's
    Batch       the rows of one update, right-padded, with one advantage and one loss coefficient a row
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

REFLECTED_SUFFIX = "_reflected"  # section 3.4: group `<uid>` keeps the rollouts, `<uid>_reflected` the constructions
INSTRUCTION_PREFIX = "ift-"  # of the rows of `tapo.ift_weight`: `ift-<uid of the pair>`


class Kind(str, Enum):
    """Where a training row comes from; decides its loss term (Eq. 6) and whether OTS weighs it (Eq. 7).

    >>> Kind("constructed") is Kind.CONSTRUCTED
    True
    """

    ORIGINAL = "original"  # a rollout of the policy
    CONSTRUCTED = "constructed"  # a micro-reflective trajectory
    EXAMPLE = "example"  # a supervised example (pre-training, cold start; the IFT term beside RL)


@dataclass(frozen=True)
class Query:
    """One problem of the task.

    >>> Query("7", "47+38=?", "85", prompt="Compute 47+38=?").user_text
    'Compute 47+38=?'
    """

    uid: str  # unique in its data set; group key of its rollouts
    question: str  # the problem alone, as the synthesis prompt quotes it
    answer: str  # the gold answer as the verifier wants it
    prompt_ids: tuple[int, ...] = ()  # `user_text` as the policy reads it, chat template applied
    prompt: str = ""  # the task's template filled in, where it has one
    solution: str = ""  # a right solution written out, where the task has one (opsd.privileged: solution)
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)  # as read, for reward functions

    @property
    def user_text(self) -> str:
        """The user's message: the prompt, or the question itself where the task has no template."""
        return self.prompt or self.question


@dataclass(frozen=True)
class SetAside:
    """A row of data that is not used.

    >>> SetAside("train-17", "answer_missing", "answer is empty").reason
    'answer_missing'
    """

    uid: str  # the row's name; `<set>-<number>` where it has none
    reason: str  # counted: "duplicate", "answer_missing", ...
    detail: str = ""  # what exactly was wrong with this row, for a person
    question: str = ""


@dataclass(frozen=True)
class Provenance:
    """Where a set of queries comes from. Each of its rows is either a query or set aside.

    >>> Provenance("data/train.jsonl", rows=3, set_aside=(SetAside("1", "duplicate"),)).rows
    3
    """

    source: str  # "data/train.jsonl", "openai/gsm8k at 740312add88f..., test", "generated"
    rows: int
    set_aside: tuple[SetAside, ...] = ()
    licence: str | None = None  # as the publisher states it
    notes: tuple[str, ...] = ()  # sentences for the user


@dataclass(frozen=True)
class Request:
    """One generation for the engine.

    >>> Request("7/0", prompt_ids=(2, 52, 3), seed=11, max_tokens=96).temperature
    1.0
    """

    uid: str
    prompt_ids: tuple[int, ...]
    seed: int  # from (run seed, step, uid): the completion does not depend on what else is in flight
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    logprobs: bool = False  # also return the log-probability of every sampled token
    stop: str | None = None  # a text that ends the completion, as EOS does; it is the end of its text


@dataclass(frozen=True)
class Completion:
    """What the engine sampled for one request.

    >>> Completion(token_ids=(56, 53, 1), text="85", truncated=False).logprobs is None
    True
    """

    token_ids: tuple[int, ...]  # without the prompt; ends with EOS, or with the token that completes `Request.stop`
    text: str  # decoded, special tokens left out
    truncated: bool  # stopped by the length limit, not by EOS or `Request.stop`
    logprobs: tuple[float, ...] | None = None  # nats, one a token, of the distribution sampled from


def is_correct(reward: float, correct_at: float | None = None) -> bool:
    """Return True if a response with this reward counts as correct (Eq. 3): the only place that decides it.

    `correct_at` is `tapo.correct_at`: the least reward that counts; None: any above 0, as in the paper.

    >>> is_correct(0.5), is_correct(0.5, 0.8), is_correct(0.8, 0.8), is_correct(0.0)
    (True, False, True, False)
    """
    return reward > 0 if correct_at is None else reward >= correct_at


RIGHT, WRONG = "right", "wrong"  # outcomes of responses that are correct, and that are not for no other reason
NO_REWARD = "no_reward_"  # outcomes that begin so: a reward function gave none, so that 0 stands for nothing


def is_graded(outcome: str) -> bool:
    """Return False for an outcome that says that there is no reward.

    >>> is_graded("wrong"), is_graded("no_reward_timeout")
    (True, False)
    """
    return not outcome.startswith(NO_REWARD)


@dataclass(frozen=True)
class Grade:
    """The task's verdict. Wherever a reward is written to a file, `correct_at` is beside it unless it is None.

    >>> Grade(reward=1.0, outcome="right", answer="85").outcome
    'right'
    >>> Grade(0.5, "wrong", correct_at=0.8).correct
    False
    """

    reward: float  # 1.0 correct, 0.0 not; a reward function may give anything between
    outcome: str  # "right" if and only if it is correct; "wrong", "no_answer", ... : counted in the metrics
    answer: str | None = None  # what was extracted
    correct_at: float | None = None  # see `is_correct`
    detail: str = ""  # for a person: why there is no reward

    @property
    def correct(self) -> bool:
        """True if the response counts as correct."""
        return is_correct(self.reward, self.correct_at)

    @property
    def graded(self) -> bool:
        """False if a reward function gave no reward: the response is neither right nor wrong."""
        return is_graded(self.outcome)


def settle_grade(grade: Grade, correct_at: float | None) -> Grade:
    """Return the grade under the threshold `correct_at`, its outcome "right" if and only if it is correct.

    >>> settle_grade(Grade(0.5, "right"), 0.8)
    Grade(reward=0.5, outcome='wrong', answer=None, correct_at=0.8, detail='')
    """
    settled = replace(grade, correct_at=correct_at)
    if settled.correct == (settled.outcome == RIGHT):
        return settled
    return replace(settled, outcome=RIGHT if settled.correct else WRONG)


@dataclass(frozen=True)
class Rollout:
    """One graded response of the policy to one query.

    >>> query = Query("7", "47+38=?", "85")
    >>> rollout = Rollout(query, 0, Completion((55, 53, 1), "75", False), Grade(0.0, "wrong", "75"))
    >>> rollout.uid, rollout.reward
    ('7/0', 0.0)
    """

    query: Query
    index: int  # 0 .. K-1
    completion: Completion
    grade: Grade

    @property
    def uid(self) -> str:
        """`<query>/<index>`."""
        return f"{self.query.uid}/{self.index}"

    @property
    def reward(self) -> float:
        """The verifier's reward."""
        return self.grade.reward

    @property
    def correct(self) -> bool:
        """True if the response counts as correct (`is_correct`)."""
        return self.grade.correct

    @property
    def text(self) -> str:
        """The response as text."""
        return self.completion.text


@dataclass(frozen=True)
class Group:
    """The K rollouts of one query, in index order.

    >>> query = Query("7", "47+38=?", "85")
    >>> rollouts = [Rollout(query, k, Completion((1,), "", False), Grade(float(k), "")) for k in range(2)]
    >>> [r.uid for r in Group(query, tuple(rollouts)).correct]
    ['7/1']
    """

    query: Query
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> list[float]:
        """The rewards of the rollouts that have one."""
        return [r.reward for r in self.rollouts if r.grade.graded]

    @property
    def correct(self) -> tuple[Rollout, ...]:
        """The rollouts that count as correct, P of Eq. 3."""
        return tuple(r for r in self.rollouts if r.correct)

    @property
    def incorrect(self) -> tuple[Rollout, ...]:
        """The graded rollouts that do not, N of Eq. 3."""
        return tuple(r for r in self.rollouts if r.grade.graded and not r.correct)


@dataclass(frozen=True)
class Pair:
    """A wrong rollout and the right one that guides its correction (section 3.3.1).

    >>> query = Query("7", "47+38=?", "85")
    >>> wrong, right = (Rollout(query, k, Completion((1,), "", False), Grade(float(k), "")) for k in range(2))
    >>> Pair(wrong, right, index=0).uid
    '7_reflected/0'
    """

    wrong: Rollout
    right: Rollout
    index: int  # 0 .. m-1 within its query
    group_rewards: tuple[float, ...] = ()  # of all graded rollouts of its query

    @property
    def uid(self) -> str:
        """`<query>_reflected/<index>`."""
        return f"{self.wrong.query.uid}{REFLECTED_SUFFIX}/{self.index}"


@dataclass(frozen=True)
class Construction:
    """The outcome of one pair. `dropped` is None exactly if it gives a training row.

    >>> query = Query("7", "47+38=?", "85")
    >>> wrong, right = (Rollout(query, k, Completion((1,), "", False), Grade(float(k), "")) for k in range(2))
    >>> Construction(Pair(wrong, right, 0), dropped="truncated").correct
    False
    """

    pair: Pair
    dropped: str | None  # a reason of algorithms.reflection.DROP_REASONS, or None
    raw: str = ""  # the policy's whole answer to the synthesis prompt
    analysis: str = ""
    reconstruction: str = ""
    kept_chars: int = 0  # reconstruction[:kept_chars] is the wrong response's own text, token-exact
    kept_tokens: int = 0  # response_ids[:kept_tokens] are the wrong rollout's own token ids
    valid_tokens: int = 0  # of the kept ones, those before the last step, which holds the error
    kept_share: float = 0.0  # kept_chars / len(wrong response), in [0, 1]
    response_ids: tuple[int, ...] = ()  # the training row's response: kept ids + newly encoded ids + EOS
    request_ids: tuple[int, ...] = ()  # the synthesis prompt as the policy read it
    answer_ids: tuple[int, ...] = ()  # `raw` as it was sampled, a prefilled prefix included
    decoded_tokens: int = 0  # of them, those that the engine decoded
    grade: Grade | None = None
    kept_steps: int = 0  # whole steps of the wrong response that the reconstruction keeps
    turn_tokens: int = 0  # behind the kept ones, those of the first new step, which turns ("Wait, ...")

    @property
    def reward(self) -> float:
        """The verifier's reward; 0 for a dropped one."""
        return self.grade.reward if self.grade else 0.0

    @property
    def correct(self) -> bool:
        """True if it gives a row whose answer counts as correct (`is_correct`)."""
        return self.dropped is None and self.grade is not None and self.grade.correct


@dataclass(frozen=True)
class Lesson:
    """What a teacher is told to judge one rollout by (OPSD). `left_out` is None exactly if it gives a training row.

    >>> rollout = Rollout(Query("7", "47+38=?", "85"), 0, Completion((1,), "", False), Grade(0.0, ""))
    >>> Lesson(rollout, left_out="none_correct").teacher_prompt_ids
    ()
    """

    rollout: Rollout
    left_out: str | None  # a reason of algorithms.opsd.LEFT_OUT_REASONS, or None
    reference: str = ""  # the uid of the rollout that the teacher is told; "" where it is the data's solution
    teacher_prompt_ids: tuple[int, ...] = ()  # the privileged prompt as the teacher reads it


@dataclass(frozen=True)
class Experience:
    """All that one step collected, in query order (never in order of arrival).

    >>> Experience(metrics={"time/rollouts": 1.5}).groups
    ()
    """

    groups: tuple[Group, ...] = ()
    constructions: tuple[Construction, ...] = ()
    examples: tuple[Row, ...] = ()  # supervised rows (Kind.EXAMPLE)
    lessons: tuple[Lesson, ...] = ()  # one a rollout, in the order of the groups (OPSD)
    waiting: tuple[Pair, ...] = ()  # chosen from these groups, to be constructed in the next step (pipeline: deferred)
    replaced: tuple[Group, ...] = ()  # sampled and not trained on: equal rewards (rollout.dynamic_sampling)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One training row. The loss covers `response_ids` only; `prompt_ids` is their context.

    >>> row = Row("7_reflected/0", "7_reflected", Kind.CONSTRUCTED, (2, 52, 3), (55, 53, 1), reward=1.0)
    >>> row.length, row.query_uid
    (6, '7')
    """

    uid: str
    group: str  # advantage group: the query's uid, or `<uid>_reflected`
    kind: Kind
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    reward: float = 0.0
    advantage: float = 0.0
    # log-probabilities in the *policy's own context* as the engine reported them; never set on constructed rows,
    # which the engine sampled in the synthesis prompt's context
    generation_logprobs: tuple[float, ...] | None = None
    masked_tokens: int = 0  # the first so many response tokens carry no loss (tapo.prefix_loss)
    masked_end: int = 0  # nor do the last so many
    teacher_prompt_ids: tuple[int, ...] | None = None  # the teacher reads the response after these (OPSD)

    def __post_init__(self) -> None:
        if self.kind is Kind.CONSTRUCTED and self.generation_logprobs is not None:
            raise AssertionError("a constructed row must not carry the synthesis context's log-probabilities")

    @property
    def length(self) -> int:
        """Prompt and response, tokens."""
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def loss_columns(self) -> slice:
        """Of prompt and response, the tokens with loss."""
        return slice(len(self.prompt_ids) + self.masked_tokens, self.length - self.masked_end)

    @property
    def loss_tokens(self) -> int:
        """How many tokens carry loss."""
        return len(self.response_ids) - self.masked_tokens - self.masked_end

    @property
    def query_uid(self) -> str:
        """The uid of the query that the row belongs to."""
        return self.uid.removeprefix(INSTRUCTION_PREFIX).rsplit("/", 1)[0].removesuffix(REFLECTED_SUFFIX)


@dataclass(frozen=True)
class Batch:
    """Rows as tensors, right-padded. Field names are NeMo-RL's where NeMo-RL has the field.

    Column i of every [B, S] tensor belongs to token i (column 0 is 0), as in NeMo-RL; the logits that predict token i
    are in column i - 1. batch.collate makes a Batch of rows and shows an example.
    """

    input_ids: Tensor  # [B, S] int64
    input_lengths: Tensor  # [B] int64, prompt + response
    token_mask: Tensor  # [B, S] float32, 1 on response tokens
    sample_mask: Tensor  # [B] float32, 0 on rows that only fill the batch up
    advantages: Tensor  # [B] float32
    loss_coef: Tensor  # [B] float32: weight of each of the row's tokens, normaliser included (Eq. 6, 1/T)
    constructed: Tensor  # [B] bool: OTS applies (Eq. 7)
    supervised: Tensor | None = None  # [B] bool: examples beside rollouts (tapo.ift_weight); None: no such rows
    prev_logprobs: Tensor | None = None  # [B, S] nats, log pi_old; None: rho = 1, taken from the forward itself
    reference_policy_logprobs: Tensor | None = None  # [B, S] nats
    reference_mask: Tensor | None = None  # [B] float32: rows whose reference log-probabilities are known
    generation_logprobs: Tensor | None = None  # [B, S] nats, the engine's, original rows only
    generation_mask: Tensor | None = None  # [B] float32: rows whose generation_logprobs are known
    teacher_input_ids: Tensor | None = None  # [B, S'] int64: the same responses after the teacher's prompts (OPSD)
    teacher_input_lengths: Tensor | None = None  # [B] int64
    teacher_logprobs: Tensor | None = None  # [B, S] nats of each response token, as the teacher has it

    @property
    def rows(self) -> int:
        """B, the number of rows."""
        return int(self.input_ids.shape[0])

    def as_dict(self) -> dict[str, Tensor]:
        """Return the mapping that NeMo-RL's workers take: {field name: tensor}, without absent fields."""
        pairs = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value for name, value in pairs if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Batch:
        """Make a batch of what `as_dict` returned; keys that are no field are ignored (NeMo-RL adds some)."""
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})

    def select(self, index: Tensor | list[int]) -> Batch:
        """Return the rows `index`, in the order given, cut to their longest length."""
        import torch

        index = torch.as_tensor(index, dtype=torch.long)

        def picked(name: str, value: Tensor) -> Tensor:
            if value.ndim == 1:
                return value[index]
            lengths = self.teacher_input_lengths if name == "teacher_input_ids" else self.input_lengths
            assert lengths is not None
            return value[index][:, : int(lengths[index].max()) if index.numel() else 0]

        return replace(self, **{name: picked(name, value) for name, value in self.as_dict().items()})


@dataclass(frozen=True)
class UpdateResult:
    """What one optimizer step reports.

    >>> UpdateResult(loss=-0.02, grad_norm=0.4, learning_rate=1e-6, metrics={"entropy": 0.7}).grad_norm
    0.4
    """

    loss: float
    grad_norm: float  # before clipping, global L2
    learning_rate: float
    metrics: Mapping[str, float]  # reduced over micro-batches and ranks: see metrics.reduce_parts
    token_weights: Tensor | None = None  # [B, S] float32, OTS weights of constructed rows (else 1), if at hand


@dataclass(frozen=True)
class StepRecord:
    """What one step of the loop gave, to be recorded.

    >>> StepRecord(step=1, metrics={"loss": 0.1}, experience=Experience(), rows=(), results=()).metrics["loss"]
    0.1
    """

    step: int  # steps of the loop done: the first is 1
    metrics: Mapping[str, float]  # by key of metrics.py
    experience: Experience
    rows: Sequence[Row]  # as `Algorithm.make_rows` returned them
    results: Sequence[UpdateResult]  # one an update
