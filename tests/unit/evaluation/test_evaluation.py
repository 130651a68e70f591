"""Samples of evaluations: on disk, and how they are taken."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.config.sections import EndpointConfig
from nemo_tapo.endpoint.client import Endpoint
from nemo_tapo.evaluation.benchmarks import EvaluationTarget, evaluate, get_sampling_settings
from nemo_tapo.evaluation.results import EvaluationResult, read_evaluation
from nemo_tapo.evaluation.sample_store import SampleStore, get_evaluation_folder, read_samples
from nemo_tapo.evaluation.samplers import EndpointSampler, EngineSampler, Response
from nemo_tapo.runtime.scripted_runtime import CharacterTokenizer
from nemo_tapo.tasks.arithmetic_task import ArithmeticTask
from nemo_tapo.tracking.progress import Progress
from nemo_tapo.types import Completion, Query, Request
from nemo_tapo.utils.errors import DiskFull, RuntimeFailure, Stopped
from nemo_tapo.utils.signals import Stop
from tests.helpers.endpoint_servers import Answer, completion, scripted
from tests.helpers.evaluation_samples import MODEL, Slow, a_sample, config, grade, lines, problems, sampled, target

# ------------------------------------------------------------------------------------------------ on disk


def test_every_sample_is_there_once_and_right_by_its_own_text(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    evaluated, runtime = sampled(cfg)
    rows = [json.loads(line) for line in lines(cfg)]
    keys = {(r["uid"], r["run"], r["index"]) for r in rows}
    assert keys == {(q.uid, run, index) for q in problems() for run in range(2) for index in range(5)}
    assert len(rows) == len(runtime.generator.request_uids) == 60
    answers = {q.uid: q.answer for q in problems()}
    assert all(r["reward"] == float(f"\\boxed{{{answers[r['uid']]}}}" in r["text"]) for r in rows)
    assert evaluated.graded[0].right.sum() == sum(r["reward"] for r in rows)
    assert 0 < evaluated.graded[0].right.sum() < 60
    texts = {r["uid"]: set() for r in rows}  # type: dict[str, set[str]]
    for r in rows:
        texts[r["uid"]].add(r["text"])
    assert max(map(len, texts.values())) > 1, "every sample of a problem was the same: one seed for all?"


def test_killed_anywhere_it_goes_on_to_the_same_samples(tmp_path: Path) -> None:
    """Whole lines of an earlier process stay, its torn last one goes, nothing is asked for twice."""
    whole = config(tmp_path / "whole")
    sampled(whole)
    data = (get_evaluation_folder(whole.output, "x") / "arithmetic.jsonl").read_bytes()
    settings = (get_evaluation_folder(whole.output, "x") / "settings.json").read_bytes()
    rng = random.Random(0)
    for cut in [0, 1, len(data) - 1, len(data), *(rng.randrange(len(data)) for _ in range(6))]:
        cfg = config(tmp_path / f"cut-{cut}")
        folder = get_evaluation_folder(cfg.output, "x")
        folder.mkdir(parents=True)
        (folder / "settings.json").write_bytes(settings)
        (folder / "arithmetic.jsonl").write_bytes(data[:cut])
        evaluated, runtime = sampled(cfg)
        assert len(runtime.generator.request_uids) == 60 - data[:cut].count(b"\n")
        assert lines(cfg) == lines(whole)
        assert evaluated.summary == read_evaluation(get_evaluation_folder(whole.output, "x")).summary


def test_more_runs_and_samples_can_be_asked_for_later(tmp_path: Path) -> None:
    cfg = config(tmp_path / "a", runs=1, samples=2)
    sampled(cfg)
    more = config(tmp_path / "a", runs=3, samples=5)
    evaluated, runtime = sampled(more)
    assert len(runtime.generator.request_uids) == 6 * 15 - 6 * 2
    whole = config(tmp_path / "b", runs=3, samples=5)
    assert evaluated.summary == sampled(whole)[0].summary
    assert lines(more) == lines(whole)
    fewer, runtime = sampled(cfg)  # and fewer again: of the first ones, nothing sampled
    assert not runtime.generator.request_uids
    assert fewer.graded[0].classes.shape == (6, 1, 2)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"temperature": 1.0}, r"evaluation\.temperature: 0\.6 -> 1\.0"),
        ({"max_tokens": 200}, r"evaluation\.max_tokens: 300 -> 200"),
    ],
)
def test_samples_of_other_settings_are_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    sampled(config(tmp_path))
    with pytest.raises(ValueError, match=sentence):
        sampled(config(tmp_path, **change))


def test_samples_of_another_model_or_data_or_seed_are_refused(tmp_path: Path) -> None:
    cfg, benchmarks = config(tmp_path), {"arithmetic": problems()}
    sampled(cfg)
    folder = get_evaluation_folder(tmp_path, "x")
    others = {
        "model.weights": get_sampling_settings(cfg, {"weights": "others"}, benchmarks),
        "seed: 0 -> 1": get_sampling_settings(cfg.model_copy(update={"seed": 1}), MODEL, benchmarks),
        "arithmetic.problems: 6 -> 5": get_sampling_settings(cfg, MODEL, {"arithmetic": problems(5)}),
        "arithmetic.data": get_sampling_settings(
            cfg, MODEL, {"arithmetic": [replace(q, answer="1") for q in problems()]}
        ),
        "arithmetic.prompts": get_sampling_settings(
            cfg, MODEL, {"arithmetic": [replace(q, prompt_ids=()) for q in problems()]}
        ),
        "other.data": get_sampling_settings(cfg, MODEL, {**benchmarks, "other": problems()}),
    }
    for sentence, settings in others.items():
        with pytest.raises(ValueError, match=f"holds samples of other settings .*{sentence}"):
            SampleStore(folder, settings)
    SampleStore(folder, get_sampling_settings(cfg, MODEL, benchmarks))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    sampled(cfg)
    path = get_evaluation_folder(tmp_path, "x") / "arithmetic.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"run"', b'"ruin"', 1))
    with pytest.raises(ValueError, match=r"arithmetic\.jsonl: line 1 is no sample"):
        sampled(cfg)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with SampleStore(tmp_path / "x", {}) as store:
        store.path("b").symlink_to("/dev/full")
        with pytest.raises(DiskFull, match=r"no room on the disk for .*b\.jsonl; the samples in it are kept"):
            store.add(a_sample("p", 0, 0))


def test_a_write_that_fails_costs_its_own_sample_alone(tmp_path: Path) -> None:
    """A limit on the size of files ends it within a line, as a full disk does."""
    code = f"""
