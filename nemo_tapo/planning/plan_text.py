"""`nemo-tapo plan` for a cluster: what a run will hold and take, in lines for people; and what cannot run."""

from __future__ import annotations

from collections.abc import Iterable

from nemo_tapo.planning import memory
from nemo_tapo.planning.cluster_setup import GPUS, Assumptions, GiB, Setup
from nemo_tapo.planning.model_shape import ModelShape
from nemo_tapo.planning.step_time import step_seconds


def faults(shape: ModelShape, setup: Setup, assumed: Assumptions) -> Iterable[str]:
    """Why the run would not fit, each a sentence that names the class of memory to look at first."""
    for phase in memory.phases(shape, setup, assumed):
        if not phase.fits:
            yield (
                f"{phase.name} needs about {gib(phase.total)} GiB a GPU and {assumed.gpu} has {gib(phase.capacity)}: "
                f"the largest part is {phase.largest} with {gib(phase.classes[phase.largest])}. {CURES[phase.name]}"
            )
    tokens = memory.cached_tokens(shape, setup, assumed)
    if tokens < setup.max_model_len:
        weights = gib(memory.engine_weights(shape, setup))
        yield (
            f"the KV cache holds {tokens:,} tokens and one completion may need {setup.max_model_len:,}: the engine's "
            f"weights take {weights} GiB of the {gib(GPUS[assumed.gpu].memory * setup.engine_memory)} GiB a GPU that "
            "gpu_memory_utilization gives it. Raise it, or vllm_cfg.tensor_parallel_size."
        )
    needed = sum(memory.host(shape, setup).values()) / GiB
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


def lines(shape: ModelShape, setup: Setup, assumed: Assumptions) -> list[str]:
    """The plan, a sentence or a table row a line."""
    return [
        *rows(setup),
        *division(shape, setup),
        *memory_table(shape, setup, assumed),
        *time_table(shape, setup, assumed),
        *storage(shape, setup),
    ]


def rows(setup: Setup) -> Iterable[str]:
    """What a step is made of."""
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


def division(shape: ModelShape, setup: Setup) -> Iterable[str]:
    """Who computes what."""
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


def memory_table(shape: ModelShape, setup: Setup, assumed: Assumptions) -> Iterable[str]:
    """GiB a GPU, phase by phase."""
    if not setup.megatron:
        yield "memory: no estimate is made for DTensor"
        return
    yield f"memory, GiB a GPU ({assumed.gpu}: {gib(GPUS[assumed.gpu].memory)}), estimated:"
    for phase in memory.phases(shape, setup, assumed):
        yield f"  {phase.name}: {gib(phase.total)}{'' if phase.fits else '  DOES NOT FIT'}"
        yield from (f"    {name:<40}{gib(size):>8}" for name, size in phase.classes.items())
    yield f"  KV cache of an engine: {memory.cached_tokens(shape, setup, assumed):,} tokens"


def time_table(shape: ModelShape, setup: Setup, assumed: Assumptions) -> Iterable[str]:
    """Seconds a step, and hours."""
    parts = step_seconds(shape, setup, assumed)
    whole = sum(parts.values())
    yield (
        f"time a step: about {whole:.0f} s ("
        + ", ".join(f"{name} {seconds:.0f}" for name, seconds in parts.items())
        + f"); {setup.steps:,} steps {whole * setup.steps / 3600:.1f} h"
    )
    yield (
        f"  assumed (tapo.plan): mean response {assumed.response_share:g} of the longest, "
        f"{assumed.constructed_share:g} of the constructed rows, MFU {assumed.mfu:g}, decoding at "
        f"{assumed.decode_efficiency:g} of the bandwidth + {assumed.decode_overhead_ms:g} ms, "
        f"{assumed.transfer_gb_s:g} GB/s to the host"
    )


def storage(shape: ModelShape, setup: Setup) -> Iterable[str]:
    """Disk and host memory."""
    one = memory.checkpoint_bytes(shape, setup)
    kept = f"{setup.kept} kept: {gib(one * setup.kept)} GiB" if setup.kept else "all kept"
    yield f"checkpoint: {gib(one)} GiB every {setup.save_every} steps, {kept} (one more while it is written)"
    host = memory.host(shape, setup)
    detail = ", ".join(f"{name} {size / GiB:.0f}" for name, size in host.items())
    yield f"host memory: about {sum(host.values()) / GiB:.0f} GiB a node" + (f" ({detail})" if detail else "")


def gib(size: float) -> str:
    """Bytes as GiB with one digit."""
    return f"{size / GiB:.1f}"
