"""`NemoRLRuntime`: one policy and its engine on a cluster, created by NeMo-RL's own `setup`.

```
 driver (train.py) --> NemoActor ------> Policy          (Megatron or DTensor workers)
                   --> NemoGenerator --> VllmGeneration  (sync or async engines)
                   --> NemoCheckpoints -> CheckpointManager;  NemoRecorder -> Logger, TimeoutChecker
```
ColocationScheduler decides whether policy or engine uses the GPUs; with `rollout.lag: 1` each has its own and
SeparateScheduler lets both work at once. NeMo-RL's `setup` divides the cluster, starts
engines and workers in an order that fits into memory, and connects them for refitting; how it does so differs between
releases. Its dataloader and its loss are not used for training.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from nemo_tapo.checkpoint import require_same_run
from nemo_tapo.config.run_config import RunConfig, rl_fingerprint
from nemo_tapo.interfaces import CheckpointStore, Recorder, Task
from nemo_tapo.runtime.hf_tokenizer import HFTokenizer
from nemo_tapo.runtime.nemo_rl import compat
from nemo_tapo.runtime.nemo_rl.actor import BatchShape, NemoActor, PolicyAdapters, PolicyOrigin
from nemo_tapo.runtime.nemo_rl.checkpoint_manager import NemoCheckpoints, choose_checkpoint, find_newest_checkpoint
from nemo_tapo.runtime.nemo_rl.colocation import ColocationScheduler
from nemo_tapo.runtime.nemo_rl.config.translate import keeps_reference, read_timeouts
from nemo_tapo.runtime.nemo_rl.conversion import choose_conversion, record_conversion, use_conversion
from nemo_tapo.runtime.nemo_rl.environment_task import make_environment_task
from nemo_tapo.runtime.nemo_rl.generator import EngineSettings, NemoGenerator
from nemo_tapo.runtime.nemo_rl.hf_export import HFConverter
from nemo_tapo.runtime.nemo_rl.loss_setup import make_logit_loss, ship_by_value
from nemo_tapo.runtime.nemo_rl.nemo_calls import CLOSE_TIMEOUT, run_blocking, run_in_time
from nemo_tapo.runtime.nemo_rl.nemo_logger import NemoRecorder
from nemo_tapo.runtime.nemo_rl.separation import SeparateScheduler
from nemo_tapo.tasks.registry import add_rewards, make_task
from nemo_tapo.utils.errors import RuntimeFailure
from nemo_tapo.utils.signals import Stop

Status = Callable[[str], None]
COMMANDS = ("train", "evaluate", "coldstart", "diagnose")
ANSWER_TIMEOUT = "NRL_VLLM_ASYNC_TIMEOUT_SECONDS"  # NeMo-RL's own deadline of one response, 900 s unless it is set


class NemoRLRuntime:
    """`interfaces.Runtime` on a cluster. Created by `start`."""

    def __init__(
        self,
        master: Mapping[str, Any],
        cfg: RunConfig,
        parts: compat.NemoParts,
        tokenizer: Any,
        warnings: Sequence[str] = (),
    ) -> None:
        """Connect `parts`, which NeMo-RL's setup created from `master` (see `prepare_master_config`).

        `warnings` are sentences on the checkpoint that it starts from; they are told when the loop begins.
        """
        policy, generation = master["policy"], master["policy"]["generation"]
        self._closed, self._stop, self._warnings = False, Stop(), tuple(warnings)
        self._limits = read_timeouts(master.get("tapo") or {})
        self._parts, self._checkpoint = parts, find_newest_checkpoint(get_checkpoint_dir(master))
        self._config, self._nemo_tokenizer, self._master = master, tokenizer, parts.master
        self._queries_per_step = cfg.rollout.queries_per_step
        self._must_save_by = master["checkpointing"].get("checkpoint_must_save_by")
        self.tokenizer = HFTokenizer.from_loaded(tokenizer, policy["tokenizer"]["name"], cfg.model.enable_thinking)
        make_batch = compat.load("BatchedDataDict")
        buffer = policy.get("refit_buffer_size_gb")
        refit = partial(compat.load("refit_policy_generation"), _refit_buffer_size_gb=buffer)
        colocated, timeout = bool(generation["colocated"]["enabled"]), self._limits.call_timeout
        kind = SeparateScheduler if cfg.rollout.lag else ColocationScheduler
        scheduler = kind(parts.policy, parts.engine, colocated, refit, timeout=timeout)
        self._scheduler = scheduler
        self.actor = NemoActor(
            policy=parts.policy,
            scheduler=scheduler,
            shape=make_batch_shape(policy, parts.policy, self.tokenizer.pad_id),
            origin=PolicyOrigin(
                model=Path(policy["model_name"]),
                checkpoint=self._checkpoint.path if self._checkpoint else None,
                has_reference=keeps_reference(cfg),
            ),
            adapters=PolicyAdapters(
                make_loss=partial(
                    make_logit_loss,
                    loss_fn=compat.get_section(parts.master, "loss_fn"),
                    temperature=generation["temperature"],
                    chunk=policy.get("logprob_chunk_size"),
                ),
                make_batch=make_batch,
                export=HFConverter(get_checkpoint_dir(master), policy, timeout, lambda saved: self._stop.check(saved)),
            ),
            checkpointing=master["checkpointing"],
        )
        self.generator = NemoGenerator(
            parts.engine, scheduler, make_engine_settings(parts.master, generation), self.tokenizer, make_batch
        )

    @classmethod
    async def start(
        cls,
        master: Mapping[str, Any],
        cfg: RunConfig,
        status: Status = lambda text: None,
        command: str = "train",
        policy_factory: Any = None,
    ) -> NemoRLRuntime:
        """Join or start Ray, then start NeMo-RL's cluster, engine and policy (from the newest checkpoint, if any).

        `master` is NeMo-RL's resolved configuration, `cfg` the configuration derived from it. Raises ValueError for
        settings that cannot run, before anything is started.
        """
        master = prepare_master_config(master, cfg, command)
        limits, warnings = read_timeouts(master.get("tapo") or {}), list[str]()
        status("verifying the last checkpoint")
        checkpoint = choose_checkpoint(get_checkpoint_dir(master), warnings.append)
        if checkpoint is not None and command == "train":
            require_same_run(checkpoint, rl_fingerprint(cfg))  # the loop checks again; here no GPU is in use yet
        resumed = checkpoint is not None and command == "train"
        conversion = choose_conversion(master["policy"], cfg.output, resumed, keeps_reference(cfg))
        status("joining Ray")
        os.environ.setdefault(ANSWER_TIMEOUT, str(limits.call_timeout))
        join_ray()
        ship_by_value()
        tokenizer = compat.load("get_tokenizer")(master["policy"]["tokenizer"])
        master["policy"]["generation"] = compat.configure_generation(master["policy"], tokenizer, cfg.prefilled)
        status("starting NeMo-RL" + (f" from {checkpoint.path}" if checkpoint else ""))
        config = compat.load("MasterConfig")(**master)
        queries = PlaceholderDataset(master["grpo"]["num_prompts_per_step"] * cfg.steps)
        make = partial(make_policy, policy_factory or compat.load("Policy"), keeps_reference(cfg))
        setup = partial(compat.run_setup, config, tokenizer, queries, make)
        with use_conversion(conversion, master["policy"], status):
            parts = await run_blocking(setup, "NeMo-RL's setup of workers", limits.start_timeout, "start_timeout")
        if command == "train":
            record_conversion(conversion, cfg.output)
        return cls(master, cfg, parts, tokenizer, warnings)

    def checkpoints(self, folder: Path, keep: int) -> CheckpointStore:
        """Return the store in checkpointing.checkpoint_dir, which NeMo-RL prunes by its own rules.

        `folder` and `keep` are ignored: a job of this runtime trains once.
        """
        parts = self._parts
        return NemoCheckpoints(
            parts.checkpointer,
            parts.policy,
            self._master,
            parts.dataloader,
            self._queries_per_step,
            self._checkpoint,
            self._warnings,
            self._limits.call_timeout,
        )

    def wrap_recorder(self, recorder: Recorder, stop: Stop) -> Recorder:
        """Return a recorder that also writes to NeMo-RL's Logger and watches checkpoint_must_save_by.

        From now on `stop` also ends an export.
        """
        self._stop = stop
        timeout = compat.load("TimeoutChecker")(timeout=self._must_save_by, fit_last_save_time=True)
        return NemoRecorder(recorder, self._parts.logger, timeout, stop, self._scheduler.take_times)

    def task(self, cfg: RunConfig) -> Task:
        """Return the task that `cfg.task` names; `nemo_rl` means NeMo-RL's own data and environments."""
        if cfg.task.name == "nemo_rl":
            task = make_environment_task(self._config, self._nemo_tokenizer, self.tokenizer, self._limits)
            return add_rewards(task, cfg.task)
        return make_task(cfg.task, cfg.seed)

    def processes(self) -> Mapping[str, Sequence[int]]:
        """Return nothing: workers and engines are Ray's, on any node; NeMo-RL watches their memory itself."""
        return {}

    def close(self) -> None:
        """Stop engines and workers and release their placement groups. A second call does nothing."""
        parts = self._parts
        if self._closed:
            return
        self._closed = True
        ends = [each.shutdown for each in (parts.engine, parts.policy, *parts.clusters)]
        ends += [parts.logger.finish] if hasattr(parts.logger, "finish") else []  # main only
        for end in ends:
            with suppress(RuntimeFailure):  # it hangs or is gone: what ended the run is the thing to tell
                run_in_time(end, "NeMo-RL's shutdown", CLOSE_TIMEOUT)


