"""Give what a tiny base model of a generated task is made of: its tokenizer and its pre-training corpus."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nemo_tapo.config.sections import TaskConfig
from nemo_tapo.tasks import arithmetic_corpus
from nemo_tapo.tasks.corpus_example import CorpusExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GENERATED_TASKS = ("arithmetic", "countdown")  # those with an oracle that corrects, a corpus and a tokenizer
# A tiny decoder must learn to copy first, and learns it sooner if most of the early examples are repetition.
EARLY_ARITHMETIC_MIX = {"solution": 0.2, "repeat": 0.6, "copy": 0.2}

DrawExamples = Callable[[int, int, bool, float], list[CorpusExample]]  # (n, seed, early, mistake_rate)


def require_generated(cfg: TaskConfig) -> None:
    """Raise ValueError unless the task is one that a base model can be made for."""
    if cfg.name not in GENERATED_TASKS:
        raise ValueError(
            f"pretrain makes a base model for a generated task, and task.name = {cfg.name}: set it to "
            f"{' or '.join(GENERATED_TASKS)}."
        )


def build_task_tokenizer(cfg: TaskConfig) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a generated task."""
    require_generated(cfg)
    if cfg.name == "countdown":
        from nemo_tapo.tasks import countdown_tokenizer

        return countdown_tokenizer.build_tokenizer()
    from nemo_tapo.tasks import arithmetic_tokenizer

    return arithmetic_tokenizer.build_tokenizer()


def open_task_corpus(cfg: TaskConfig) -> DrawExamples:
    """Return what draws examples of a generated task's corpus; `early` ones are those of the first steps."""
    require_generated(cfg)
    if cfg.name == "countdown":
        from nemo_tapo.tasks import countdown_corpus, countdown_task

        corpus = countdown_task.open_corpus(cfg.countdown)
        mixes = {True: countdown_corpus.EARLY_MIX, False: countdown_corpus.MIX}
        return lambda n, seed, early, mistake_rate: corpus.draw(n, seed, mixes[early], mistake_rate)

    def draw(n: int, seed: int, early: bool, mistake_rate: float) -> list[CorpusExample]:
        mix = EARLY_ARITHMETIC_MIX if early else arithmetic_corpus.CORPUS_MIX
        return arithmetic_corpus.make_corpus(n, seed, mix, mistake_rate)

    return draw
