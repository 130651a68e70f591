"""The equations of TAPO (arXiv 2606.18844) once more: slow, obvious, float64, one loop a sum.

Written from the paper's text and the specification alone. It shares no code with `nemo_tapo` and knows none
of its types: lists of numbers in, numbers out. The tests compare the package with what stands here.

Everything is plain Python on `math`, except `differentiable_loss`: that is `tapo_loss` said a second time
with 0-dimensional float64 tensors, so that autograd yields the gradient; the weights of Eq. 7 and the old
log-probabilities enter it as Python numbers, so no gradient can pass through them.

Letters: K rollouts of a query, m constructed trajectories, T tokens of a response, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

INF = math.inf


# --------------------------------------------------------------------------- Eq. 3, section 3.3.1: selection


def zone(rewards: Sequence[float], n_pos: int, n_neg: int) -> str:
    """Eq. 3 and the three regions of section 3.3.1: "eligible", "mastered" or "beyond"."""
    correct = 0
    incorrect = 0
    for r in rewards:
        if r > 0:
            correct += 1
        else:
            incorrect += 1
    too_few_correct = correct < n_pos
    too_few_incorrect = incorrect < n_neg
    if too_few_correct and too_few_incorrect:
        raise ValueError("outside for both reasons: K < n_pos + n_neg, an error of the configuration")
    if too_few_incorrect:
        return "mastered"
    if too_few_correct:
        return "beyond"
    return "eligible"


def pair_count(rewards: Sequence[float], n_pos: int, n_neg: int, m_max: int) -> int:
    """Section 3.3.1: pairs of a query, up to m_max of its incorrect rollouts."""
    if zone(rewards, n_pos, n_neg) != "eligible":
        return 0
    incorrect = 0
    for r in rewards:
        if not r > 0:
            incorrect += 1
    return incorrect if incorrect < m_max else m_max


# --------------------------------------------------------------------------- Eq. 1, 4, 5: advantages


def mean(values: Sequence[float]) -> float:
    """mu of Eq. 1."""
    total = 0.0
    for v in values:
        total += v
    return total / len(values)


def population_std(values: Sequence[float]) -> float:
    """sigma of Eq. 1: divided by the group's size, not by size - 1."""
    mu = mean(values)
    total = 0.0
    for v in values:
        total += (v - mu) ** 2
    return math.sqrt(total / len(values))


def all_equal(values: Sequence[float]) -> bool:
    return all(v == values[0] for v in values)


def normalised(values: Sequence[float], population: Sequence[float], eps: float) -> list[float]:
    """Eq. 1 with the mean and deviation of `population`, which holds all `values` (and perhaps more).

    Equal rewards: the numerator is 0, and so is the advantage, whatever rounding would say.
    """
    if all_equal(population):
        return [0.0 for _ in values]
    mu = mean(population)
    sigma = population_std(population)
    out = []
    for v in values:
        out.append((v - mu) / (sigma + eps))
    return out


@dataclass(frozen=True)
class Advantages:
    """One number a row. `kept` are the places of the constructed trajectories that give a row at all."""

    original: list[float]
    constructed: list[float]
    kept: list[int]


def advantages(
    original: Sequence[float],
    constructed: Sequence[float],
    eps: float,
    *,
    decoupled: bool = True,
    negatives: bool = True,
    uniform_group: str = "zero",
    reflection_baseline: str = "constructed",
) -> Advantages:
    """Eq. 4 and 5 of one query, with the switches of Table 4 and the two points that the paper leaves open.

    negatives=False      constructed trajectories of reward 0 are dropped first: no row, in no mean.
    decoupled=False      section 3.4's contaminated estimate: one mean and one deviation of all K + m rewards.
    reflection_baseline  "with_originals": the originals' rewards enter the reflection group's mean and
                         deviation (section 4.5); they gain no row by it.
    A population of one  its reward is its advantage (section 3.4, below Eq. 5).
    A uniform population of two or more: 0 as Eq. 5 says, or, with uniform_group="reward", the reward.
    """
    kept = []
    rewards = []
    for place, r in enumerate(constructed):
        if negatives or r > 0:
            kept.append(place)
            rewards.append(r)
    if not decoupled:
        everything = list(original) + rewards
        return Advantages(normalised(original, everything, eps), normalised(rewards, everything, eps), kept)
    return Advantages(
        normalised(original, original, eps),
        reflection_advantages(rewards, original, eps, uniform_group, reflection_baseline),
        kept,
    )


def reflection_advantages(
    rewards: Sequence[float], original: Sequence[float], eps: float, uniform_group: str, baseline: str
) -> list[float]:
    """Eq. 5 of one reflection group, `rewards` being those of its constructed trajectories."""
    population = list(rewards)
    if baseline == "with_originals":
        population = population + list(original)
    if len(rewards) == 0:
        return []
    if len(population) == 1:
        return list(rewards)
    if all_equal(population) and uniform_group == "reward":
        return list(rewards)
    return normalised(rewards, population, eps)


