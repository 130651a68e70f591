"""Train a tiny base model from random weights of the Qwen3 architecture, on a generated corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.stages.session import Session
from nemo_tapo.stages.supervised import SupervisedTraining, train_supervised
from nemo_tapo.tasks.generated import DrawExamples, build_task_tokenizer, open_task_corpus, require_generated
from nemo_tapo.types import Kind, Row
from nemo_tapo.utils.seeding import seed_from

INITIAL = "initial"


def prepare_initial_model(cfg: RunConfig) -> RunConfig:
    """Write <output>/initial, a Hugging Face directory with random weights and the task's tokenizer.

    Return the config with `model.path` set to it. An existing directory is kept, so that the command can be resumed.
    """
    require_generated(cfg.task)
    folder = cfg.output / INITIAL
    if not (folder / "config.json").is_file():
        write_random_model(cfg, folder)
    model = cfg.model.model_copy(update={"path": folder})
    return cfg.model_copy(update={"model": model})


def write_random_model(cfg: RunConfig, folder: Path) -> None:
    """Write a Qwen3 decoder with seeded random weights into `folder`, with the task's tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer, settings = build_task_tokenizer(cfg.task), cfg.pretrain
    torch.manual_seed(cfg.seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.hidden_size // settings.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_corpus_rows(cfg: RunConfig, tokenizer: Tokenizer, draw: DrawExamples, step: int) -> Sequence[Row]:
    """Return the corpus of one pre-training step, which depends on (seed, step) alone.

    As in any pre-training, the loss covers every token of a text, the question's too: training on the answers alone
    is much slower.
    """
    settings = cfg.pretrain
    seed = seed_from(cfg.seed, "corpus", step)
    drawn = draw(settings.examples_per_step, seed, step < settings.early_steps, settings.mistake_rate)
    rows = []
    for index, example in enumerate(drawn):
        ids = (*tokenizer.chat(example.prompt), *tokenizer.encode(example.response), tokenizer.eos_id)
        uid = f"{example.kind}-{step}-{index}"
        rows.append(Row(uid, uid, Kind.EXAMPLE, ids[:1], ids[1:]))
    return rows


async def pretrain(session: Session) -> None:
    """Train a base model from random weights on the generated task, into <output>/hf."""
    cfg, tokenizer = session.cfg, session.runtime.tokenizer
    draw = open_task_corpus(cfg.task)
    training = SupervisedTraining(
        name="pre-training",
        folder=session.output,
        steps=cfg.pretrain.steps,
        examples=lambda step: make_corpus_rows(cfg, tokenizer, draw, step),
        optimizer=cfg.pretrain.optimizer,
        fingerprint=cfg.fingerprint("pretrain", "task"),
    )
    await train_supervised(session, training)