import resource, signal
from pathlib import Path
from nemo_tapo.evaluation.sample_store import Sample, SampleStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with SampleStore(Path({str(tmp_path)!r}) / "x", {{}}) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    for index in range(100):
        store.add(Sample("b", "u", 0, index, "x" * 100, 1, False, "wrong", 0.0, None))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "File too large" in done.stderr
    file = tmp_path / "x" / "b.jsonl"
    assert file.stat().st_size == 5000
    kept = list(read_samples(file))
    assert 10 < len(kept) < 50
    assert SampleStore(tmp_path / "x", {}).read_keys("b") == {sample.key for sample in kept}
    assert file.read_bytes().endswith(b"\n")


def test_names_that_are_no_file_names(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    sampled(cfg, name="Qwen/Qwen3-8B", benchmarks={"../aime 24": problems(2)})
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation"]
    assert len(list((tmp_path / "evaluation").glob("*/*.jsonl"))) == 1
    assert len(lines(cfg, "Qwen/Qwen3-8B", "../aime 24")) == 20


# ------------------------------------------------------------------------------------------------ sampling


def test_no_more_requests_than_allowed_are_under_way(tmp_path: Path) -> None:
    slow = Slow(7, 0, lambda: None)
    work = evaluate(config(tmp_path), target(), slow, grade, Progress(), Stop())
    asyncio.run(work)
    assert (slow.most, slow.asked) == (7, 60)


def test_a_request_to_stop_is_heard_and_nothing_is_lost(tmp_path: Path) -> None:
    cfg, stop = config(tmp_path, runs=40), Stop()

    class Stalls(Slow):
        async def sample(self, query: Query, uid: str, seed: int) -> Response:
            response = await super().sample(query, uid, seed)
            if stop.requested:
                await asyncio.sleep(3600)  # a long response: nobody waits for it
            return response

    stalls = Stalls(4, 30, lambda: stop.request(signal.SIGTERM))
    with pytest.raises(Stopped, match=r"\d+ of 1200 samples are in"):
        asyncio.run(evaluate(cfg, target(), stalls, grade, Progress(), stop))
    kept = len(lines(cfg, "x", "b"))
    assert 20 < kept < 40
    rest = Slow(4, 0, lambda: None)
    asyncio.run(evaluate(cfg, target(), rest, grade, Progress(), Stop()))
    assert rest.asked == 1200 - kept


def test_a_lost_engine_ends_it_with_its_name_and_keeps_what_is_there(tmp_path: Path) -> None:
    def die() -> None:
        raise RuntimeFailure("the vLLM engine (process 7) died")

    cfg = config(tmp_path)
    with pytest.raises(RuntimeFailure, match="process 7"):
        asyncio.run(evaluate(cfg, target(), Slow(4, 30, die), grade, Progress(), Stop()))
    assert 20 < len(lines(cfg, "x", "b")) < 31


# ------------------------------------------------------------------------------------------------ thinking


class CutOff:
    """A generator that tries the right answer, ANSWER, and is cut off, unless it ends with EOS."""

    max_model_len = 4096

    def __init__(self, begin: str, end: str = "") -> None:
        self.begin, self.end = begin, end

    async def generate(self, request: Request) -> Completion:
        uid = request.uid.split("/")[1]
        answer = next(q.answer for q in problems() if q.uid == uid)
        text = f"{self.begin}Suppose \\boxed{{ANSWER}}. But{self.end}".replace("ANSWER", answer)
        return Completion((9,), text, not text.endswith("EOS"))

    async def update_weights(self, weights: object) -> None:
        raise AssertionError("an evaluation changes no weights")


@pytest.mark.parametrize(
    ("template", "begin", "end", "outcome"),
    [
        ("<think>\n", "", "", "no_answer"),  # the prompt opens the thinking, so that the response does not
        ("", "<think>", "", "no_answer"),
        ("<think>\n", "", "</think> So it is \\boxed{ANSWER}, and", "right"),  # cut off behind its thinking
        ("<think>\n\n</think>\n\n", "", "", "right"),  # thinking switched off
        ("<think>\n", "", "EOS", "right"),  # not cut off: it chose to end there
        ("", "", "", "right"),
    ],
)
def test_what_is_cut_off_within_its_thinking_never_answered(
    template: str, begin: str, end: str, outcome: str, tmp_path: Path
) -> None:
    tokenizer, cfg = CharacterTokenizer(), config(tmp_path, runs=1, samples=1)
    queries = [replace(q, prompt_ids=tokenizer.encode(q.question + template)) for q in problems()]
    sampler = EngineSampler(CutOff(begin, end), cfg, tokenizer)
    task = ArithmeticTask(cfg.task.arithmetic, 0)
    whole = EvaluationTarget("x", MODEL, {"b": queries})
    found = asyncio.run(evaluate(cfg, whole, sampler, task.grade, Progress(), Stop()))
    assert found.graded[0].outcomes == {outcome: 6}
    assert all("<think>" not in row["text"] or begin for row in map(json.loads, lines(cfg, "x", "b")))


def served(cfg: RunConfig, answer: Callable[[str], Answer]) -> dict[str, int]:
    """The outcomes of six problems whose right answers a server is given."""
    task, answers = ArithmeticTask(cfg.task.arithmetic, 0), {q.user_text: q.answer for q in problems()}

    async def go(url: str) -> EvaluationResult:
        settings = EndpointConfig(url=url, pause=0.01, timeout=5.0)
        async with Endpoint(settings) as endpoint:
            sampler = EndpointSampler(endpoint, cfg.evaluation)
            return await evaluate(
                cfg, EvaluationTarget("x", MODEL, {"b": problems()}), sampler, task.grade, Progress(), Stop()
            )

    with scripted(lambda number, body: answer(answers[body["messages"][0]["content"]])) as server:
        return dict(asyncio.run(go(server.url)).graded[0].outcomes)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (lambda gold: completion([{"type": "text", "text": f"\\boxed{{{gold}}}"}]), "right"),
        (lambda gold: completion(f"<think>9?</think>\\boxed{{{gold}}}", tokens="12"), "right"),
        (lambda gold: completion(f"<think>Suppose \\boxed{{{gold}}}. But", finish="length"), "no_answer"),
        (
            lambda gold: completion([{"type": "thinking", "thinking": f"\\boxed{{{gold}}}"}], finish="length"),
            "no_answer",
        ),
        (lambda gold: completion(None, reasoning_content=f"\\boxed{{{gold}}}", finish="length"), "no_answer"),
    ],
)
def test_what_a_server_returns_is_graded_by_its_answer(
    answer: Callable[[str], Answer], outcome: str, tmp_path: Path
) -> None:
    assert served(config(tmp_path, runs=1, samples=1), answer) == {outcome: 6}


def test_an_empty_benchmark_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="b has no usable problem"):
        sampled(config(tmp_path), benchmarks={"b": []})
