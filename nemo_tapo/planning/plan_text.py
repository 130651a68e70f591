"""Text of `nemo-tapo plan` for a cluster: memory, time and disk of a run, and why a run would not fit."""

from __future__ import annotations

from collections.abc import Iterable

from nemo_tapo.planning import memory
from nemo_tapo.planning.cluster_setup import GPUS, Assumptions, ClusterSetup, GiB
from nemo_tapo.planning.model_shape import ModelShape
from nemo_tapo.planning.step_time import step_seconds, total_seconds


def find_faults(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> Iterable[str]:
    """Yield the reasons why the run would not fit. Each is a sentence that names the memory class to reduce first."""
    for phase in memory.phases(shape, setup, assumed):
        if not phase.fits:
            yield (
                f"{phase.name} needs about {format_gib(phase.total)} GiB a GPU and {assumed.gpu} has "
                f"{format_gib(phase.capacity)}: the largest part is {phase.largest} with "
                f"{format_gib(phase.classes[phase.largest])}. {CURES[phase.name]}"
            )
    tokens = memory.kv_cache_tokens(shape, setup, assumed)
    if tokens < setup.max_model_len:
        weights = format_gib(memory.engine_weight_bytes(shape, setup))
        yield (
            f"the KV cache holds {tokens:,} tokens and one completion may need {setup.max_model_len:,}: the engine's "
            f"weights take {weights} GiB of the {format_gib(GPUS[assumed.gpu].memory * setup.engine_memory)} GiB a GPU "
            "that gpu_memory_utilization gives it. Raise it, or vllm_cfg.tensor_parallel_size."
        )
    needed = sum(memory.host_bytes(shape, setup).values()) / GiB
    if assumed.host_memory_gib and needed > assumed.host_memory_gib:
        yield f"a node's host needs about {needed:.0f} GiB; tapo.plan.host_memory_gib is {assumed.host_memory_gib:g}."


CURES = {
    "training": (
        "Divide further (tensor_model_parallel_size, pipeline_model_parallel_size), add nodes (the optimizer is shared "
        "out over DP), recompute (activation_checkpointing) or lower train_mb_tokens."
    ),
    "generation": "Lower vllm_cfg.gpu_memory_utilization.",
    "handing weights over": "Raise vllm_cfg.tensor_parallel_size or tensor_model_parallel_size.",
}


def describe_plan(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> list[str]:
    """Return the lines of the plan: sentences and table rows."""
    return [
        *describe_step(setup),
        *describe_parallelism(shape, setup),
        *describe_memory(shape, setup, assumed),
        *describe_time(shape, setup, assumed),
        *describe_storage(shape, setup),
    ]


def describe_step(setup: ClusterSetup) -> Iterable[str]:
    """Yield lines on the rows, tokens and lengths of a step."""
    most = setup.originals * setup.max_response
    synthesised = setup.most_constructed * setup.max_synthesis
    yield f"{setup.steps:,} steps of {setup.queries} queries x {setup.samples} rollouts, {setup.updates} update(s) each"
    yield (
        f"rows of an update: {setup.update_rows}, always: {setup.originals // setup.updates} rollouts, at most "
        f"{-(-setup.most_constructed // setup.updates)} constructed, the rest masked"
    )
    yield f"tokens a step: at most {most:,} sampled and {synthesised:,} synthesised"
    yield (
        f"lengths: response {setup.max_response:,}, synthesis {setup.max_synthesis:,}, row {setup.max_row:,}, engine "
        f"{setup.max_model_len:,}, micro-batch {setup.micro_batch_tokens:,} tokens"
    )


def describe_parallelism(shape: ModelShape, setup: ClusterSetup) -> Iterable[str]:
    """Yield lines on the model and on how policy and engines are divided among the GPUs."""
    experts = f" x EP {setup.ep}" if setup.ep > 1 else ""
    yield f"model: {shape.parameters / 1e9:.2f} B parameters, {shape.active_parameters / 1e9:.2f} B active"
    yield (
        f"policy: {setup.train_gpus} of {setup.nodes} x {setup.gpus_per_node} GPUs = TP {setup.tp} x PP {setup.pp} x "
        f"CP {setup.cp} x DP {setup.dp}{experts}"
        + (", sequence parallel" if setup.sequence_parallel else "")
        + (f", recomputes {', '.join(sorted(setup.recompute))}" if setup.recompute else "")
    )
    place = "the same GPUs" if setup.colocated else f"{setup.engine_gpus} GPUs of their own"
    yield f"engines: {setup.engines} of TP {setup.engine_tp} x PP {setup.engine_pp} on {place}"


def describe_memory(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> Iterable[str]:
    """Yield the table of GiB per GPU, phase by phase."""
    if not setup.megatron:
        yield "memory: no estimate is made for DTensor"
        return
    yield f"memory, GiB a GPU ({assumed.gpu}: {format_gib(GPUS[assumed.gpu].memory)}), estimated:"
    for phase in memory.phases(shape, setup, assumed):
        yield f"  {phase.name}: {format_gib(phase.total)}{'' if phase.fits else '  DOES NOT FIT'}"
        yield from (f"    {name:<40}{format_gib(size):>8}" for name, size in phase.classes.items())
    yield f"  KV cache of an engine: {memory.kv_cache_tokens(shape, setup, assumed):,} tokens"


def describe_time(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> Iterable[str]:
    """Yield lines on the seconds of a step and the hours of the run, with the assumptions behind them."""
    parts = step_seconds(shape, setup, assumed)
    total = total_seconds(parts, setup.lag)
    yield (
        f"time a step: about {total:.0f} s ("
        + ", ".join(f"{name} {seconds:.0f}" for name, seconds in parts.items())
        + f"); {setup.steps:,} steps {total * setup.steps / 3600:.1f} h"
    )
    if setup.lag:
        yield (
            "  the next step is sampled beside the update: the longer of the two counts, rollouts with synthesis or "
            "update with scores"
        )
    yield (
        f"  assumed (tapo.plan): mean response {assumed.response_share:g} of the longest, "
        f"{assumed.constructed_share:g} of the constructed rows, MFU {assumed.mfu:g}, decoding at "
        f"{assumed.decode_efficiency:g} of the bandwidth + {assumed.decode_overhead_ms:g} ms, "
        f"{assumed.transfer_gb_s:g} GB/s to the host"
    )


def describe_storage(shape: ModelShape, setup: ClusterSetup) -> Iterable[str]:
    """Yield lines on disk and host memory."""
    one = memory.checkpoint_bytes(shape, setup)
    kept = f"{setup.kept} kept: {format_gib(one * setup.kept)} GiB" if setup.kept else "all kept"
    yield f"checkpoint: {format_gib(one)} GiB every {setup.save_every} steps, {kept} (one more while it is written)"
    host = memory.host_bytes(shape, setup)
    detail = ", ".join(f"{name} {size / GiB:.0f}" for name, size in host.items())
    yield f"host memory: about {sum(host.values()) / GiB:.0f} GiB a node" + (f" ({detail})" if detail else "")


def format_gib(size: float) -> str:
    """Format bytes as GiB with one decimal.

    >>> format_gib(1.5 * 2**30)
    '1.5'
    """
    return f"{size / GiB:.1f}"
