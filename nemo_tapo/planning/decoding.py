"""Estimate how long the engines decode: which completions are alive at which time, and what an iteration then costs.

Time is counted in iterations first: every completion that has a place gets one token in each. An iteration reads the
weights and the KV cache of the live completions (limited by bandwidth) or does their matrix products (limited by
FLOP/s), waits for the all-reduces between the GPUs of an engine, and has a fixed cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import fsum, prod

from nemo_tapo.planning.cluster_setup import GPUS, Assumptions, ClusterSetup
from nemo_tapo.planning.lengths import Lengths
from nemo_tapo.planning.memory import kv_cache_tokens
from nemo_tapo.planning.model_shape import ModelShape

POINTS = 128  # of the time axis


@dataclass(frozen=True)
class Completions:
    """Some completions that the engines are asked for."""

    count: float
    prompt: float  # mean tokens of a prompt
    lengths: Lengths


@dataclass(frozen=True)
class Moment:
    """The completions that are alive during some iterations, over all engines."""

    iterations: float
    live: float
    context: float  # mean tokens of a live completion, prompt included
    running: float  # probability that any is alive at all


@dataclass(frozen=True)
class Load:
    """What the engines do from the first request to the last token."""

    moments: tuple[Moment, ...]
    prompt_tokens: float

    @property
    def iterations(self) -> float:
        """Expected iterations until the last completion ends, if all had a place from the beginning."""
        return fsum(moment.iterations * moment.running for moment in self.moments)


def sample_together(parts: Sequence[Completions]) -> Load:
    """Return the load of completions that are all asked for at once.

    >>> load = sample_together([Completions(64, 100, Lengths(mean=1000, longest=4096, sigma=0.8))])
    >>> round(load.iterations), load.prompt_tokens
    (3860, 6400)
    """
    width = max(part.lengths.longest for part in parts) / POINTS
    moments = []
    for i in range(POINTS):
        age = (i + 0.5) * width
        alive = [part.count * part.lengths.survival(age) for part in parts]
        none = prod((1 - part.lengths.survival(age)) ** part.count for part in parts)
        context = sum(n * (part.prompt + age) for n, part in zip(alive, parts, strict=True))
        moments.append(Moment(width, sum(alive), context / max(sum(alive), 1e-9), 1 - none))
    return Load(tuple(moments), sum(part.count * part.prompt for part in parts))


@dataclass(frozen=True)
class Stage:
    """Completions that are divided evenly among some groups: a query's rollouts, or the answers about them."""

    completions: Completions
    groups: float

    @property
    def size(self) -> float:
        """Completions of a group."""
        return self.completions.count / self.groups

    def done(self, age: float) -> float:
        """Return the probability that a group has ended at `age`, in tokens."""
        return float((1 - self.completions.lengths.survival(age)) ** self.size)


def sample_in_turn(stages: Sequence[Stage]) -> Load:
    """Return the load where a group begins a stage as soon as its own completions of the stage before have ended.

    Each stage has as many groups as the one before, or fewer: the others have ended.
    """
    width = sum(stage.completions.lengths.longest for stage in stages) / (POINTS // 2 * len(stages))
    cells = POINTS // 2 * len(stages)
    ages = [(i + 0.5) * width for i in range(cells)]
    live, tokens, none = [0.0] * cells, [0.0] * cells, [1.0] * cells
    begins = [1.0] + [0.0] * cells  # share of a stage's groups that begin at the left end of a cell
    for stage, after in zip(stages, [*(s.groups for s in stages[1:]), 0.0], strict=True):
        part = stage.completions
        alive, done = [part.lengths.survival(age) for age in ages], [stage.done(age) for age in ages]
        for i in range(cells):
            started = [(begins[i - j], j) for j in range(i + 1) if begins[i - j]]
            now = part.count * sum(share * alive[j] for share, j in started)
            live[i] += now
            tokens[i] += part.count * sum(share * alive[j] * (part.prompt + ages[j]) for share, j in started)
            none[i] *= sum(share * done[j] for share, j in started) ** (stage.groups - after)
        begins = _advance(begins, [stage.done(i * width) for i in range(cells + 1)])
    moments = [
        Moment(width, now, held / max(now, 1e-9), 1 - idle) for now, held, idle in zip(live, tokens, none, strict=True)
    ]
    return Load(tuple(moments), sum(s.completions.count * s.completions.prompt for s in stages))


def _advance(begins: Sequence[float], done: Sequence[float]) -> list[float]:
    """Return when groups that begin as `begins` says end; `done` is the share of them that has at each cell's left end.

    An end within a cell counts half at its left end and half at its right one.
    """
    ends = [0.0] * len(begins)
    lasting = [(cell, later - earlier) for cell, (earlier, later) in enumerate(pairwise(done)) if later > earlier]
    for begin, share in enumerate(begins):
        for cell, probability in lasting if share else ():
            for end in (begin + cell, begin + cell + 1):
                if end < len(ends):
                    ends[end] += share * probability / 2
    return ends


def decode_seconds(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions, load: Load) -> float:
    """Return the seconds from the first request to the last token.

    Where the KV cache holds fewer completions than are alive, they take turns. The engine that ends last has at least
    one completion to the end.
    """
    room = kv_cache_tokens(shape, setup, assumed)
    gpu, width = GPUS[assumed.gpu], setup.engine_tp * setup.engine_pp
    seconds = load.prompt_tokens / setup.engines * 2 * shape.active_parameters / (gpu.flops * assumed.mfu * width)
    for moment in load.moments:
        if moment.running < 1e-6:
            continue
        alive = max(1.0, moment.live / setup.engines)
        at_once = min(alive, max(1.0, room / moment.context))
        cost = iteration_seconds(shape, setup, assumed, at_once, moment.context)
        seconds += moment.running * moment.iterations * cost * alive / at_once
    return seconds


def iteration_seconds(
    shape: ModelShape, setup: ClusterSetup, assumed: Assumptions, live: float, context: float
) -> float:
    """Return the seconds in which an engine gives each of `live` completions of `context` tokens one more token."""
    gpu, tp, width = GPUS[assumed.gpu], setup.engine_tp, setup.engine_tp * setup.engine_pp
    weights = setup.engine_bytes * shape.count_read_parameters(live) / width
    cache = live * context * setup.cache_bytes * shape.kv_values_per_token / (min(tp, shape.kv_heads) * setup.engine_pp)
    by_bandwidth = (weights + cache) / (gpu.bandwidth * assumed.decode_efficiency)
    by_flops = live * 2 * shape.active_parameters / (gpu.flops * assumed.mfu * width)
    waits = 0.0
    if tp > 1:  # an all-reduce after attention and one after the feed-forward block of each layer
        across = width > setup.gpus_per_node
        waits = 2 * shape.layers * (assumed.allreduce_across_us if across else assumed.allreduce_us) / 1e6
    return max(by_bandwidth, by_flops) + waits + assumed.decode_overhead_ms / 1000