class PlaceholderDataset:
    """A data set without content for NeMo-RL's setup, which derives the number of steps from its length.

    The loop takes its queries from datasets/query_order.py.

    >>> data = PlaceholderDataset(96)
    >>> len(data), data[7]
    (96, 7)
    """

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return index


def prepare_master_config(master: Mapping[str, Any], cfg: RunConfig, command: str) -> dict[str, Any]:
    """Return a copy of NeMo-RL's configuration, adapted for its `setup` and for `command`.

    Raises ValueError for a command, for temperatures, or for an evaluation that cannot run.
    """
    if command not in COMMANDS:
        raise ValueError(
            f"`nemo-tapo {command}` does not run on NeMo-RL, which builds one optimizer a job; "
            "train, evaluate, coldstart and diagnose do."
        )
    adapted = copy.deepcopy(dict(master))
    generation = adapted["policy"]["generation"]
    if command != "train":
        # NeMo-RL's setup prefers a folder's newest checkpoint to policy.model_name, so it gets a folder without any.
        adapted.setdefault("checkpointing", {})["checkpoint_dir"] = str(cfg.output / "evaluation" / "no-checkpoints")
    if command == "evaluate":
        sampling = cfg.evaluation
        if sampling.synthesis_queries:
            raise ValueError(
                f"tapo.evaluation.synthesis_queries = {sampling.synthesis_queries}: NeMo-RL's engine samples all "
                "with the evaluation's temperature and length, so synthesis is not measured there: set it to 0."
            )
        generation |= {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_new_tokens": sampling.max_tokens,
        }
    else:
        generation["max_new_tokens"] = cfg.rollout.max_tokens
        if cfg.coldstart.writer == "model" if command == "coldstart" else cfg.constructs:
            require_one_temperature(cfg)
            generation["max_new_tokens"] = max(cfg.rollout.max_tokens, cfg.tapo.max_tokens)
    write_checkpoints_at_once(adapted)
    engine = generation.setdefault("vllm_cfg", {})
    engine["logprobs_mode"] = "processed_logprobs"  # v0.7.0 always has it; on main vLLM's default is another
    generation |= {f"val_{name}": generation[name] for name in ("temperature", "top_p", "top_k")}
    adapted["grpo"] |= {"val_period": 0, "val_at_start": False, "val_at_end": False}  # `nemo-tapo evaluate` does that
    adapted["data"] |= {"shuffle": False, "num_workers": 0, "use_multiple_dataloader": False}  # see PlaceholderDataset
    return adapted


