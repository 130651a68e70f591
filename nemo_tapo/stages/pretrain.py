"""Train a tiny base model from random weights of the Qwen3 architecture, on a generated corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.stages.session import Session
from nemo_tapo.stages.supervised import SupervisedTraining, train_supervised
from nemo_tapo.tasks import arithmetic_corpus
from nemo_tapo.types import Kind, Row
from nemo_tapo.utils.seeding import seed_from

INITIAL = "initial"
# A tiny decoder must learn to copy first, and learns it sooner if most of the early examples are repetition.
EARLY_MIX = {"solution": 0.2, "repeat": 0.6, "copy": 0.2}


def prepare_initial_model(cfg: RunConfig) -> RunConfig:
    """Write <output>/initial, a Hugging Face directory with random weights and the task's tokenizer.

    Return the config with `model.path` set to it. An existing directory is kept, so that the command can be resumed.
    """
    folder = cfg.output / INITIAL
    if not (folder / "config.json").is_file():
        write_random_model(cfg, folder)
    model = cfg.model.model_copy(update={"path": folder})
    return cfg.model_copy(update={"model": model})


def write_random_model(cfg: RunConfig, folder: Path) -> None:
    """Write a Qwen3 decoder with seeded random weights into `folder`, with the task's tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from nemo_tapo.tasks.arithmetic_tokenizer import build_tokenizer

    tokenizer, settings = build_tokenizer(), cfg.pretrain
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


def make_corpus_rows(cfg: RunConfig, tokenizer: Tokenizer, step: int) -> Sequence[Row]:
    """Return the corpus of one pre-training step, which depends on (seed, step) alone.

    As in any pre-training, the loss covers every token of a text, the question's too: training on the answers alone
    is much slower.
    """
    settings = cfg.pretrain
    seed = seed_from(cfg.seed, "corpus", step)
    mix = EARLY_MIX if step < settings.early_steps else arithmetic_corpus.CORPUS_MIX
    drawn = arithmetic_corpus.make_corpus(settings.examples_per_step, seed, mix, settings.mistake_rate)
    rows = []
    for index, example in enumerate(drawn):
        ids = (*tokenizer.chat(example.prompt), *tokenizer.encode(example.response), tokenizer.eos_id)
        uid = f"{example.kind}-{step}-{index}"
        rows.append(Row(uid, uid, Kind.EXAMPLE, ids[:1], ids[1:]))
    return rows


async def pretrain(session: Session) -> None:
    """Train a base model from random weights on the generated task, into <output>/hf."""
    cfg, tokenizer = session.cfg, session.runtime.tokenizer
    training = SupervisedTraining(
        name="pre-training",
        folder=session.output,
        steps=cfg.pretrain.steps,
        examples=lambda step: make_corpus_rows(cfg, tokenizer, step),
        optimizer=cfg.pretrain.optimizer,
        fingerprint=cfg.fingerprint("pretrain"),
    )
    await train_supervised(session, training)
