"""Name every number that a step reports, and add up those that micro-batches and ranks report in parts.

A step's metrics are a mapping from key to number: one line of `metrics.jsonl`, one point of each TensorBoard curve.
With several updates a step, what the update reports is the mean over them.
Each key is a constant here, with its unit and its meaning; the table of docs/metrics.md is written from them by
`python tools/write_docs.py`. A family of keys ends in a name that is known at run time, as `drop_count("truncated")`.

    >>> REWARD_MEAN
    'reward/mean'
    >>> drop_count("truncated")
    'tapo/dropped/truncated'
    >>> DESCRIPTIONS["grad_norm"].unit
    'L2 norm'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_tapo.types import UpdateResult


@dataclass(frozen=True)
class Description:
    """What a metric is.

    >>> Description("tokens", "response tokens of the rollouts").unit
    'tokens'
    """

    unit: str
    meaning: str


DESCRIPTIONS: dict[str, Description] = {}  # by key, in the order of the table; a family stands under `<prefix><name>`


def _key(key: str, unit: str, meaning: str) -> str:
    """Register a key with its description and return it."""
    assert key not in DESCRIPTIONS, f"{key} is described twice"
    DESCRIPTIONS[key] = Description(unit, meaning)
    return key


def _family(prefix: str, name: str, unit: str, meaning: str) -> str:
    """Register a family of keys that share `prefix`, and return the prefix."""
    _key(f"{prefix}<{name}>", unit, meaning)
    return prefix


# ---- rollouts (algorithms/grpo.py) -----------------------------------------------------------------------------------

REWARD_MEAN = _key("reward/mean", "reward", "mean reward of the rollouts that have one (docs/tasks.md)")
RESPONSE_LENGTH_MEAN = _key("response_length/mean", "tokens", "mean length of a rollout")
RESPONSE_LENGTH_MAX = _key("response_length/max", "tokens", "longest rollout")
RESPONSE_LENGTH_TRUNCATED = _key("response_length/truncated", "share", "rollouts that the length limit cut off")
SAMPLED_QUERIES = _key(
    "queries/sampled", "queries", "queries sampled (`rollout.dynamic_sampling`): those of the step + replaced"
)
REPLACED_PREFIX = _family(
    "queries/replaced/", "reason", "queries", "queries replaced: all rollouts right, all wrong, or too few rewards"
)
UNIFORM_KEPT = _key("queries/uniform_kept", "queries", "queries of equal rewards that stay: no more might be sampled")
MASKED_ROLLOUTS = _key(
    "rollouts/masked", "rollouts", "truncated rollouts that give no training row (`rollout.overlong: mask`)"
)
ROLLOUT_LAG = _key(
    "rollouts/lag",
    "steps",
    "updates of a step between the weights that sampled the rollouts and those that are trained on them; only with "
    "`rollout.lag: 1`",
)
UNIFORM_GROUPS_SHARE = _key("groups/uniform", "share", "queries whose rollouts all have the same reward: no signal")
GRADE_PREFIX = _family("grade/", "outcome", "rollouts", "rollouts with this verdict of the task")
ROWS = _key("rows", "rows", "training rows of the step")
TOKENS_GENERATED = _key("tokens/generated", "tokens", "response tokens of the rollouts")
TOKENS_TRAINED = _key("tokens/trained", "tokens", "response tokens of the training rows, those without loss included")

# ---- constructions (algorithms/tapo.py, algorithms/synthesis.py) -----------------------------------------------------

ELIGIBLE = _key("tapo/eligible", "queries", "queries with enough right and enough wrong rollouts (Eq. 3)")
MASTERED = _key("tapo/mastered", "queries", "queries with fewer than n_neg wrong rollouts")
BEYOND = _key("tapo/beyond", "queries", "queries with fewer than n_pos right rollouts")
PAIRS = _key("tapo/pairs", "pairs", "pairs of a wrong and a right rollout; parsed + dropped")
WAITING = _key("tapo/waiting", "pairs", "pairs that the next step constructs and counts (`pipeline: deferred`)")
PARSED = _key("tapo/parsed", "constructions", "synthesis answers that give a training row")
CORRECT = _key("tapo/correct", "constructions", "parsed constructions whose final answer is right")
DROP_PREFIX = _family("tapo/dropped/", "reason", "pairs", "pairs that give no training row, by reason")
KEPT_SHARE = _key("tapo/kept_share", "share", "mean share of the wrong response that a parsed construction keeps")
KEPT_STEPS = _key("tapo/kept_steps", "steps", "mean number of whole steps of the wrong response that it keeps")
TOKENS_SYNTHESISED = _key("tokens/synthesised", "tokens", "tokens sampled in answer to synthesis prompts")
CONSTRUCTED_ROWS = _key("tapo/rows", "rows", "constructed training rows")
REMOVED_NEGATIVES = _key(
    "tapo/removed_negatives",
    "constructions",
    "parsed constructions left out of training: wrong ones, where a switch asks",
)
REFLECTION_GROUPS = _key("tapo/groups", "groups", "reflection groups, one a query with constructed rows")
MIXED_REFLECTION_GROUPS = _key("tapo/mixed_groups", "groups", "reflection groups with different rewards")
SINGLE_REFLECTION_GROUPS = _key("tapo/single_groups", "groups", "reflection groups of one row")
UNIFORM_REFLECTION_GROUPS = _key(
    "tapo/uniform_groups", "groups", "reflection groups of two or more rows whose advantages are all 0"
)
UNIFORM_REFLECTION_SHARE = _key("tapo/uniform_share", "share", "uniform_groups / groups; 0 without groups")
INSTRUCTION_ROWS = _key("tapo/ift_rows", "rows", "rows that answer the synthesis prompt itself (tapo.ift_weight)")

# ---- self-distillation (algorithms/opsd.py, losses/distillation.py) --------------------------------------------------

OPSD_ROLLOUTS = _key("opsd/rollouts", "rollouts", "rollouts; rows + left_out")
OPSD_ROWS = _key("opsd/rows", "rows", "rollouts that are trained on")
LEFT_OUT_PREFIX = _family("opsd/left_out/", "reason", "rollouts", "rollouts without a teacher's prompt, by reason")
OPSD_DIVERGENCE = _key(
    "opsd/divergence", "nats a token", "divergence between teacher and student, after opsd.entry_clip"
)
OPSD_CLIPPED_SHARE = _key("opsd/clipped_share", "share", "vocabulary entries that opsd.entry_clip bounds")
OPSD_ADVANTAGE = _key("opsd/advantage", "nats a token", "log-probability of the teacher minus that of the student")

# ---- the update (losses/, the optimizer) -----------------------------------------------------------------------------

LOSS = _key("loss", "loss", "loss of an update, every term and normaliser included (Eq. 6)")
LOSS_ORIGINAL = _key("loss/original", "loss", "the part of the rollouts")
LOSS_REFLECTION = _key("loss/reflection", "loss", "the part of the constructed rows, lambda included")
LOSS_IFT = _key("loss/ift", "loss", "the part of the rows that answer the synthesis prompt")
NLL = _key("nll", "nats a token", "negative log-likelihood of the rows (supervised stages, reflective_sft)")
NLL_IFT = _key("nll/ift", "nats a token", "the same of the rows that answer the synthesis prompt")
GRAD_NORM = _key("grad_norm", "L2 norm", "norm of the gradient before clipping")
LEARNING_RATE = _key("lr", "rate", "learning rate of the step's last update")
RATIO_DEVIATION = _key("ratio_deviation", "ratio", "mean |rho - 1|; 0 with one update a batch")
CLIP_FRACTION = _key(
    "clip_fraction",
    "share",
    "tokens at which a bound on the ratio decides (Eq. 2: the clipped branch is the smaller)",
)
OTS_WEIGHT_MEAN = _key("tapo/ots_weight_mean", "weight", "mean weight of constructed tokens (Eq. 7)")
CONSTRUCTED_LOGPROB = _key("tapo/logprob_mean", "nats a token", "mean log-probability of constructed tokens")
ENTROPY = _key("entropy", "nats a token", "entropy of the policy on its own rollouts")
KL_REF = _key(
    "kl_ref",
    "nats a token",
    "k3 estimate of the KL to the reference policy, on the rollouts that were scored (loss.kl_rows)",
)
ENGINE_GAP = _key(
    "engine_gap",
    "nats a token",
    "mean |log p of the actor - log p of the engine|, on the rollouts that are compared (rollout.logprobs); with "
    "`rollout.lag: 1` an update lies between the two",
)
IMPORTANCE_WEIGHT = _key(
    "sampling_importance_ratio",
    "ratio",
    "mean weight of the rollouts' tokens for what the engine sampled with other probabilities, pi_old / pi_engine "
    "(`rollout.lag: 1`; NeMo-RL: use_importance_sampling_correction)",
)
TOKEN_MULT_PROB_ERROR = _key(
    "token_mult_prob_error", "ratio", "NeMo-RL's measure of the same: mean exp of the difference"
)
GEN_KL_ERROR = _key("gen_kl_error", "nats a token", "NeMo-RL's measure of the same: k3 estimate of the KL")
VALID_SAMPLES = _key("num_valid_samples", "rows", "rows of an update that are in the loss (NeMo-RL's workers need it)")

# ---- validation between steps (evaluation/validation.py) -------------------------------------------------------------

VALIDATION_PREFIX = "validation/"
VALIDATION_ACCURACY = _key(
    f"{VALIDATION_PREFIX}accuracy",
    "share",
    "right responses to held-out problems, mean over the sets (evaluation.every)",
)
VALIDATION_BEST_STEP = _key(f"{VALIDATION_PREFIX}best_step", "step", "first step with the best of these so far")
_key(f"{VALIDATION_PREFIX}<set>/accuracy", "share", "right responses to the problems of one set")
_key(f"{VALIDATION_PREFIX}<set>/length", "tokens", "mean length of these responses")
_key(f"{VALIDATION_PREFIX}<set>/truncated", "share", "of them, those that the length limit cut off")

# ---- time (train.py, algorithms/grpo.py, the runtimes) ---------------------------------------------------------------

TIME_STEP = _key(
    "time/step", "s", "from the first request until the engine has the weights; records and checkpoint come after"
)
TIME_COLLECT = _key(
    "time/collect",
    "s",
    "rollouts and constructions, until the last grade (supervised: reading the examples); with `rollout.lag: 1` those "
    "of the next step, as far as the update does not hide them",
)
TIME_ROLLOUTS = _key(
    "time/rollouts", "s", "until the last rollout is graded; with `rollout.lag: 1` beside the update of the step before"
)
TIME_SYNTHESIS = _key("time/synthesis", "s", "synthesis that the rollouts do not hide")
TIME_GRADING = _key("time/grading", "s", "waiting for grades, added up over all that wait at once")
TIME_TEACHER = _key("time/teacher", "s", "log-probabilities of the teacher (opsd.divergence: sampled)")
TIME_REFERENCE = _key("time/reference", "s", "log-probabilities of the reference policy")
TIME_OLD_LOGPROBS = _key(
    "time/old_logprobs", "s", "log-probabilities of the policy that sampled (several updates a batch)"
)
TIME_UPDATE = _key("time/update", "s", "forward, backward and optimizer step of every update")
TIME_VALIDATION = _key("time/validation", "s", "validation after the step, which time/step leaves out")
TIME_WEIGHTS = _key("time/weights", "s", "handing the weights to the engine")
NEMO_TIME_PREFIX = _family("time/nemo_rl/", "phase", "s", "NeMo-RL's changes between generation, scoring and training")

# ---- memory (tracking/recorder.py) -----------------------------------------------------------------------------------

MEMORY_PREFIX = _family(
    "memory/",
    "part",
    "MiB",
    "resident memory at the step's end of driver, engine, ranks and graders, each added up over its processes on the "
    "driver's machine (docs/watching.md)",
)


def grade_count(outcome: str) -> str:
    """Return the key that counts rollouts with the verdict `outcome`."""
    return GRADE_PREFIX + outcome


def replaced_count(reason: str) -> str:
    """Return the key that counts queries replaced for `reason`."""
    return REPLACED_PREFIX + reason


def drop_count(reason: str) -> str:
    """Return the key that counts pairs dropped for `reason`."""
    return DROP_PREFIX + reason


def validation_key(name: str, what: str) -> str:
    """Return the key of a number of the held-out set `name`: accuracy, length or truncated."""
    return f"{VALIDATION_PREFIX}{name}/{what}"


def left_out_count(reason: str) -> str:
    """Return the key that counts rollouts without a teacher's prompt for `reason`."""
    return LEFT_OUT_PREFIX + reason


