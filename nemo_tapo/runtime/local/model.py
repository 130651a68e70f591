"""Build Megatron-core's GPTModel on the CPU, as a config.json of Llama, Qwen2 or Qwen3 describes it."""

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
from nemo_tapo.runtime.local.pipeline_schedule import finalize_gradients


class LogitsGPTModel(GPTModel):  # type: ignore[misc]
    """Megatron's GPTModel, except that it returns logits; the loss is computed from them outside the model."""

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Transpose the logits from [s, b, V/TP] to [b, s, V/TP], as a view.

        Megatron calls this only when it gets labels. Without labels it would copy the logits into that order.
        """
        return logits.transpose(0, 1)


def make_transformer_config(info: ModelInfo, tp: int, pp: int) -> TransformerConfig:
    """Return Megatron's settings for the model: fp32, no fusion, no dropout, gradients summed and never averaged."""
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
        qk_layernorm=shape.qk_norm,
        add_qkv_bias=shape.qkv_bias,
        gated_linear_unit=True,
        activation_func=F.silu,
        use_te_activation_func=True,  # apply the spec's activation (layers.SwiGLU) to the whole output of fc1
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        params_dtype=torch.float32,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
        perform_initialization=False,  # the weights are always loaded from a directory
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        deallocate_pipeline_outputs=False,
        # micro-batches differ in length and in rows: each stage sends the shape before the tensor
        variable_seq_lengths=pp > 1,
        moe_token_dispatcher_type="alltoall",  # there are no experts; the default refuses variable lengths
        # keeps Megatron from dividing by micro-batches and by data-parallel ranks: we need the sum, because
        # Batch.loss_coef holds every normaliser (see pipeline_schedule.py)
        calculate_per_token_loss=True,
    )


def build_model(info: ModelInfo, tp: int, pp: int) -> DistributedDataParallel:
    """Build this rank's part of the model; its weights are not set yet. Needs Megatron's parallel state."""
    config = make_transformer_config(info, tp, pp)
    config.finalize_model_grads_func = finalize_gradients
    layer = get_gpt_layer_local_spec(qk_layernorm=info.shape.qk_norm, normalization="RMSNorm")
    layer.submodules.self_attention.submodules.core_attention = partial(CausalAttention, rope=info.rope)
    layer.submodules.mlp.submodules.activation_func = SwiGLU
    model = LogitsGPTModel(
        config=config,
        transformer_layer_spec=layer,
        vocab_size=info.shape.padded_vocab(tp),
        max_sequence_length=info.max_length,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=True,
        share_embeddings_and_output_weights=info.shape.tied,
        position_embedding_type="none",  # CausalAttention applies the positions
    )
    return DistributedDataParallel(
        config, DistributedDataParallelConfig(overlap_grad_reduce=False, use_distributed_optimizer=False), model
    )


def get_named_parameters(model: DistributedDataParallel) -> dict[str, torch.nn.Parameter]:
    """Return this rank's parameters by Megatron name, without the wrapper's prefix."""
    return {name.removeprefix("module."): p for name, p in model.named_parameters()}


def get_gradient(parameter: torch.nn.Parameter) -> Tensor:
    """Return the gradient that Megatron's DistributedDataParallel sums up: a view of its buffer, not `.grad`."""
    return cast(Tensor, parameter.main_grad)  # type: ignore[attr-defined]
