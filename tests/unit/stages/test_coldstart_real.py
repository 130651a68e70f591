"""Cold-start data from real problems and real responses, with the real verifier and a byte-level BPE tokenizer.

The engine gives the published responses; what corrects them is scripted.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.config.run_config import validate
from nemo_tapo.datasets import sft_examples
from nemo_tapo.grading.boxed import find_last_boxed
from nemo_tapo.runtime.defaults import RuntimeDefaults
from nemo_tapo.runtime.hf_tokenizer import HFTokenizer
from nemo_tapo.runtime.scripted_runtime import ScriptedActor
from nemo_tapo.stages.coldstart.stage import prepare_data
from nemo_tapo.stages.session import Session
from nemo_tapo.tracking.progress import Progress
from nemo_tapo.types import REFLECTED_SUFFIX, Completion, Request
from nemo_tapo.utils.signals import Stop
from tests.helpers.data_files import data_file, data_rows

MODEL = Path(__file__).parents[3] / "assets" / "tiny-base"


def kept_of(wrong: str) -> str:
    """The first half of a response, to the end of a line."""
    return wrong[: wrong.rfind("\n", 0, len(wrong) // 2) + 1]


class Recorded:
    """The published responses by uid; a synthesis prompt gets half the wrong response and then the right one."""

    max_model_len = 100_000

    def __init__(self, rows: list[dict[str, Any]], tokenizer: HFTokenizer) -> None:
        self.responses = {f"{row['id']}/{i}": text for row in rows for i, text in enumerate(row["responses"])}
        self.tokenizer, self.prompts = tokenizer, dict[str, str]()

    async def generate(self, request: Request) -> Completion:
        text = self.responses.get(request.uid)
        if text is None:
            assert REFLECTED_SUFFIX in request.uid
            prompt = self.prompts[request.uid] = self.tokenizer.decode(request.prompt_ids)
            wrong = prompt.split("## Incorrect response\n")[1].split("\n\n## Correct reference solution\n")[0]
            right = prompt.split("## Correct reference solution\n")[1].split("\n\nFirst find")[0]
            corrected = f"{kept_of(wrong)}Wait, that is not right.\n{right}"
            text = f"<analysis>The last step.</analysis>\n<reconstruction>\n{corrected}\n</reconstruction>"
        return Completion((*self.tokenizer.encode(text), self.tokenizer.eos_id), text, False)

    async def update_weights(self, weights: object) -> None:
        """No test asks for it."""


class RecordedRuntime(RuntimeDefaults):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.tokenizer = HFTokenizer(MODEL)
        self.generator = Recorded(rows, self.tokenizer)
        self.actor = ScriptedActor()

    def close(self) -> None:
        """Nothing was started."""


Built = tuple[Path, list[dict[str, Any]], Recorded]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """(the folder of the data, the published rows, the engine)."""
    rows, folder = data_rows("math_rollouts_k8.jsonl"), tmp_path_factory.mktemp("real")
    misgraded = next(row for row in rows if row["id"] == "math-72")
    misgraded["correct"][7] = True  # its gold answer is 10{,}000, the response's 10000
    train = folder / "train.jsonl"
    train.write_text("".join(json.dumps({k: r[k] for k in ("id", "problem", "answer")}) + "\n" for r in rows))
    cfg = validate(
        {
            "output": str(folder),
            "model": {"path": str(MODEL), "max_length": 60_000},
            "rollout": {"max_tokens": 20_000},
            "tapo": {"max_tokens": 20_000, "leak_words": ["reference solution"]},
            "task": {
                "name": "mathematics",
                "mathematics": {
                    "train": {"path": str(train), "uid": "id"},
                    "benchmarks": {"aime24": {"path": str(data_file("aime24.jsonl"))}, "same": {"path": str(train)}},
                },
            },
            "coldstart": {"queries": None, "writer": "model", "sft_examples": 60, "corrective_share": 0.5},
        }
    )
    runtime = RecordedRuntime(rows)

    async def make() -> None:
        session = Session(cfg, runtime, progress, Stop())
        try:
            await prepare_data(session, folder)
        finally:
            session.task.close()

    with Progress() as progress:
        asyncio.run(make())
    return folder, rows, runtime.generator


def test_fates_are_those_of_the_published_grades(built: Built) -> None:
    folder, rows, _ = built
    told = json.loads((folder / "statistics.json").read_text())
    right = [sum(row["correct"]) for row in rows]
    assert told["queries"] == {
        "sampled": 60,
        "right_and_wrong": sum(0 < n < 8 for n in right),
        "all_right": right.count(8),
        "all_wrong": right.count(0),
    }
    assert told["responses"]["accuracy"] == sum(right) / 480
    corrections = told["corrections"]
    assert corrections["pairs"] == told["queries"]["right_and_wrong"]
    assert corrections["accepted"] + sum(corrections["rejected"].values()) == corrections["pairs"]
    assert corrections["accepted"] > 0.8 * corrections["pairs"], corrections["rejected"]
    assert told["in_evaluation_sets"]["queries_sampled"] == 60  # every one, for "same" is the training set


def test_pairs_are_a_wrong_and_a_right_response_of_one_query(
    built: Built,
) -> None:
    folder, rows, engine = built
    grades = {row["id"]: row["correct"] for row in rows}
    problems = {row["id"]: row["problem"] for row in rows}
    for line in (folder / "corrections" / "corrections.jsonl").read_text().splitlines():
        row = json.loads(line)
        (query, wrong), (same, right) = row["wrong"].rsplit("/", 1), row["reference"].rsplit("/", 1)
        assert query == same and not grades[query][int(wrong)] and grades[query][int(right)]
        prompt = engine.prompts[row["uid"]]
        for text in (problems[query], engine.responses[row["wrong"]], engine.responses[row["reference"]]):
            assert text.strip("\n") in prompt


def test_kept_prefixes_are_the_responses_own_tokens(built: Built) -> None:
    folder, _, engine = built
    tokenizer = engine.tokenizer
    chats = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
    examples = sft_examples.read_examples(folder / "data.jsonl")
    corrective = 0
    for chat, example in zip(chats, examples, strict=True):
        said = example.response
        assert example.response_ids[-1] == tokenizer.eos_id and tokenizer.decode(example.response_ids) == said
        assert example.prompt_ids == tokenizer.chat(example.prompt)
        if example.origin == "correct":
            assert said == engine.responses[chat["rollout"]]
        elif example.origin == "corrective":
            corrective += 1
            wrong = engine.responses[chat["rollout"]]
            kept, ids = kept_of(wrong), tokenizer.encode(wrong)
            assert said.startswith(kept) and said[len(kept) :].startswith("Wait, that is not right.")
            assert example.response_ids[: chat["kept_tokens"]] == ids[: chat["kept_tokens"]]
            text = tokenizer.decode(ids[: chat["kept_tokens"]])
            assert chat["kept_share"] == pytest.approx(len(text) / len(wrong))
            assert kept.startswith(text) or text.startswith(kept)  # chance may go on agreeing for a letter
            assert find_last_boxed(said) == find_last_boxed(engine.responses[chat["reference"]])
            assert "\\boxed{}" in example.prompt  # the task's template, not the bare problem
    assert corrective == min(30, json.loads((folder / "statistics.json").read_text())["corrections"]["accepted"])
