"""Cold-start data: pairs, accepted corrections, the mix, and its order."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from nemo_tapo.algorithms.base import Tools
from nemo_tapo.algorithms.grpo import GRPO
from nemo_tapo.coldstart import build
from nemo_tapo.config import RunConfig, validate
from nemo_tapo.data import with_prompts
from nemo_tapo.runtime.scripted import ScriptedRuntime, arithmetic_script
from nemo_tapo.tasks.generated import ArithmeticTask
from nemo_tapo.types import Group, Kind


def built(**coldstart: float) -> tuple[list[build.Example], list[Group], Tools, RunConfig]:
    cfg = validate({"coldstart": coldstart, "rollout": {"max_tokens": 300}, "model": {"max_length": 2000}})
    runtime = ScriptedRuntime(arithmetic_script)
    tools = Tools(runtime.generator, runtime.tokenizer, ArithmeticTask(cfg.task.arithmetic, 0))
    queries, _ = with_prompts(tools.task.train_queries()[:40], tools.tokenizer, 1000)
    algorithm = GRPO(cfg, tools)

    async def make() -> tuple[list[build.Example], list[Group]]:
        groups = [await algorithm.rollouts(query, -1) for query in queries]
        pairs = [p for g in groups for p in build.pairs_of(g, cfg.coldstart.corrections_per_query, 0)]
        corrected = await build.oracle_corrections(pairs, tools, 0, Counter())
        return build.examples(groups, corrected, cfg, tools), groups

    examples, groups = asyncio.run(make())
    return examples, groups, tools, cfg


def test_mix_and_acceptance() -> None:
    examples, groups, tools, _ = built(sft_examples=20, ift_examples=15, corrective_share=0.25)
    origins = Counter(e.origin for e in examples)
    assert origins == {"correct": 15, "corrective": 5, "synthesis": 15}
    answers = {g.query.question: g.query for g in groups}
    for example in examples:
        assert tools.tokenizer.decode(example.response_ids) == example.response
        if example.format == "sft":  # only what the verifier accepts is learned from
            grade = asyncio.run(tools.task.grade(answers[example.prompt], example.response))
            assert grade.reward == 1.0
        else:
            assert example.response.startswith("<analysis>")
            assert "Wait, " in example.response


def test_at_most_so_many_corrections_a_query() -> None:
    examples, _, _, _ = built(sft_examples=0, ift_examples=1000, corrections_per_query=1)
    queries = Counter(e.uid.split("_reflected")[0] for e in examples)
    assert set(queries.values()) == {1}


def test_data_file_round_trips_and_a_broken_row_is_named(tmp_path: Path) -> None:
    examples, *_ = built(sft_examples=5, ift_examples=5)
    path = tmp_path / "data.jsonl"
    build.write(path, examples)
    assert build.read(path) == examples
    path.write_text(path.read_text() + '{"uid": 1}\n')
    with pytest.raises(ValueError, match="line 11 is no cold-start example"):
        build.read(path)


def test_epochs_show_every_example_and_depend_on_the_step_alone() -> None:
    examples, *_ = built(sft_examples=8, ift_examples=8)
    epochs = build.Epochs(examples, per_step=4, epochs=2, seed=3)
    assert epochs.steps == 8
    first = [row.uid for step in range(4) for row in epochs.batch(step)]
    second = [row.uid for step in range(4, 8) for row in epochs.batch(step)]
    assert sorted(first) == sorted(second) == sorted(e.uid for e in examples)
    assert first != second
    assert epochs.batch(5) == build.Epochs(examples, 4, 2, 3).batch(5)
    assert all(row.kind is Kind.EXAMPLE for row in epochs.batch(0))


def test_nothing_to_learn_from_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="no cold-start example"):
        build.Epochs([], 4, 1, 0)
