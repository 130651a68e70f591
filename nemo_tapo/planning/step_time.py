"""Estimate the seconds of a step from a GPU's data sheet and the stated assumptions.

The estimate serves to plan queue time; it is not a benchmark. Engines decode as `decoding.py` says. Training takes 6 N
FLOPs per token plus attention (8 N with full recomputation), for N active parameters, and waits for the filling and
emptying of the pipeline. docs/cluster.md compares it with the steps that NeMo-RL publishes.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_tapo.planning.cluster_setup import GPUS, Assumptions, ClusterSetup
from nemo_tapo.planning.decoding import (
    Completions,
    Stage,
    decode_seconds,
    sample_in_turn,
    sample_together,
)
from nemo_tapo.planning.lengths import Lengths
from nemo_tapo.planning.memory import count_rank_parameters, engine_weight_bytes, optimizer_bytes
from nemo_tapo.planning.model_shape import ModelShape


@dataclass(frozen=True)
class StepTime:
    """The seconds of each part of a step, by who is busy.

    >>> StepTime(engines={"rollouts": 60.0}, policy={"update": 50.0}, both={"other": 5.0}, overlapped=False).total
    115.0
    >>> StepTime(engines={"rollouts": 60.0}, policy={"update": 50.0}, both={"other": 5.0}, overlapped=True).total
    65.0
    """

    engines: dict[str, float]
    policy: dict[str, float]
    both: dict[str, float]  # neither goes on meanwhile
    overlapped: bool  # the engines sample for a later step while the policy trains

    @property
    def parts(self) -> dict[str, float]:
        """All parts, in the order in which a step has them."""
        return self.engines | self.policy | self.both

    @property
    def total(self) -> float:
        """Seconds of a step."""
        engines, policy = sum(self.engines.values()), sum(self.policy.values())
        together = max(engines, policy) if self.overlapped else engines + policy
        return together + sum(self.both.values())


def estimate_step(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> StepTime:
    """Return the seconds of each part of a step."""
    return StepTime(
        engines=estimate_sampling(shape, setup, assumed),
        policy=estimate_training(shape, setup, assumed),
        both=estimate_handover(shape, setup, assumed) | {"other": assumed.other_seconds},
        overlapped=setup.lag > 0,
    )


# ---- what the engines do -------------------------------------------------------------------------------------------


def estimate_sampling(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> dict[str, float]:
    """Return the seconds of rollouts, of what synthesis and dynamic sampling add to them, and of validation."""
    rollouts = describe_rollouts(setup, assumed)
    alone = decode_seconds(shape, setup, assumed, sample_together([rollouts]))
    seconds = {"rollouts": alone}
    if setup.lag > 1:  # the rollouts of several steps are in flight, so that no engine waits for a step's longest one
        seconds["rollouts"] = decode_steadily(shape, setup, assumed, rollouts)
    first = Stage(rollouts, setup.queries)
    again = count_replaced(setup.queries, assumed.uniform_share, setup.sampled_at_most)
    if again:
        rounds = [Stage(replace_count(rollouts, count * setup.samples), count) for count in again]
        chain = decode_seconds(shape, setup, assumed, sample_in_turn([first, *rounds]))
        seconds["dynamic sampling"] = chain - alone
    constructed = count_constructed(setup, assumed)
    if constructed:
        corrections = describe_corrections(setup, assumed)
        then = Stage(corrections, setup.queries * assumed.constructed_share)
        if setup.deferred:
            together = decode_seconds(shape, setup, assumed, sample_together([rollouts, corrections]))
            seconds["synthesis"] = together - alone
        elif setup.barrier:
            seconds["synthesis"] = decode_seconds(shape, setup, assumed, sample_together([corrections]))
        else:
            seconds["synthesis"] = decode_seconds(shape, setup, assumed, sample_in_turn([first, then])) - alone
    if setup.validate_every and setup.validated:
        one = decode_seconds(shape, setup, assumed, sample_together([replace_count(rollouts, setup.validated)]))
        seconds["validation"] = one / setup.validate_every
    return seconds


def describe_rollouts(setup: ClusterSetup, assumed: Assumptions) -> Completions:
    """Return a step's rollouts."""
    mean = assumed.response_share * setup.max_response
    return Completions(setup.originals, assumed.prompt_tokens, Lengths(mean, setup.max_response, assumed.length_sigma))


def replace_count(part: Completions, count: float) -> Completions:
    """Return completions of the same kind in another number."""
    return Completions(count, part.prompt, part.lengths)


def count_constructed(setup: ClusterSetup, assumed: Assumptions) -> int:
    """Return the constructed rows of a step."""
    return round(setup.most_constructed * assumed.constructed_share)


