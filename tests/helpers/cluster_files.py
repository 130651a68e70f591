"""A cluster config that needs no NeMo-RL: its sections in the smallest form, for tests of what is derived from them."""

from __future__ import annotations

from pathlib import Path

BASE = """
grpo: {num_prompts_per_step: 32, num_generations_per_prompt: 8, max_num_steps: 500, seed: 42}
loss_fn:
  reference_policy_kl_penalty: 0.0
  ratio_clip_min: 0.2
  ratio_clip_max: 0.28
  token_level_loss: false
  force_on_policy_ratio: false
checkpointing: {enabled: true, checkpoint_dir: results/x, metric_name: null, keep_top_k: 2, save_period: 25}
policy:
  model_name: Qwen/Qwen3-8B
  tokenizer: {name: "${policy.model_name}", chat_template_kwargs: {enable_thinking: false}}
  train_global_batch_size: auto
  train_micro_batch_size: 1
  logprob_batch_size: 1
  max_total_sequence_length: 10240
  make_sequence_length_divisible_by: ${policy.megatron_cfg.tensor_model_parallel_size}
  dtensor_cfg: {enabled: false}
  dynamic_batching: {enabled: false}
  sequence_packing:
    enabled: true
    train_mb_tokens: ${mul:${policy.max_total_sequence_length}, ${policy.train_micro_batch_size}}
  megatron_cfg:
    enabled: true
    tensor_model_parallel_size: 2
    pipeline_model_parallel_size: 1
    context_parallel_size: 1
    expert_model_parallel_size: 1
    expert_tensor_parallel_size: 1
    sequence_parallel: true
    defer_fp32_logits: true
    optimizer:
      lr: 1.0e-6
      min_lr: 1.0e-7
      weight_decay: 0.0
      adam_beta1: 0.9
      adam_beta2: 0.95
      clip_grad: 1.0
      use_distributed_optimizer: true
      use_precision_aware_optimizer: true
    scheduler: {lr_decay_style: cosine, lr_warmup_iters: 10}
  generation:
    backend: vllm
    max_new_tokens: 8192
    temperature: 1.0
    top_p: 1.0
    top_k: null
    colocated: {enabled: true, resources: {gpus_per_node: null, num_nodes: null}}
    vllm_cfg: {async_engine: true, tensor_parallel_size: 1, gpu_memory_utilization: 0.6, max_model_len: 27136}
cluster: {num_nodes: 1, gpus_per_node: 8}
tapo: {algorithm: tapo, max_tokens: 8192}
"""


def cluster_file(folder: Path, more: str = "") -> Path:
    """`run.yaml` in `folder`, inheriting `base.yaml` beside it."""
    (folder / "base.yaml").write_text(BASE)
    path = folder / "run.yaml"
    path.write_text(f"defaults: base.yaml\n{more}")
    return path
