"""Seconds a step, from a GPU's data sheet and the stated assumptions. An estimate to plan a queue with, no benchmark.

Decoding reads the weights and the live rows' KV cache once a token (bandwidth) and multiplies every live row
(FLOP/s); training is 6 N FLOPs a token and attention (8 N with full recomputation).
"""

from __future__ import annotations

from nemo_tapo.planning.cluster_setup import GPUS, Assumptions, Setup
from nemo_tapo.planning.memory import BF16, OPTIMIZER, cached_tokens, engine_weights, held
from nemo_tapo.planning.model_shape import ModelShape


def step_seconds(shape: ModelShape, setup: Setup, assumed: Assumptions) -> dict[str, float]:
    """Seconds of a step's parts. Synthesis is counted in full: `pipeline: overlapped` hides a part of it."""
    share, prompt = assumed.response_share, assumed.prompt_tokens
    constructed = round(setup.most_constructed * assumed.constructed_share)
    response, synthesis = share * setup.max_response, share * setup.max_synthesis
    seconds = {"rollouts": generate(shape, setup, assumed, setup.originals, prompt, response, setup.max_response)}
    if constructed:
        asked = prompt + 2 * response
        seconds["synthesis"] = generate(shape, setup, assumed, constructed, asked, synthesis, setup.max_synthesis)
    if setup.reference:
        seconds["reference"] = forward(shape, setup, assumed, setup.originals, prompt + response)
    if setup.updates > 1:
        seconds["old log-probabilities"] = forward(
            shape, setup, assumed, setup.originals + constructed, prompt + response
        )
    again = 4 / 3 if "full" in setup.recompute else 1
    one_pass = forward(shape, setup, assumed, setup.originals + constructed, prompt + response)
    seconds["update"] = 3 * again * one_pass
    if setup.colocated:
        mine = held(shape, setup, 0)
        moved = 2 * (BF16 * mine.all + OPTIMIZER * mine.optimizer_share) + 2 * engine_weights(shape, setup)
        seconds["weights and optimizer moved"] = moved / (assumed.transfer_gb_s * 1e9)
    else:
        seconds["weights moved"] = BF16 * shape.parameters / (assumed.transfer_gb_s * 1e9)
    seconds["other"] = assumed.other_seconds
    return seconds


def forward(shape: ModelShape, setup: Setup, assumed: Assumptions, rows: int, length: float) -> float:
    """One forward pass over `rows` rows of `length` tokens, on all the policy's GPUs."""
    flops = rows * length * (2 * shape.active_parameters + shape.attention_flops_per_token * length / 2)
    return flops / (GPUS[assumed.gpu].flops * assumed.mfu * setup.train_gpus)


def generate(
    shape: ModelShape, setup: Setup, assumed: Assumptions, rows: int, prompt: float, mean: float, longest: int
) -> float:
    """`rows` completions shared out over the engines, as many at a time as the KV cache holds.

    The last row runs to `longest`; until then the live rows fall from all to one, on average `mean / longest` of them.
    """
    gpu, width = GPUS[assumed.gpu], setup.engine_tp * setup.engine_pp
    each = -(-rows // setup.engines)
    at_once = max(1, min(each, int(cached_tokens(shape, setup, assumed) / (prompt + mean))))
    live = max(1.0, at_once * mean / longest)
    touched = shape.active_parameters if live * shape.experts_per_token < shape.experts else shape.parameters
    read = BF16 * touched + live * (prompt + mean / 2) * shape.kv_bytes_per_token
    by_bandwidth = read / (gpu.bandwidth * assumed.decode_efficiency * width)
    by_flops = live * 2 * shape.active_parameters / (gpu.flops * assumed.mfu * width)
    token = max(by_bandwidth, by_flops) + assumed.decode_overhead_ms / 1000
    waves = each / at_once
    prefill = each * prompt * 2 * shape.active_parameters / (gpu.flops * assumed.mfu * width)
    # rows that wait take the places of finished ones: only the last wave has a tail
    return prefill + token * (longest + (waves - 1) * mean)