def write_checkpoints_at_once(master: dict[str, Any]) -> None:
    """Turn asynchronous checkpoints off in `master`, where its release has them.

    On main, Megatron's writer has silently repeated its first checkpoint (NeMo-RL issue 3312) and damaged optimizer
    states (4183); nothing waits for the writer of DTensor v2. A run that goes on from its checkpoints cannot have that.
    """
    checkpoint = (master["policy"].get("megatron_cfg") or {}).get("checkpoint")
    if checkpoint:
        checkpoint |= {"async_save": False, "ckpt_assume_constant_structure": False}
    if (master["policy"].get("dtensor_cfg") or {}).get("enabled"):
        master.setdefault("checkpointing", {})["is_async"] = False


def make_policy(make: Callable[..., Any], reference: bool, **arguments: Any) -> Any:
    """Create NeMo-RL's Policy with or without a reference model.

    NeMo-RL itself would keep a reference model only for a KL penalty, not for reporting the KL.
    """
    return make(**{**arguments, "init_reference_model": reference})


def require_one_temperature(cfg: RunConfig) -> None:
    """Raise ValueError if rollouts and synthesis have different temperatures: NeMo-RL's engine has only one."""
    if cfg.tapo.temperature != cfg.rollout.temperature:
        raise ValueError(
            f"tapo.temperature = {cfg.tapo.temperature:g} and policy.generation.temperature = "
            f"{cfg.rollout.temperature:g}: NeMo-RL's engine samples everything at one temperature; make them equal."
        )


