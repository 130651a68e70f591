"""Megatron-core's GPTModel with the sizes of a Qwen3 config.json, for the CPU."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from nemo_tapo.runtime.local.hf_checkpoint import ModelInfo
from nemo_tapo.runtime.local.layers import CausalAttention, SwiGLU
from nemo_tapo.runtime.local.pipeline_schedule import finalize


class Policy(GPTModel):  # type: ignore[misc]
    """Megatron's GPTModel that gives its logits away: the loss is made of them."""

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """[s, b, V/TP] -> [b, s, V/TP], a view. Without labels Megatron would copy the logits into that order."""
        return logits.transpose(0, 1)


def transformer_config(info: ModelInfo, tp: int, pp: int) -> TransformerConfig:
    """Megatron's settings for the model: fp32, no fusion, no dropout, gradients summed and never averaged."""
    shape = info.shape
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_query_groups=shape.kv_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn,
        normalization="RMSNorm",
        layernorm_epsilon=info.norm_eps,
        qk_layernorm=True,
        gated_linear_unit=True,
        activation_func=F.silu,
        use_te_activation_func=True,  # means: take the spec's activation (layers.SwiGLU) for the whole of fc1's output
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        params_dtype=torch.float32,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
        perform_initialization=False,  # the weights always come from a directory
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        deallocate_pipeline_outputs=False,
        # micro-batches differ in length and in rows: each stage tells the next the shape before the tensor
        variable_seq_lengths=pp > 1,
        moe_token_dispatcher_type="alltoall",  # there are no experts; the default refuses variable lengths
        # keeps Megatron from dividing by micro-batches and by data-parallel ranks: the sum is what we want, since
        # every normaliser is in Batch.loss_coef (see pipeline_schedule.py)
        calculate_per_token_loss=True,
    )


def build_model(info: ModelInfo, tp: int, pp: int) -> DistributedDataParallel:
    """This rank's part of the model, weights not yet set. Needs Megatron's parallel state."""
    config = transformer_config(info, tp, pp)
    config.finalize_model_grads_func = finalize
    layer = get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm")
    layer.submodules.self_attention.submodules.core_attention = partial(CausalAttention, rotary_base=info.rope_theta)
    layer.submodules.mlp.submodules.activation_func = SwiGLU
    model = Policy(
        config=config,
        transformer_layer_spec=layer,
        vocab_size=info.shape.padded_vocab(tp),
        max_sequence_length=info.max_length,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=True,
        share_embeddings_and_output_weights=info.shape.tied,
        position_embedding_type="none",  # CausalAttention sees to it
    )
    return DistributedDataParallel(
        config, DistributedDataParallelConfig(overlap_grad_reduce=False, use_distributed_optimizer=False), model
    )


def named_parameters(model: DistributedDataParallel) -> dict[str, torch.nn.Parameter]:
    """This rank's parameters under Megatron's names, without the wrapper's prefix."""
    return {name.removeprefix("module."): p for name, p in model.named_parameters()}


def gradient_of(parameter: torch.nn.Parameter) -> Tensor:
    """Where Megatron's DistributedDataParallel sums the gradient up: a view of its buffer, not `.grad`."""
    return cast(Tensor, parameter.main_grad)  # type: ignore[attr-defined]