# ---- numbers that are reported in parts ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sum:
    """Part of a number that is added up over micro-batches and data-parallel ranks.

    >>> (Sum(0.5) + Sum(0.25)).value
    0.75
    """

    value: float

    def __add__(self, other: Sum) -> Sum:
        return Sum(self.value + other.value)


@dataclass(frozen=True)
class Mean:
    """Part of a mean: a total and how many numbers are in it.

    >>> both = Mean(total=2.0, count=4.0) + Mean(total=1.0, count=2.0)
    >>> both.total / both.count
    0.5
    """

    total: float
    count: float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)


Part = Sum | Mean
Parts = dict[str, Part]  # what one micro-batch reports, by key


def reduce_parts(reports: Iterable[Mapping[str, Part]]) -> dict[str, float]:
    """Add up what micro-batches and ranks report.

    A mean over nothing (the weight of constructed tokens in a step without any) is left out: an absent number, not 0.

    >>> reduce_parts([{"loss": Sum(1.0), "entropy": Mean(3.0, 2.0)}, {"loss": Sum(2.0), "entropy": Mean(1.0, 2.0)}])
    {'loss': 3.0, 'entropy': 1.0}
    >>> reduce_parts([{"nll": Mean(0.0, 0.0)}])
    {}
    """
    total: dict[str, Part] = {}
    for report in reports:
        for key, part in report.items():
            total[key] = total[key] + part if key in total else part  # type: ignore[operator]
    metrics: dict[str, float] = {}
    for key, part in total.items():
        if isinstance(part, Sum):
            metrics[key] = part.value
        elif part.count > 0:
            metrics[key] = part.total / part.count
    return metrics


def mean_over_updates(results: Sequence[UpdateResult]) -> dict[str, float]:
    """Average the metrics of a step's updates; the learning rate is that of the last one.

    The distance between engine and actor is that of the first: the later ones see a policy that has moved. The paper
    makes one update a step, so the mean is that update's number.
    """
    keys = sorted({key for result in results for key in result.metrics})
    metrics: dict[str, float] = {}
    for key in keys:
        values = [result.metrics[key] for result in results if key in result.metrics]
        metrics[key] = sum(values) / len(values)
    metrics.pop(ENGINE_GAP, None)
    if ENGINE_GAP in results[0].metrics:
        metrics[ENGINE_GAP] = results[0].metrics[ENGINE_GAP]
    metrics[GRAD_NORM] = sum(result.grad_norm for result in results) / len(results)
    metrics[LEARNING_RATE] = results[-1].learning_rate
    return metrics
