"""The main job, shortened, with a real language model: its tokens, its chat template, its words.

The model is made by the first two commands of docs/smollm2.md; without it these tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.runtime.hf_tokenizer import HFTokenizer
from nemo_tapo.tracking.rollout_store import read_index, read_queries

ROOT, HOW = Path(__file__).parents[2], "NEMO_TAPO_SMOLLM2"
MADE = Path(os.environ.get(HOW, ROOT / "runs" / "smollm2")).absolute()
MODEL = MADE / "lesson" / "hf"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not (MODEL / "config.json").is_file(),
        reason=f"SmolLM2 is not in {MADE}: make it as docs/smollm2.md says, and name its folder in {HOW}",
    ),
]
CONFIG = ROOT / "examples" / "configs" / "tapo-smollm2-135m-1n0g.yaml"
SHORT = [
    "steps=2", "rollout.queries_per_step=2", "rollout.logprobs=always", "coldstart.queries=6",
    "coldstart.sft_examples=6", "coldstart.ift_examples=6", "coldstart.examples_per_step=4", "evaluation.problems=4",
    "evaluation.synthesis_queries=0", "tapo.n_pos=1", "tapo.n_neg=1", "local.threads=2", "checkpoint.min_free_gib=2",
]  # fmt: skip


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nemo_tapo.cli", *arguments], capture_output=True, text=True, timeout=1700, cwd=ROOT
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "run"
    done = call("run", "--config", str(CONFIG), *SHORT, f"model.path={MODEL}", f"output={folder}")
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> HFTokenizer:
    return HFTokenizer(MODEL)


def test_engine_and_actor_agree_and_every_pair_is_accounted_for(run: Path) -> None:
    steps = read_lines(run / "metrics.jsonl")
    assert [m["step"] for m in steps] == [1, 2]
    assert steps[0]["ratio_deviation"] == 0.0
    assert abs(steps[0]["kl_ref"]) < 1e-6
    for m in steps:  # the second step is sampled by the weights of the first update: the engine got all of them
        assert 0 < m["engine_gap"] < 1e-3
        dropped = sum(value for key, value in m.items() if key.startswith("tapo/dropped/"))
        assert m["tapo/pairs"] == m["tapo/parsed"] + dropped
    assert sum(m["tapo/parsed"] for m in steps) > 0
    replayed = call("replay", str(run), "--all")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr


def test_constructed_rows_begin_with_the_tokens_of_the_wrong_rollout(run: Path) -> None:
    """In the tokens' texts, as the engine reported them with its log-probabilities."""
    checked = 0
    for place in read_index(run).steps.values():
        for query in read_queries(run, place):
            for pair in query["pairs"]:
                if not pair["tokens"]:
                    continue
                wrong, kept = query["rollouts"][pair["wrong_index"]], pair["kept_chars"]
                assert "".join(pair["tokens"]) == pair["reconstruction"]
                count, length = 0, 0
                while length < kept:
                    length += len(pair["tokens"][count])
                    count += 1
                assert length == kept
                assert pair["tokens"][:count] == wrong["tokens"][:count]
                checked += 1
    assert checked > 0


def test_the_cold_start_trains_on_the_samples_own_tokens(run: Path, tokenizer: HFTokenizer) -> None:
    folder = run / "coldstart"
    sampled = {}
    for line in read_lines(folder / "samples" / "train.jsonl"):
        for number, rollout in enumerate(line["rollouts"]):
            sampled[f"{line['uid']}/{number}"] = rollout["token_ids"]
    kept = {row["uid"]: row for row in read_lines(folder / "examples.jsonl")}
    examples = read_lines(folder / "data.jsonl")
    assert {e["origin"] for e in examples} == {"correct", "corrective", "synthesis"}
    for example in examples:
        ids, source = example["response_ids"], kept[example["uid"]]
        assert ids[-1] == tokenizer.eos_id
        assert tokenizer.decode(ids) == example["response"]
        assert tokenizer.chat(example["prompt"]) == tuple(example["prompt_ids"])
        if example["origin"] == "corrective":
            count = source["kept_tokens"]
            assert count > 0
            assert ids[:count] == sampled[source["rollout"]][:count]
        elif example["origin"] == "correct":
            assert ids == sampled[source["rollout"]]


def test_its_template_and_its_digits_are_its_own(tokenizer: HFTokenizer) -> None:
    prompt = tokenizer.decode_with_special_tokens(tokenizer.chat("How many legs?"))
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHow many legs?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [tokenizer.decode([i]) for i in tokenizer.encode("3 * 10  =30")] == [
        "3", " *", " ", "1", "0", " ", " =", "3", "0",
    ]  # fmt: skip
