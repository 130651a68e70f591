"""Cold-start data: pairs, the mix, what is left out, files, statistics, and its order in training."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.algorithms.grpo import GRPO
from nemo_tapo.algorithms.synthesis import Synthesis
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.config.run_config import RunConfig, validate
from nemo_tapo.datasets import sft_examples
from nemo_tapo.datasets.query_order import add_prompts
from nemo_tapo.runtime.scripted_runtime import CharacterTokenizer, ScriptedRuntime, arithmetic_script
from nemo_tapo.stages.coldstart import build
from nemo_tapo.stages.coldstart.corrections import Corrections
from nemo_tapo.stages.coldstart.statistics import (
    compute_statistics,
    describe_statistics,
    find_overlaps,
    summarize_values,
)
from nemo_tapo.stages.coldstart.writers import OracleWriter, check_writer, remove_thinking
from nemo_tapo.tasks.arithmetic_task import ArithmeticTask
from nemo_tapo.types import Completion, Construction, Grade, Group, Kind, Pair, Query, Rollout

TOKENIZER = CharacterTokenizer()
TEMPLATE = "Q {question} W {wrong} R {reference}"


def config(**coldstart: Any) -> RunConfig:
    return validate({"coldstart": coldstart, "rollout": {"max_tokens": 300}, "model": {"max_length": 2000}})


def made(cfg: RunConfig) -> tuple[build.ExampleMix, list[Group], build.Candidates, Corrections]:
    """The data of forty generated queries, corrected by the oracle."""
    runtime = ScriptedRuntime(arithmetic_script)
    oracle = ArithmeticTask(cfg.task.arithmetic, 0)
    tools = Tools(runtime.generator, runtime.tokenizer, oracle)
    queries, _ = add_prompts(tools.task.train_queries()[:40], tools.tokenizer, 1000)
    algorithm, synthesis = GRPO(cfg, tools), Synthesis(cfg, tools)

    async def make() -> tuple[list[Group], build.Candidates, list[Construction]]:
        groups = [await algorithm.sample_group(query, -1) for query in queries]
        found = build.collect_candidates(groups, cfg)
        writer = OracleWriter(synthesis, oracle, cfg.seed)
        return groups, found, [await writer.correct(pair) for pair in found.pairs]

    groups, found, constructions = asyncio.run(make())
    corrected = Corrections(tuple(constructions), Counter({"accepted": len(constructions)}))
    return build.mix_examples(found, constructions, synthesis.template, cfg, tools.tokenizer), groups, found, corrected


def group(uid: str, rewards: Sequence[float], texts: Sequence[str] | None = None) -> Group:
    query = Query(uid, f"question {uid}", "1", TOKENIZER.chat(f"question {uid}"))
    said = texts or [f"{uid} says {i}" for i in range(len(rewards))]
    return Group(
        query,
        tuple(
            Rollout(
                query,
                i,
                Completion((*TOKENIZER.encode(text), TOKENIZER.eos_id), text, False),
                Grade(r, "right" if r else "wrong"),
            )
            for i, (r, text) in enumerate(zip(rewards, said, strict=True))
        ),
    )


def correction(of: Group, text: str = "analysed, corrected") -> Construction:
    ids = (*TOKENIZER.encode(text), TOKENIZER.eos_id)
    pair = Pair(of.incorrect[0], of.correct[0], 0)
    return Construction(pair, None, analysis="why", reconstruction=text, response_ids=ids, grade=Grade(1.0, "right"))


def test_asked_for_full_reconstructions_the_oracle_keeps_nothing() -> None:
    """Table 3 on the generated task: a model that is to answer that prompt is taught it in its cold start."""
    cfg = config(sft_examples=10, ift_examples=20, corrections_per_query=4)
    cfg = cfg.model_copy(update={"tapo": cfg.tapo.model_copy(update={"full_reconstruction": True})})
    mixed, *_, corrected = made(cfg)
    assert {c.kept_tokens for c in corrected.accepted} == {0}
    synthesis = [e for e in mixed.examples if e.origin == "synthesis"]
    assert synthesis
    for example in synthesis:
        assert example.prompt.endswith("Find the first mistake, then answer the question.")
        assert "Wait" not in example.response
    assert {c.reward for c in corrected.accepted} == {1.0}


def test_mix_and_acceptance() -> None:
    mixed, groups, *_ = made(config(sft_examples=20, ift_examples=15, corrective_share=0.25, corrections_per_query=4))
    assert Counter(e.origin for e in mixed.examples) == {"correct": 15, "corrective": 5, "synthesis": 15}
    queries = {g.query.question: g.query for g in groups}
    task = ArithmeticTask(config().task.arithmetic, 0)
    for example in mixed.examples:
        assert TOKENIZER.decode(example.response_ids) == example.response
        assert example.response_ids[-1] == TOKENIZER.eos_id
        if example.format == "sft":  # only what the verifier accepts is learned from
            assert asyncio.run(task.grade(queries[example.prompt], example.response)).reward == 1.0
        else:
            assert example.response.startswith("<analysis>")
            assert "Wait, " in example.response


def test_sampled_responses_are_taken_as_they_are_and_change_no_other_example() -> None:
    settings = {"sft_examples": 20, "ift_examples": 15, "drop_duplicates": False}
    without, groups, *_ = made(config(**settings))
    mixed, *_ = made(config(**settings, sampled_examples=100))
    sampled = [e for e in mixed.examples if e.origin == "sampled"]
    assert len(sampled) == 100
    assert {e.uid for e in mixed.examples if e.origin != "sampled"} == {e.uid for e in without.examples}
    rollouts = {r.uid: r for group in groups for r in group.rollouts}
    chosen = [rollouts[e.source.rollout] for e in sampled]
    assert [e.response_ids for e in sampled] == [r.completion.token_ids for r in chosen]
    assert {r.correct for r in chosen} == {True, False}


def test_at_most_so_many_corrections_a_query() -> None:
    mixed, *_ = made(config(sft_examples=0, ift_examples=1000, corrections_per_query=1))
    assert set(Counter(e.source.query for e in mixed.examples).values()) == {1}
    more, *_ = made(config(sft_examples=0, ift_examples=1000, corrections_per_query=3, drop_duplicates=False))
    assert max(Counter(e.source.query for e in more.examples).values()) == 3


def test_at_most_so_many_right_responses_a_query() -> None:
    counts = {}
    for most in (1, 3):
        mixed, groups, *_ = made(
            config(
                sft_examples=1000, ift_examples=0, corrective_share=0.0, correct_per_query=most, drop_duplicates=False
            )
        )
        counts[most] = Counter(e.source.query for e in mixed.examples)
        assert counts[most] == {g.query.uid: min(most, len(g.correct)) for g in groups if g.correct}
        assert len({e.source.rollout for e in mixed.examples}) == len(mixed.examples)
    assert max(counts[3].values()) == 3


def test_a_correction_keeps_the_tokens_of_the_response_that_it_names() -> None:
    mixed, groups, *_ = made(config(sft_examples=100, ift_examples=10, corrective_share=1.0, corrections_per_query=2))
    rollouts = {r.uid: r for g in groups for r in g.rollouts}
    corrective = [e for e in mixed.examples if e.origin == "corrective"]
    assert corrective
    for example in corrective:
        wrong, kept = rollouts[example.source.rollout], example.source.kept_tokens
        assert kept and example.response_ids[:kept] == wrong.completion.token_ids[:kept]
        assert wrong.reward == 0 and rollouts[example.source.reference or ""].reward == 1
        assert example.source.kept_share == pytest.approx(kept / len(wrong.text))  # a token is a character here


def test_pairs_need_right_and_wrong() -> None:
    assert build.make_pairs(group("a", [1, 1]), 4, 0) == [] == build.make_pairs(group("b", [0, 0]), 4, 0)
    pairs = build.make_pairs(group("c", [0, 1, 0]), 4, 0)
    assert sorted(p.wrong.index for p in pairs) == [0, 2] and {p.right.index for p in pairs} == {1}
    groups = [group("a", [1, 1]), group("b", [0, 0]), group("c", [0, 1, 0])]
    found = build.collect_candidates(groups, config())
    assert found.query_classes == {"all_right": 1, "all_wrong": 1, "right_and_wrong": 1}
    assert (found.correct_responses, len(found.correct_examples), len(found.pairs)) == (3, 2, 1)


# ----------------------------------------------------------------------------- what is left out


def mixed_of(groups: Sequence[Group], corrected: Sequence[Construction], **settings: Any) -> build.ExampleMix:
    cfg = config(sft_examples=10, corrective_share=0.5, ift_examples=10, **settings)
    return build.mix_examples(build.collect_candidates(groups, cfg), corrected, TEMPLATE, cfg, TOKENIZER)


def test_everything_left_out_is_counted_and_the_counts_sum_up() -> None:
    doubled = group("d", [1, 0])
    groups = [group("a", [1, 0]), group("long", [1, 0], ["x" * 900, "y"]), doubled]
    cut = group("cut", [1])
    cut_off = replace(cut.rollouts[0].completion, token_ids=cut.rollouts[0].completion.token_ids[:-1], truncated=True)
    groups.append(Group(cut.query, (replace(cut.rollouts[0], completion=cut_off),)))
    corrected = [correction(groups[0]), correction(doubled), correction(doubled), correction(groups[1])]
    mixed = mixed_of(groups, corrected, max_length=500)
    shares = mixed.counts
    assert (shares["correct"].cut_off, shares["correct"].too_long) == (1, 1)
    assert (shares["corrective"].duplicates, shares["synthesis"].duplicates) == (1, 1)
    assert shares["synthesis"].too_long == 1  # its prompt holds the long response
    for share in shares.values():
        assert share.made == share.duplicates + share.cut_off + share.too_long + share.left_over + share.taken
    assert sum(share.taken for share in shares.values()) == len(mixed.examples) == 7
    assert all(e.length <= 500 for e in mixed.examples)


def test_what_is_left_out_makes_room_for_others() -> None:
    groups = [group(f"q{i}", [1], ["x" * (900 if i % 2 else 9)]) for i in range(10)]
    cfg = config(sft_examples=5, corrective_share=0.0, ift_examples=0, max_length=500)
    mixed = build.mix_examples(build.collect_candidates(groups, cfg), [], TEMPLATE, cfg, TOKENIZER)
    assert len(mixed.examples) == 5 and mixed.counts["correct"].too_long == 5


def test_duplicates_are_kept_on_request_and_told() -> None:
    one = group("d", [1, 0])
    assert mixed_of([one], [correction(one)] * 3, drop_duplicates=False).duplicates_kept == 4
    assert mixed_of([one], [correction(one)] * 3).duplicates_kept == 0


def test_the_newlines_before_a_response_belong_to_the_answer_and_not_to_the_synthesis() -> None:
    """The synthesis prompt shows responses without them; `reflection.construct` puts them back."""
    one = group("n", [1, 0], ["right", "\n\nwrong"])
    mixed = mixed_of([one], [correction(one, "\n\nwrong. Wait, right")])
    by_origin = {e.origin: e.response for e in mixed.examples}
    assert by_origin["corrective"] == "\n\nwrong. Wait, right"
    assert by_origin["synthesis"].endswith("<reconstruction>wrong. Wait, right</reconstruction>")


def test_the_prompt_is_what_the_policy_reads() -> None:
    one = group("p", [1])
    query = replace(one.query, prompt="Solve: question p")
    asked = Group(query, tuple(replace(r, query=query) for r in one.rollouts))
    assert build.make_plain_example(asked.correct[0], "correct").prompt == "Solve: question p"


# ----------------------------------------------------------------------------- files


def test_files_round_trip_and_tell_where_each_example_comes_from(tmp_path: Path) -> None:
    mixed, *_ = made(config(sft_examples=8, ift_examples=5, corrective_share=0.5))
    sft_examples.write_examples(tmp_path, mixed.examples, parquet=True)
    assert sft_examples.read_examples(tmp_path / "data.jsonl") == mixed.examples
    chats = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
    for chat, example in zip(chats, mixed.examples, strict=True):
        assert [m["role"] for m in chat["messages"]] == ["user", "assistant"]
        assert [m["content"] for m in chat["messages"]] == [example.prompt, example.response]
        assert chat["tokens"] == len(example.prompt_ids) + len(example.response_ids)
        assert (chat["uid"], chat["rollout"]) == (example.uid, example.source.rollout)
        assert (chat["reference"] is None) == (chat["kept_share"] is None) == (chat["origin"] == "correct")
    import pyarrow.parquet as pq

    assert pq.read_table(tmp_path / "examples.parquet").to_pylist() == chats


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ('{"uid": 1}', "its fields are not"),
        ("[1, 2]", "its fields are not"),
        ('{"uid": "a", "form', "Invalid control character"),
        (None, "it has no response"),
    ],
)
def test_a_broken_row_is_named_with_what_to_do(tmp_path: Path, broken: str | None, why: str) -> None:
    mixed, *_ = made(config(sft_examples=3, ift_examples=2, corrective_share=0.5))
    sft_examples.write_examples(tmp_path, mixed.examples)
    file = tmp_path / "data.jsonl"
    lines = file.read_text().splitlines()
    empty = json.dumps({**json.loads(lines[2]), "response_ids": []})
    lines[2] = broken if broken is not None else empty
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=rf"data\.jsonl, line 3 is no cold-start example: .*({why})") as error:
        sft_examples.read_examples(file)
    assert str(error.value).endswith(". Mend or remove that line.")  # nobody's samples lie beside it
    (tmp_path / sft_examples.STATISTICS_FILE).write_text("{}")
    with pytest.raises(ValueError, match="nothing is asked again"):
        sft_examples.read_examples(file)


# ----------------------------------------------------------------------------- statistics


def test_statistics_sum_up() -> None:
    mixed, groups, found, corrected = made(config(sft_examples=20, ift_examples=5000, corrections_per_query=2))
    outcomes = Counter({**corrected.outcomes, "leak": 3, "refused_by_verifier": 2})
    told = compute_statistics(found, Corrections(corrected.accepted, outcomes), mixed, {}, {"seed": 0})
    queries, corrections, examples = told["queries"], told["corrections"], told["examples"]
    assert queries["sampled"] == 40 == queries["right_and_wrong"] + queries["all_right"] + queries["all_wrong"]
    assert told["responses"]["accuracy"] == sum(r.reward for g in groups for r in g.rollouts) / 320
    assert sum(told["responses"]["outcomes"].values()) == 320
    assert corrections["pairs"] == corrections["accepted"] + sum(corrections["rejected"].values())
    assert corrections["rejected"] == {"leak": 3, "refused_by_verifier": 2}
    origins = ("correct", "corrective", "synthesis")
    assert examples["taken"] == len(mixed.examples) == sum(examples[o]["taken"] for o in origins)
    assert examples["short"] == 5020 - len(mixed.examples)
    ift = [e for e in mixed.examples if e.format == "ift"]
    assert told["tokens"]["ift"]["row"]["max"] == max(len(e.prompt_ids) + len(e.response_ids) for e in ift)
    assert told["tokens"]["ift"]["total"] + told["tokens"]["sft"]["total"] == sum(
        e.to_row().length for e in mixed.examples
    )
    json.dumps(told)
    words = " ".join(describe_statistics(told))
    assert "3 leak" in words and f"{len(ift)} of 5000 synthesis" in words


def test_spread_by_hand() -> None:
    assert summarize_values([1, 2, 3, 4, 10]) == {"mean": 4.0, "p50": 3.0, "p95": 8.8, "max": 10}  # 4 + 0.8 * 6
    assert summarize_values([]) is None


def test_evaluation_problems_among_the_queries_are_found_and_told() -> None:
    long = "how many positive integers below one thousand are divisible by seven and leave remainder two"
    queries = [
        Query("same", "What is 8 TIMES 8 ?", "64"),
        Query("near", f"Tell me, {long}", "1"),
        Query("no", "6", "6"),
    ]
    known = find_overlaps(queries, {"bench": [Query("b1", "what is 8 times 8?", "64"), Query("b2", long, "1")]})
    assert known.keys() == {"same", "near"} and known["same"] == "bench b1, word for word"
    one = group("same", [1, 0])
    mixed = mixed_of([one, group("other", [1])], [correction(one)])
    found = build.collect_candidates([one], config())
    told = compute_statistics(found, Corrections((), Counter()), mixed, known, {})
    assert told["in_evaluation_sets"]["examples"] == 3 and list(told["in_evaluation_sets"]["which"]) == ["same"]
    assert any(line.startswith("WARNING: 3 examples") for line in describe_statistics(told))


# ----------------------------------------------------------------------------- writers, epochs


def test_a_writer_that_cannot_be_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    mathematics = {"task": {"name": "mathematics"}}
    with pytest.raises(ValueError, match=r"coldstart\.writer = oracle, but the task mathematics has no oracle"):
        check_writer(validate(mathematics))
    check_writer(validate({**mathematics, "coldstart": {"writer": "model"}}))
    with pytest.raises(ValueError, match=r"coldstart\.endpoint\.url is not set"):
        check_writer(config(writer="endpoint"))
    monkeypatch.delenv("WRITERS_KEY", raising=False)
    endpoint = {"url": "http://127.0.0.1:9", "key_env": "WRITERS_KEY"}
    with pytest.raises(ValueError, match=r"coldstart\.endpoint\.key_env names WRITERS_KEY, which is not set"):
        check_writer(config(writer="endpoint", endpoint=endpoint))


def test_reasoning_before_the_answer_is_no_part_of_it() -> None:
    assert remove_thinking("<think>an <analysis>?</think>\n<analysis>a") == "\n<analysis>a"
    assert remove_thinking("<analysis>a") == "<analysis>a"


def test_epochs_show_every_example_and_depend_on_the_step_alone() -> None:
    examples = made(config(sft_examples=8, ift_examples=8, corrective_share=0.5))[0].examples
    assert len(examples) == 16
    epochs = build.EpochBatches(examples, per_step=4, epochs=2, seed=3)
    assert epochs.steps == 8
    first = [row.uid for step in range(4) for row in epochs.batch(step)]
    second = [row.uid for step in range(4, 8) for row in epochs.batch(step)]
    assert sorted(first) == sorted(second) == sorted(e.uid for e in examples)
    assert first != second
    assert epochs.batch(5) == build.EpochBatches(examples, 4, 2, 3).batch(5)
    assert all(row.kind is Kind.EXAMPLE for row in epochs.batch(0))


def test_nothing_to_learn_from_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="no cold-start example"):
        build.EpochBatches([], 4, 1, 0)