# --------------------------------------------------------------------------- one position's distribution


def log_softmax(logits: Sequence[float]) -> list[float]:
    """log p_v = z_v - log sum exp z. A logit of -inf is a token of probability 0."""
    top = max(logits)
    total = 0.0
    for z in logits:
        total += math.exp(z - top)
    log_total = top + math.log(total)
    out = []
    for z in logits:
        out.append(z - log_total)
    return out


def entropy(logits: Sequence[float]) -> float:
    """H = -sum p log p in nats over the whole vocabulary; 0 log 0 = 0."""
    h = 0.0
    for lp in log_softmax(logits):
        if lp > -INF:
            h -= math.exp(lp) * lp
    return h


# --------------------------------------------------------------------------- Eq. 7: OOD token suppression


def ots_weight(logits: Sequence[float], token: int, w_min: float, w_max: float) -> float:
    """Eq. 7: w = clamp(exp(log p(y) + H), w_min, w_max)."""
    s = log_softmax(logits)[token] + entropy(logits)
    w = math.exp(s)
    if w < w_min:
        return w_min
    if w > w_max:
        return w_max
    return w


# --------------------------------------------------------------------------- Eq. 2, 8: clipped surrogate


def clip(value: float, low: float, high: float) -> float:
    if value < low:
        return low
    if value > high:
        return high
    return value


def surrogate(ratio: float, advantage: float, clip_low: float, clip_high: float) -> float:
    """One token of Eq. 2, the minus sign of the loss included: -min(rho A, clip(rho, 1 - e_l, 1 + e_h) A)."""
    unclipped = ratio * advantage
    clipped = clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantage
    return -min(unclipped, clipped)


def dual_clipped(ratio: float, advantage: float, clip_low: float, clip_high: float, c: float) -> float:
    """Eq. 5 of arXiv 1912.09729 as a loss: for A < 0 it is -max(min(rho A, clip(rho) A), c A)."""
    loss = surrogate(ratio, advantage, clip_low, clip_high)
    return min(loss, -c * advantage) if advantage < 0 else loss


def cispo(ratio: float, advantage: float, logp: float, clip_low: float, clip_high: float) -> float:
    """Eq. 4 and 5 of arXiv 2506.13585 as a loss: -sg(clip(rho)) A log pi."""
    return -clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantage * logp


def sequence_ratio(logps: Sequence[float], olds: Sequence[float]) -> float:
    """Eq. 7 of arXiv 2507.18071: the ratio of the whole sequences to the power 1/T."""
    product = 1.0
    for logp, old in zip(logps, olds, strict=True):
        product *= math.exp(logp - old)
    return product ** (1.0 / len(logps))


def k3(logp: float, ref: float) -> float:
    """Schulman's k3 estimate of KL(pi || ref) at a token drawn from pi: q/p - log(q/p) - 1."""
    return math.exp(ref - logp) - (ref - logp) - 1.0


# --------------------------------------------------------------------------- Eq. 6: the whole loss


@dataclass(frozen=True)
class Response:
    """One training row as the loss sees it; the prompt is in the logits already.

    `logits[t]` is the distribution that predicts `tokens[t]`. `old` None: one update a batch, rho = 1.
    """

    logits: Sequence[Sequence[float]]
    tokens: Sequence[int]
    advantage: float
    constructed: bool = False
    old: Sequence[float] | None = None
    ref: Sequence[float] | None = None


@dataclass(frozen=True)
class Settings:
    """The loss's settings, with the paper's values where it names one."""

    weight: float = 1.0  # lambda of Eq. 6
    suppression: bool = True
    w_min: float = 0.01
    w_max: float = 10.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    token_mean: bool = False
    terms: bool = False  # each term is the mean over its own rows, not the sum over the number of original rows
    dual_clip: float | None = None
    sequence: bool = False  # GSPO's ratio
    cispo: bool = False


def ratio_at(row: Response, t: int, s: Settings) -> float:
    """rho of Eq. 2 at one token, or that of its whole row."""
    if row.old is None:
        return 1.0
    logps = [log_softmax(row.logits[u])[row.tokens[u]] for u in range(len(row.tokens))]
    return sequence_ratio(logps, row.old) if s.sequence else math.exp(logps[t] - row.old[t])


def token_loss(row: Response, t: int, s: Settings) -> float:
    """The summand of Eq. 2 (original rows) or Eq. 8 (constructed rows), plus the optional KL penalty.

    The penalty is a term of its own: neither the ratio nor w_t multiplies it.
    """
    logp = log_softmax(row.logits[t])[row.tokens[t]]
    ratio = ratio_at(row, t, s)
    w = 1.0
    if row.constructed and s.suppression:
        w = ots_weight(row.logits[t], row.tokens[t], s.w_min, s.w_max)
    if s.cispo:
        loss = w * cispo(ratio, row.advantage, logp, s.clip_low, s.clip_high)
    elif s.dual_clip is not None:
        loss = w * dual_clipped(ratio, row.advantage, s.clip_low, s.clip_high, s.dual_clip)
    else:
        loss = w * surrogate(ratio, row.advantage, s.clip_low, s.clip_high)
    if s.kl_coef > 0:
        assert row.ref is not None
        loss += s.kl_coef * k3(logp, row.ref[t])
    return loss


