"""Text of `nemo-tapo plan` for a cluster: memory, time and disk of a run, and why a run would not fit.

The summary fits a screen of 80 x 24 characters; the details have every class of memory and every assumption.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from nemo_tapo.planning import memory
from nemo_tapo.planning.cluster_setup import GPUS, Assumptions, ClusterSetup, GiB
from nemo_tapo.planning.model_shape import ModelShape
from nemo_tapo.planning.step_time import StepTime, estimate_step

COLUMNS, ROWS, LABEL = 80, 23, 10  # the screen's 24th row is the shell's next prompt


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
    for name, classes in memory.host_phases(shape, setup).items():
        needed = sum(classes.values()) / GiB
        if assumed.host_memory_gib and needed > assumed.host_memory_gib:
            yield (
                f"{name}, a node's host needs about {needed:.0f} GiB; tapo.plan.host_memory_gib is "
                f"{assumed.host_memory_gib:g}."
            )


CURES = {
    "training": (
        "Divide further (tensor_model_parallel_size, pipeline_model_parallel_size), add nodes (the optimizer is shared "
        "out over DP), recompute (activation_checkpointing) or lower train_mb_tokens."
    ),
    "generation": "Lower vllm_cfg.gpu_memory_utilization.",
    "handing weights over": "Raise vllm_cfg.tensor_parallel_size or tensor_model_parallel_size.",
}


# ---- the summary -----------------------------------------------------------------------------------------------------


def summarize_plan(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> list[str]:
    """Return the lines of the summary on memory, time and disk, of at most 80 characters each."""
    lines = summarize_layout(setup)
    lines += [f"memory, GiB of {format_gib(GPUS[assumed.gpu].memory)} a GPU ({assumed.gpu}), estimated"]
    for phase in memory.phases(shape, setup, assumed) if setup.megatron else []:
        largest = f"largest: {phase.largest} {format_gib(phase.classes[phase.largest])}"
        lines.append(
            f"  {phase.name:<21}{format_gib(phase.total):>6}  {'' if phase.fits else 'DOES NOT FIT, '}{largest}"
        )
    if not setup.megatron:
        lines.append("  no estimate is made for DTensor")
    host = ", ".join(
        f"{sum(classes.values()) / GiB:.0f} {name}" for name, classes in memory.host_phases(shape, setup).items()
    )
    lines += wrap(f"  on a node's host: {host or 'little'}")
    step = estimate_step(shape, setup, assumed)
    hours = step.total * setup.steps / 3600
    lines.append(f"time: {format_seconds(step.total)} s a step, estimated; {setup.steps:,} steps {format_hours(hours)}")
    lines += wrap("  " + ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in step.parts.items()))
    one = memory.checkpoint_bytes(shape, setup)
    kept = (
        f"{setup.kept} kept and one being written: {format_gib(one * (setup.kept + 1))}" if setup.kept else "all kept"
    )
    return [*lines, f"disk, GiB: checkpoint {format_gib(one)} every {setup.save_every} steps, {kept}"]


def summarize_layout(setup: ClusterSetup) -> list[str]:
    """Return the lines of the summary that need no shape of the model."""
    place = "the same GPUs" if setup.colocated else f"{setup.engine_gpus} GPUs of their own"
    return [
        label("a step", f"{setup.queries} queries x {setup.samples} rollouts, {setup.updates} update(s), at most")
        + f" {setup.most_constructed} constructed rows",
        label("policy", f"{setup.train_gpus} of {setup.nodes} x {setup.gpus_per_node} GPUs = {describe_ranks(setup)}"),
        label("engines", f"{setup.engines} of TP {setup.engine_tp} x PP {setup.engine_pp} on {place}"),
    ]


def label(name: str, text: str) -> str:
    """Return a line of the summary, its texts below each other.

    >>> label("policy", "8 GPUs")
    'policy    8 GPUs'
    """
    return f"{name:<{LABEL}}{text}"


def wrap(text: str) -> list[str]:
    """Break a line of the summary at 80 characters, with the indentation of its beginning."""
    indent = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(text, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def describe_ranks(setup: ClusterSetup) -> str:
    """Name the divisions of the policy that divide anything; DP always."""
    sizes = {"TP": setup.tp, "PP": setup.pp, "CP": setup.cp, "EP": setup.ep}
    return " x ".join([f"{name} {size}" for name, size in sizes.items() if size > 1] + [f"DP {setup.dp}"])


def format_seconds(seconds: float) -> str:
    """Format seconds, with a decimal below ten.

    >>> format_seconds(131.4), format_seconds(3.26)
    ('131', '3.3')
    """
    return f"{seconds:.0f}" if seconds >= 9.95 else f"{seconds:.1f}"


def format_hours(hours: float) -> str:
    """Format hours, and days beside them.

    >>> format_hours(18.2)
    '18.2 h = 0.8 days'
    """
    return f"{hours:.1f} h = {hours / 24:.1f} days"


# ---- the details -----------------------------------------------------------------------------------------------------


def describe_plan(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> list[str]:
    """Return the lines of the details: sentences and table rows."""
    return [
        *describe_step(setup),
        *describe_parallelism(shape, setup),
        *describe_memory(shape, setup, assumed),
        *describe_time(setup, assumed, estimate_step(shape, setup, assumed)),
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
        + f", in {memory.name_precision(setup.policy_bytes)}"
    )
    place = "the same GPUs" if setup.colocated else f"{setup.engine_gpus} GPUs of their own"
    yield (
        f"engines: {setup.engines} of TP {setup.engine_tp} x PP {setup.engine_pp} on {place}, in "
        f"{memory.name_precision(setup.engine_bytes)}"
    )


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


def describe_time(setup: ClusterSetup, assumed: Assumptions, step: StepTime) -> Iterable[str]:
    """Yield lines on the seconds of a step and the hours of the run, with the assumptions behind them."""
    yield (
        f"time a step: about {step.total:.0f} s ("
        + ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in step.parts.items())
        + f"); {setup.steps:,} steps {step.total * setup.steps / 3600:.1f} h"
    )
    if step.overlapped:
        yield "  the next step is sampled beside the update: the longer of the engines' and the policy's part counts"
    yield "  assumed (tapo.plan): " + ", ".join(f"{name} {value}" for name, value in assumed.model_dump().items())
    yield "  docs/cluster.md says where these are from, and has NeMo-RL's published times beside the plan's"


def describe_storage(shape: ModelShape, setup: ClusterSetup) -> Iterable[str]:
    """Yield lines on disk and host memory."""
    one = memory.checkpoint_bytes(shape, setup)
    kept = f"{setup.kept} kept: {format_gib(one * setup.kept)} GiB" if setup.kept else "all kept"
    yield f"checkpoint: {format_gib(one)} GiB every {setup.save_every} steps, {kept} (one more while it is written)"
    for when, classes in memory.host_phases(shape, setup).items():
        detail = ", ".join(f"{name} {size / GiB:.0f}" for name, size in classes.items())
        yield f"host memory {when}: about {sum(classes.values()) / GiB:.0f} GiB a node ({detail})"


def format_gib(size: float) -> str:
    """Format bytes as GiB with one decimal.

    >>> format_gib(1.5 * 2**30)
    '1.5'
    """
    return f"{size / GiB:.1f}"


def cut_lines(lines: Sequence[str]) -> str:
    """Join lines, each cut to the width of the screen.

    >>> cut_lines(["a" * 81])[-5:]
    'aa...'
    """
    return "\n".join(line if len(line) <= COLUMNS else line[: COLUMNS - 3] + "..." for line in lines)
