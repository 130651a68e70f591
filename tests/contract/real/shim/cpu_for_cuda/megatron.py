"""What Megatron-Bridge and Megatron-LM ask of a GPU beyond torch.cuda, and of packages that only GPU machines have."""

from __future__ import annotations

import functools
from typing import Any

from .after_import import Hook, lend_empty, replace


def allow_no_cuda(initialize: Any) -> None:
    """Let Megatron-Bridge start without CUDA: training/initialize.py:91 asserts it.

    Lines 703, 758 and 866 ask again, for the number of devices.
    """
    import torch

    start = initialize.initialize_megatron
    replace(initialize, "initialize_megatron", functools.partial(start, allow_no_cuda=True))
    replace(torch.cuda, "device_count", lambda: 1)


def keep_cpu_random_states(random: Any) -> None:
    """Let the tracker of random states keep the CPU's: core/tensor_parallel/random.py:104-175 and :303-308."""
    import torch

    get, put = torch.get_rng_state, torch.set_rng_state
    replace(torch.cuda, "get_rng_state", lambda device=None: get())
    replace(torch.cuda, "set_rng_state", lambda state, device=None: put(state))
    replace(torch.cuda, "manual_seed", torch.random.default_generator.manual_seed)
    replace(random, "_get_cuda_rng_state", lambda device="cuda", clone=False, graph_safe=False: get())
    replace(random, "_set_cuda_rng_state", lambda state, device=-1, graph_safe=False: put(state))


def take_local_layers(provider: Any) -> None:
    """Build Megatron-core's own layers where Transformer Engine's are built: models/gpt_provider.py:51 and :125."""
    replace(provider, "transformer_engine_layer_spec", provider.local_layer_spec)


def write_by_megatron(strategies: Any) -> None:
    """Write checkpoints by Megatron-core's own writer: core/dist_checkpointing/strategies/torch.py:1043.

    Its default is nvidia-resiliency-ext's, which the package index does not have.
    """
    get = strategies.get_async_strategy
    replace(strategies, "get_async_strategy", lambda strategy="mcore", module=None: get("mcore", module))


def compile_nothing(utils: Any) -> None:
    """Leave out the C++ index builders of Megatron's pretraining data: core/datasets/utils.py:20 runs make."""
    replace(utils, "compile_helpers", lambda: None)


TRANSFORMER_ENGINE = lend_empty("transformer_engine", "transformer_engine.pytorch")

HOOKS = {
    "megatron.bridge.training.initialize": Hook(allow_no_cuda),
    "megatron.bridge.models.gpt_provider": Hook(take_local_layers),
    # These import Transformer Engine for the classes that adapters wrap: peft/lora_layers.py:20; lora.py:22 in v0.7.0.
    "megatron.bridge.peft.lora": Hook(around=TRANSFORMER_ENGINE),
    "megatron.bridge.peft.lora_layers": Hook(around=TRANSFORMER_ENGINE),
    "megatron.core.tensor_parallel.random": Hook(keep_cpu_random_states),
    "megatron.core.dist_checkpointing.strategies.torch": Hook(write_by_megatron),
    "megatron.core.datasets.utils": Hook(compile_nothing),
}