def term(rows: Sequence[Response], s: Settings, over: Sequence[Response] | None = None) -> float:
    """L_GRPO or L_ref: each row's mean over its own tokens (Eq. 2, 8: 1/T), summed, over the number of rows `over`.

    token_mean: the sum over all of the term's tokens, over the number of tokens of `over`. Without `over`, or if it
    is empty, these are the term's own rows. No rows: 0.
    """
    if len(rows) == 0:
        return 0.0
    if not over:
        over = rows
    if s.token_mean:
        total = 0.0
        count = 0
        for row in rows:
            for t in range(len(row.tokens)):
                total += token_loss(row, t, s)
        for row in over:
            count += len(row.tokens)
        return total / count
    total = 0.0
    for row in rows:
        inner = 0.0
        for t in range(len(row.tokens)):
            inner += token_loss(row, t, s)
        total += inner / len(row.tokens)
    return total / len(over)


def tapo_loss(rows: Sequence[Response], s: Settings) -> float:
    """Eq. 6: L_GRPO(original rows) + lambda L_ref(constructed rows)."""
    original = []
    constructed = []
    for row in rows:
        if row.constructed:
            constructed.append(row)
        else:
            original.append(row)
    return term(original, s) + s.weight * term(constructed, s, constructed if s.terms else original)


# --------------------------------------------------------------------------- the same, for autograd


def differentiable_loss(rows: Sequence[Response], logits: Sequence[Tensor], s: Settings) -> Tensor:
    """`tapo_loss` as a float64 scalar that can be differentiated with respect to `logits`.

    logits: for each row a leaf [T, V] of float64 with the values of `rows[i].logits`.
    """
    counts = {False: 0, True: 0}
    token_counts = {False: 0, True: 0}
    for row in rows:
        counts[row.constructed] += 1
        token_counts[row.constructed] += len(row.tokens)
    loss = torch.zeros((), dtype=torch.float64)
    for row, z in zip(rows, logits, strict=True):
        lam = s.weight if row.constructed else 1.0
        for t, token in enumerate(row.tokens):
            divided_by = False if not s.terms and counts[False] > 0 else row.constructed
            share = lam / token_counts[divided_by] if s.token_mean else lam / counts[divided_by] / len(row.tokens)
            finite = [v for v in range(len(row.logits[t])) if row.logits[t][v] > -INF]
            total = torch.zeros((), dtype=torch.float64)
            top = max(row.logits[t])
            for v in finite:
                total = total + torch.exp(z[t, v] - top)
            logp = z[t, token] - top - torch.log(total)
            rho = ratio_at(row, t, s)
            ratio = rho * torch.exp(logp - float(logp.detach()))  # GSPO-token, Eq. 14 of arXiv 2507.18071; else rho
            clipped = ratio
            if rho < 1.0 - s.clip_low:
                clipped = torch.tensor(1.0 - s.clip_low, dtype=torch.float64)
            if rho > 1.0 + s.clip_high:
                clipped = torch.tensor(1.0 + s.clip_high, dtype=torch.float64)
            smaller = ratio if rho * row.advantage <= float(clipped.detach()) * row.advantage else clipped
            if s.cispo:
                smaller = float(clipped.detach()) * logp
            elif s.dual_clip is not None and row.advantage < 0 and float(smaller.detach()) > s.dual_clip:
                smaller = torch.tensor(s.dual_clip, dtype=torch.float64)
            w = 1.0
            if row.constructed and s.suppression:
                w = ots_weight(row.logits[t], token, s.w_min, s.w_max)
            loss = loss - share * w * smaller * row.advantage
            if s.kl_coef > 0:
                assert row.ref is not None
                gap = row.ref[t] - logp
                loss = loss + share * s.kl_coef * (torch.exp(gap) - gap - 1.0)
    return loss


# --------------------------------------------------------------------------- evaluation


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased pass@k = 1 - C(n - c, k) / C(n, k), counted: the share of k-subsets with a right one."""
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError("1 <= k <= n and 0 <= c <= n")
    right = [True] * c + [False] * (n - c)
    hit = 0
    total = 0
    for chosen in range(2**n):  # every subset of n samples as a bit mask
        size = 0
        any_right = False
        for i in range(n):
            if chosen >> i & 1:
                size += 1
                any_right = any_right or right[i]
        if size == k:
            total += 1
            hit += any_right
    return hit / total
