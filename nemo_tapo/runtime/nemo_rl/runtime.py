"""`NemoRLRuntime`: one policy on a cluster, on NeMo-RL's own parts, made by NeMo-RL's own `setup`.

```
 driver (train.py) --> NemoActor ------> Policy          (Megatron or DTensor workers)
                   --> NemoGenerator --> VllmGeneration  (sync or async engines)       Phases: whose turn it is
                   --> NemoCheckpoints -> CheckpointManager;  NemoRecorder -> Logger, TimeoutChecker
```
`setup` divides the cluster, starts engines and workers in the order that memory wants, connects them for refitting,
and knows the releases' ways of doing so. Of what it makes, its dataloader and its loss are not used.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nemo_tapo.checkpoint import require_same_run
from nemo_tapo.config.run_config import RunConfig, rl_fingerprint
from nemo_tapo.interfaces import CheckpointStore, Recorder, Task
from nemo_tapo.runtime.hf_tokenizer import HFTokenizer
from nemo_tapo.runtime.nemo_rl import compat
from nemo_tapo.runtime.nemo_rl.actor import NemoActor, Shape
from nemo_tapo.runtime.nemo_rl.checkpoint_manager import NemoCheckpoints, newest
from nemo_tapo.runtime.nemo_rl.colocation import Phases, told
from nemo_tapo.runtime.nemo_rl.config.translate import keeps_reference
from nemo_tapo.runtime.nemo_rl.environment_task import environment_task
from nemo_tapo.runtime.nemo_rl.generator import EngineSettings, NemoGenerator
from nemo_tapo.runtime.nemo_rl.hf_export import Converter
from nemo_tapo.runtime.nemo_rl.loss_setup import make_loss, ship_by_value
from nemo_tapo.runtime.nemo_rl.nemo_logger import NemoRecorder
from nemo_tapo.tasks.registry import make_task
from nemo_tapo.utils.signals import Stop

Status = Callable[[str], None]
COMMANDS = ("train", "evaluate", "coldstart")


class NemoRLRuntime:
    """`interface.Runtime`. `start` makes it."""

    def __init__(self, master: Mapping[str, Any], cfg: RunConfig, parts: compat.Parts, tokenizer: Any) -> None:
        """`master` as `prepared` gives it, `parts` as NeMo-RL's setup made them."""
        policy, generation = master["policy"], master["policy"]["generation"]
        self._closed = False
        self._parts, self._found = parts, newest(checkpoint_dir(master))
        self._config, self._nemo_tokenizer, self._master = master, tokenizer, parts.master
        self._queries_per_step = cfg.rollout.queries_per_step
        self._must_save_by = master["checkpointing"].get("checkpoint_must_save_by")
        self.tokenizer = HFTokenizer.over(tokenizer, policy["tokenizer"]["name"], cfg.model.enable_thinking)
        batch = compat.load("BatchedDataDict")
        buffer = policy.get("refit_buffer_size_gb")
        refit = partial(compat.load("refit_policy_generation"), _refit_buffer_size_gb=buffer)
        phases = Phases(parts.policy, parts.engine, bool(generation["colocated"]["enabled"]), refit)
        self._phases = phases
        self.actor = NemoActor(
            policy=parts.policy,
            phases=phases,
            shape=shape_of(policy, parts.policy, self.tokenizer.pad_id),
            loss=partial(
                make_loss,
                loss_fn=compat.section(parts.master, "loss_fn"),
                temperature=generation["temperature"],
                chunk=policy.get("logprob_chunk_size"),
            ),
            batch=batch,
            model=Path(policy["model_name"]),
            loaded=self._found.path if self._found else None,
            has_reference=keeps_reference(cfg),
            checkpointing=master["checkpointing"],
            export=Converter(checkpoint_dir(master), policy),
        )
        self.generator = NemoGenerator(
            parts.engine, phases, engine_settings(parts.master, generation), self.tokenizer, batch
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
        """Joins or starts Ray, then NeMo-RL's cluster, engine and policy (from the newest checkpoint, if there is one).

        `master` is NeMo-RL's configuration, resolved; `cfg` what was derived from it. Raises ValueError for settings
        that cannot run, before anything is started.
        """
        master = prepared(master, cfg, command)
        found = newest(checkpoint_dir(master))
        if found is not None and command == "train":
            require_same_run(found, rl_fingerprint(cfg))  # the loop asks again; here no GPU is taken yet
        status("joining Ray")
        join_ray()
        ship_by_value()
        tokenizer = compat.load("get_tokenizer")(master["policy"]["tokenizer"])
        master["policy"]["generation"] = compat.configured_generation(master["policy"], tokenizer)
        status("starting NeMo-RL" + (f" from {found.path}" if found else ""))
        config = compat.load("MasterConfig")(**master)
        queries = StandIn(master["grpo"]["num_prompts_per_step"] * cfg.steps)
        make = policy_factory or compat.load("Policy")
        with told("a worker of NeMo-RL's setup"):
            parts = compat.set_up(config, tokenizer, queries, partial(make_policy, make, keeps_reference(cfg)))
        return cls(master, cfg, parts, tokenizer)

    def checkpoints(self, folder: Path, keep: int) -> CheckpointStore:
        """In checkpointing.checkpoint_dir, kept by NeMo-RL's rules: a job of this runtime trains once."""
        parts = self._parts
        return NemoCheckpoints(
            parts.checkpointer, parts.policy, self._master, parts.dataloader, self._queries_per_step, self._found
        )

    def wrap_recorder(self, recorder: Recorder, stop: Stop) -> Recorder:
        """`recorder`, NeMo-RL's Logger, and its watch over checkpoint_must_save_by."""
        timeout = compat.load("TimeoutChecker")(timeout=self._must_save_by, fit_last_save_time=True)
        return NemoRecorder(recorder, self._parts.logger, timeout, stop, self._phases.take_times)

    def task(self, cfg: RunConfig) -> Task:
        """The task that `cfg.task` names; `nemo_rl` is NeMo-RL's own data and environments."""
        if cfg.task.name == "nemo_rl":
            return environment_task(self._config, self._nemo_tokenizer, self.tokenizer)
        return make_task(cfg.task, cfg.seed)

    def close(self) -> None:
        """Ends engines and workers and gives their places back. A second call does nothing."""
        parts = self._parts
        if self._closed:
            return
        self._closed = True
        for each in (parts.engine, parts.policy, *parts.clusters):
            each.shutdown()
        finish = getattr(parts.logger, "finish", None)  # main only
        if finish is not None:
            finish()


class StandIn:
    """A data set of the right length for NeMo-RL's setup, which reckons the schedule's steps from it.

    Queries reach the loop from data.QueryOrder.
    """

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return index


def prepared(master: Mapping[str, Any], cfg: RunConfig, command: str) -> dict[str, Any]:
    """A copy of NeMo-RL's configuration as `setup` is to see it. Raises ValueError for what cannot run."""
    if command not in COMMANDS:
        raise ValueError(
            f"`nemo-tapo {command}` does not run on NeMo-RL, which builds one optimizer a job; "
            "train, evaluate and coldstart do."
        )
    own = copy.deepcopy(dict(master))
    generation = own["policy"]["generation"]
    if command != "train":
        # NeMo-RL's setup takes a folder's newest checkpoint in place of policy.model_name: here there shall be none.
        own.setdefault("checkpointing", {})["checkpoint_dir"] = str(cfg.output / "evaluation" / "no-checkpoints")
    if command == "evaluate":
        wanted = cfg.evaluation
        generation |= {"temperature": wanted.temperature, "top_p": wanted.top_p, "max_new_tokens": wanted.max_tokens}
    else:
        generation["max_new_tokens"] = cfg.rollout.max_tokens
        if cfg.constructs if command == "train" else cfg.coldstart.writer == "model":
            require_one_temperature(cfg)
            generation["max_new_tokens"] = max(cfg.rollout.max_tokens, cfg.tapo.max_tokens)
    generation |= {f"val_{name}": generation[name] for name in ("temperature", "top_p", "top_k")}
    own["grpo"] |= {"val_period": 0, "val_at_start": False, "val_at_end": False}  # `nemo-tapo evaluate` does that
    own["data"] |= {"shuffle": False, "num_workers": 0, "use_multiple_dataloader": False}  # see StandIn
    return own


def make_policy(make: Callable[..., Any], reference: bool, **given: Any) -> Any:
    """NeMo-RL's Policy; it would keep a reference model for a penalty alone, not for a report."""
    return make(**{**given, "init_reference_model": reference})


def require_one_temperature(cfg: RunConfig) -> None:
    """Raises ValueError if rollouts and synthesis are to be sampled differently: NeMo-RL's engine has one setting."""
    if cfg.tapo.temperature != cfg.rollout.temperature:
        raise ValueError(
            f"tapo.temperature = {cfg.tapo.temperature:g} and policy.generation.temperature = "
            f"{cfg.rollout.temperature:g}: NeMo-RL's engine samples everything at one temperature; make them equal."
        )


def checkpoint_dir(master: Mapping[str, Any]) -> Path:
    """Absolute, for the workers need not share this process's folder."""
    return Path(os.path.abspath(master["checkpointing"]["checkpoint_dir"]))


def shape_of(policy: Mapping[str, Any], made: Any, pad_id: int) -> Shape:
    """What the batches of `policy` must look like; `made` is the Policy."""
    ranks = made.sharding_annotations.get_axis_size("data_parallel")
    packs = policy["sequence_packing"]["enabled"] or policy["dynamic_batching"]["enabled"]
    return Shape(
        train_rows=policy["train_global_batch_size"],
        row_multiple=ranks if packs else ranks * policy["logprob_batch_size"],
        width_multiple=policy["make_sequence_length_divisible_by"],
        data_parallel=ranks,
        pad_id=pad_id,
        temperature=policy["generation"]["temperature"],
    )


def engine_settings(master: Any, generation: Mapping[str, Any]) -> EngineSettings:
    """policy.generation as the generator sees it."""
    return EngineSettings(
        max_model_len=generation["vllm_cfg"]["max_model_len"],
        max_new_tokens=generation["max_new_tokens"],
        temperature=generation["temperature"],
        top_p=generation["top_p"],
        asynchronous=compat.uses_async_engine(master),
        pad_id=generation["_pad_token_id"],
    )


def join_ray() -> None:
    """Ray as NeMo-RL wants it; one that runs in this process already is taken as it is."""
    import ray

    if not ray.is_initialized():
        compat.load("init_ray")()