def get_checkpoint_dir(master: Mapping[str, Any]) -> Path:
    """Return checkpointing.checkpoint_dir as an absolute path: workers may have another working directory.

    >>> get_checkpoint_dir({"checkpointing": {"checkpoint_dir": "/results/run"}})
    PosixPath('/results/run')
    """
    return Path(os.path.abspath(master["checkpointing"]["checkpoint_dir"]))


def make_batch_shape(policy: Mapping[str, Any], nemo_policy: Any, pad_id: int) -> BatchShape:
    """Return the batch sizes that the `policy` section requires; `nemo_policy` is the Policy made from it."""
    ranks = nemo_policy.sharding_annotations.get_axis_size("data_parallel")
    packs = policy["sequence_packing"]["enabled"] or policy["dynamic_batching"]["enabled"]
    return BatchShape(
        train_rows=policy["train_global_batch_size"],
        row_multiple=ranks if packs else ranks * policy["logprob_batch_size"],
        width_multiple=policy["make_sequence_length_divisible_by"],
        data_parallel=ranks,
        pad_id=pad_id,
        temperature=policy["generation"]["temperature"],
    )


def make_engine_settings(master: Any, generation: Mapping[str, Any]) -> EngineSettings:
    """Return the settings of NemoGenerator from the policy.generation section."""
    return EngineSettings(
        max_model_len=generation["vllm_cfg"]["max_model_len"],
        max_new_tokens=generation["max_new_tokens"],
        temperature=generation["temperature"],
        top_p=generation["top_p"],
        asynchronous=compat.uses_async_engine(master),
        pad_id=generation["_pad_token_id"],
    )


def join_ray() -> None:
    """Start or join Ray as NeMo-RL needs it, unless this process is already connected."""
    import ray

    if not ray.is_initialized():
        compat.load("init_ray")()
