"""Small tokenizers of the kinds that language models have, trained here on a few lines, each token of any byte."""

from __future__ import annotations

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nemo_tapo.runtime.hf_tokenizer import HFTokenizer

KINDS = ("byte_level", "single_digits", "llama2", "mistral")  # as GPT-2 and Llama 3, SmolLM2, Llama 2, Mistral
CORPUS = (
    "3 crabs have 3 * 10 = 30 legs.\n2 bees have 2 * 6 = 12 legs.\n30 + 12 = 42\nThe answer is \\boxed{42}.",
    "Wait, that is wrong. 5 spiders have 5 * 8 = 40 legs, so the sum is 47 + 38 = 85.\n\nSo it's 85 "
    "\U0001f600 caf\u00e9 \u6771\u4eac.",
)
END, UNKNOWN, BYTES = "</s>", "<unk>", [f"<0x{byte:02X}>" for byte in range(256)]


def build_text_tokenizer(kind: str) -> HFTokenizer:
    """Build a tokenizer of one of KINDS, with about a hundred merges."""
    byte_level = kind in ("byte_level", "single_digits")
    made = Tokenizer(models.BPE() if byte_level else models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    if byte_level:
        level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        made.pre_tokenizer = level if kind == "byte_level" else pre_tokenizers.Sequence([digits, level])
        made.decoder = decoders.ByteLevel()
    else:
        if kind == "llama2":
            made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        else:
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        blank, bytes_, fuse = decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()
        made.decoder = decoders.Sequence([blank, bytes_, fuse, decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=360 if byte_level else 160,
        special_tokens=[UNKNOWN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if byte_level else [],
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    if not byte_level:  # bytes are ordinary tokens: trained as special ones, they would have no text
        learned = json.loads(made.to_str())["model"]
        vocab = learned["vocab"] | {token: len(learned["vocab"]) + n for n, token in enumerate(BYTES)}
        merges = [(left, right) for left, right in learned["merges"]]
        made.model = models.BPE(vocab, merges, unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, unk_token=UNKNOWN)
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    return HFTokenizer.from_loaded(fast, kind)