def describe_corrections(setup: ClusterSetup, assumed: Assumptions) -> Completions:
    """Return the answers to a step's synthesis prompts, which quote the question, a wrong response and a right one."""
    decoded = 1 - assumed.prefilled_share if setup.prefilled else 1.0
    longest = setup.max_synthesis * decoded
    given = setup.max_synthesis * assumed.response_share * (1 - decoded)
    prompt = assumed.prompt_tokens + 2 * assumed.response_share * setup.max_response + given
    lengths = Lengths(assumed.response_share * longest, longest, assumed.length_sigma)
    return Completions(count_constructed(setup, assumed), prompt, lengths)


def count_replaced(queries: int, uniform: float, most: float) -> list[float]:
    """Return the queries that are sampled to replace others, round after round.

    A round replaces the queries of equal rewards of the one before; the sampled queries together are at most `most`
    times those of the step.

    >>> count_replaced(queries=32, uniform=0.5, most=1.75)
    [16.0, 8.0]
    """
    rounds, left, uniform_queries = [], queries * (most - 1), queries * uniform
    while min(uniform_queries, left) >= 0.5:
        rounds.append(min(uniform_queries, left))
        left -= rounds[-1]
        uniform_queries = rounds[-1] * uniform
    return rounds


def decode_steadily(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions, part: Completions) -> float:
    """Return the seconds in which the engines decode one step's completions, with those of `lag` steps in flight."""
    ahead = replace_count(part, part.count * setup.lag)
    return decode_seconds(shape, setup, assumed, sample_together([ahead])) / setup.lag


# ---- what the policy does ------------------------------------------------------------------------------------------


def estimate_training(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> dict[str, float]:
    """Return the seconds of the reference's and the old policy's log-probabilities, and of the updates."""
    length = assumed.prompt_tokens + assumed.response_share * setup.max_response
    rows = setup.originals + count_constructed(setup, assumed)
    seconds = {}
    scored = setup.score_batch_tokens or setup.micro_batch_tokens
    if setup.reference:
        seconds["reference"] = forward_seconds(shape, setup, assumed, setup.originals, length, scored)
    if setup.updates > 1 or setup.scores_old:
        seconds["old log-probabilities"] = forward_seconds(shape, setup, assumed, rows, length, scored)
    again = 4 / 3 if "full" in setup.recompute else 1
    one_update = forward_seconds(shape, setup, assumed, rows / setup.updates, length, setup.micro_batch_tokens)
    seconds["update"] = setup.updates * 3 * again * one_update
    return seconds


def forward_seconds(
    shape: ModelShape, setup: ClusterSetup, assumed: Assumptions, rows: float, length: float, micro_batch_tokens: int
) -> float:
    """Return the seconds of one forward pass over `rows` rows of `length` tokens, on all the policy's GPUs.

    A pipeline of PP stages takes PP - 1 micro-batches longer than one without.
    """
    gpu = GPUS[assumed.gpu]
    rate = (gpu.flops_fp32 if setup.policy_bytes == 4 else gpu.flops) * assumed.mfu
    rate *= gpu.fp8_speed if setup.fp8_training else 1
    flops = rows * length * (2 * shape.active_parameters + shape.attention_flops_per_token * length / 2)
    together = max(1.0, micro_batch_tokens // length) if setup.packed else micro_batch_tokens / setup.max_row
    micro_batches = max(1.0, rows / setup.dp / together)
    experts = micro_batches * shape.layers_with_experts / setup.pp * assumed.moe_layer_ms / 1000
    return (1 + (setup.pp - 1) / micro_batches) * (flops / (rate * setup.train_gpus) + experts)


# ---- what both wait for --------------------------------------------------------------------------------------------


def estimate_handover(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> dict[str, float]:
    """Return the seconds in which weights go to the engines, and in which GPUs are cleared for one or the other."""
    weights = setup.policy_bytes * shape.parameters
    rate = assumed.refit_gb_s if setup.colocated else assumed.broadcast_gb_s
    seconds = {"weights handed over": weights / (rate * 1e9)}
    if setup.colocated:
        rank = count_rank_parameters(shape, setup, 0)
        aside = setup.policy_bytes * rank.total + optimizer_bytes(setup) * rank.optimizer_share
        moved = 2 * aside + engine_weight_bytes(shape, setup)  # which are not brought back: new ones come
        seconds["GPUs cleared"] = moved / (assumed.transfer_gb_s * 1e9)
    if setup.reference:
        rank = count_rank_parameters(shape, setup, 0)
        seconds["reference brought in"] = 2 * 2 * setup.policy_bytes * rank.total / (assumed.transfer_gb_s * 1e9)
    return seconds
