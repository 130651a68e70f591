"""Estimate the seconds of a step from a GPU's data sheet and the stated assumptions.

The estimate serves to plan queue time; it is not a benchmark. For each token, decoding reads the weights and the KV
cache of the live rows (limited by bandwidth) and does the matrix products of every live row (limited by FLOP/s).
Training takes 6 N FLOPs per token plus attention (8 N with full recomputation), for N active parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nemo_tapo.planning.cluster_setup import GPUS, Assumptions, ClusterSetup
from nemo_tapo.planning.memory import BF16, OPTIMIZER_BYTES, count_rank_parameters, engine_weight_bytes, kv_cache_tokens
from nemo_tapo.planning.model_shape import ModelShape


@dataclass(frozen=True)
class Completions:
    """The completions that one part of a step generates, in tokens."""

    count: int
    prompt: float  # mean prompt length
    mean: float  # mean completion length
    longest: int  # longest completion allowed

    def __add__(self, other: Completions) -> Completions:
        """Return both parts at once.

        >>> Completions(30, 100.0, 10.0, 40) + Completions(10, 500.0, 30.0, 60)
        Completions(count=40, prompt=200.0, mean=15.0, longest=60)
        """
        count = self.count + other.count
        return Completions(
            count,
            (self.count * self.prompt + other.count * other.prompt) / count,
            (self.count * self.mean + other.count * other.mean) / count,
            max(self.longest, other.longest),
        )


def step_seconds(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> dict[str, float]:
    """Return the seconds of each part of a step.

    Synthesis is counted in full under `pipeline: overlapped` too: a query's synthesis begins when its longest rollout
    is done, and the last of them as late as under `barrier`. Under `deferred` it is what it adds to the rollouts that
    the engines decode at the same time.
    """
    share, prompt = assumed.response_share, assumed.prompt_tokens
    constructed = round(setup.most_constructed * assumed.constructed_share)
    response, synthesis = share * setup.max_response, share * setup.max_synthesis
    rollouts = Completions(setup.originals, prompt, response, setup.max_response)
    seconds = {"rollouts": generation_seconds(shape, setup, assumed, rollouts)}
    if constructed:
        # the synthesis prompt quotes the question, a wrong response and a right one
        corrections = Completions(constructed, prompt + 2 * response, synthesis, setup.max_synthesis)
        if setup.deferred:
            together = generation_seconds(shape, setup, assumed, rollouts + corrections)
            seconds["synthesis"] = together - seconds["rollouts"]
        else:
            seconds["synthesis"] = generation_seconds(shape, setup, assumed, corrections)
    if setup.reference:
        seconds["reference"] = forward_seconds(shape, setup, assumed, setup.originals, prompt + response)
    if setup.updates > 1:
        seconds["old log-probabilities"] = forward_seconds(
            shape, setup, assumed, setup.originals + constructed, prompt + response
        )
    again = 4 / 3 if "full" in setup.recompute else 1
    one_pass = forward_seconds(shape, setup, assumed, setup.originals + constructed, prompt + response)
    seconds["update"] = 3 * again * one_pass
    if setup.colocated:
        mine = count_rank_parameters(shape, setup, 0)
        moved = 2 * (BF16 * mine.total + OPTIMIZER_BYTES * mine.optimizer_share) + 2 * engine_weight_bytes(shape, setup)
        seconds["weights and optimizer moved"] = moved / (assumed.transfer_gb_s * 1e9)
    else:
        seconds["weights moved"] = BF16 * shape.parameters / (assumed.transfer_gb_s * 1e9)
    seconds["other"] = assumed.other_seconds
    return seconds


SAMPLING, TRAINING = ("rollouts", "synthesis"), ("reference", "old log-probabilities", "update")


def total_seconds(parts: Mapping[str, float], lag: int) -> float:
    """Return the seconds of a step from those of its parts (`step_seconds`).

    With a lag of 1 the engines sample while the policy trains, so that of the two the longer counts.

    >>> parts = {"rollouts": 90.0, "synthesis": 10.0, "update": 30.0, "weights moved": 1.0, "other": 5.0}
    >>> total_seconds(parts, lag=0), total_seconds(parts, lag=1)
    (136.0, 106.0)
    """
    total = sum(parts.values())
    if not lag:
        return total
    sampling, training = (sum(parts.get(name, 0.0) for name in names) for names in (SAMPLING, TRAINING))
    return total - min(sampling, training)


def forward_seconds(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions, rows: int, length: float) -> float:
    """Return the seconds of one forward pass over `rows` rows of `length` tokens, on all the policy's GPUs."""
    flops = rows * length * (2 * shape.active_parameters + shape.attention_flops_per_token * length / 2)
    return flops / (GPUS[assumed.gpu].flops * assumed.mfu * setup.train_gpus)


def generation_seconds(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions, work: Completions) -> float:
    """Return the seconds to sample `work`, shared out over the engines, as many at a time as the KV cache holds.

    The last completion runs to `work.longest`. Until then the number of live rows falls from all to one: on average
    the share `work.mean / work.longest` of them is live.
    """
    gpu, width = GPUS[assumed.gpu], setup.engine_tp * setup.engine_pp
    each = -(-work.count // setup.engines)
    at_once = max(1, min(each, int(kv_cache_tokens(shape, setup, assumed) / (work.prompt + work.mean))))
    live = max(1.0, at_once * work.mean / work.longest)
    touched = shape.active_parameters if live * shape.experts_per_token < shape.experts else shape.parameters
    read = BF16 * touched + live * (work.prompt + work.mean / 2) * shape.kv_bytes_per_token
    by_bandwidth = read / (gpu.bandwidth * assumed.decode_efficiency * width)
    by_flops = live * 2 * shape.active_parameters / (gpu.flops * assumed.mfu * width)
    token = max(by_bandwidth, by_flops) + assumed.decode_overhead_ms / 1000
    waves = each / at_once
    prefill = each * work.prompt * 2 * shape.active_parameters / (gpu.flops * assumed.mfu * width)
    # A waiting row takes the place of a finished one, so only the last wave has a tail.
    return prefill + token * (work.longest + (waves - 1) * work.mean)
