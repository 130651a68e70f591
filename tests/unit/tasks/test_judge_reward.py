"""A judge as a reward: what it is asked, what a score is, the cache, and that an outage is never a reward."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.config.run_config import rl_fingerprint, validate
from nemo_tapo.config.sections import JudgeRewardConfig
from nemo_tapo.endpoint.client import EndpointError, EndpointRefused
from nemo_tapo.tasks.judge_reward import MAX_REFUSALS, JudgeReward, render_prompt
from nemo_tapo.types import Grade, Query
from tests.helpers.command import nemo_tapo
from tests.helpers.endpoint_servers import Answer, completion, error, scripted

QUERY = Query("7", "47+38=?", "85")
ACCESS = {"attempts": 1, "pause": 0.01, "timeout": 5}


def judge(url: str, folder: Path, **settings: Any) -> JudgeReward:
    return JudgeReward(
        JudgeRewardConfig(endpoint={"url": url, **ACCESS}, cache=folder, **settings), "task.rewards.j.judge"
    )


def grades(one: JudgeReward, *responses: str) -> list[Grade]:
    async def all_in_turn() -> list[Grade]:
        return [await one.grade(QUERY, response) for response in responses]

    return asyncio.run(all_in_turn())


def test_a_score_is_a_share_of_the_best_and_is_asked_for_once(tmp_path: Path) -> None:
    with scripted(
        [completion('{"why": "good", "score": 7}'), completion('So</think>{"why": "", "score": 0}')]
    ) as server:
        first = judge(server.url, tmp_path)
        assert [(g.reward, g.outcome) for g in grades(first, "85", "75", "85")] == [
            (0.7, "right"), (0.0, "wrong"), (0.7, "right"),
        ]  # fmt: skip
        assert first.counts == {"asked": 2, "cached": 1}
        again = judge(server.url, tmp_path)
        assert [g.reward for g in grades(again, "75", "85")] == [0.0, 0.7]
        assert again.counts == {"cached": 2} and len(server.requests) == 2
        body = server.requests[0]
        assert "47+38=?" in body["messages"][0]["content"] and body["temperature"] == 0


def test_the_rubric_and_the_scale_are_part_of_the_question(tmp_path: Path) -> None:
    cfg = JudgeRewardConfig(rubric="Is it {answer}?", best=4)
    asked = render_prompt(cfg, QUERY, "I say {rubric}. ----- response ends -----")
    assert "What counts: Is it {answer}?" in asked and "I say {rubric}." in asked and "to 4 (best)" in asked
    own = JudgeRewardConfig(prompt="{response} of {question}: 0 to {best}, as {json}")
    assert render_prompt(own, QUERY, "85") == "85 of 47+38=?: 0 to 10, as {json}"
    with pytest.raises(ValueError, match=r"prompt has no \{response\}"):
        JudgeRewardConfig(prompt="Good?")


def test_a_reply_without_a_score_is_asked_for_again_and_then_no_reward(tmp_path: Path) -> None:
    bad = [completion(text) for text in ("I like it.", '{"score": 11}', '{"score": "7"}')]
    with scripted([*bad, bad[0], completion('{"score": 10}')]) as server:
        one = judge(server.url, tmp_path)
        lost, found = grades(one, "a", "b")
    assert (lost.outcome, lost.detail) == ("no_reward_not_a_number", "3 replies of the judge had no score")
    assert found.reward == 1 and one.counts == {"asked": 5, "unreadable": 4}


def test_a_refused_response_has_no_reward_and_a_server_that_refuses_all_ends_it(tmp_path: Path) -> None:
    with scripted([error(400, "maximum context length is 10"), completion('{"score": 5}')]) as server:
        refused, found = grades(judge(server.url, tmp_path), "long", "short")
    assert refused.outcome == "no_reward_raised" and "maximum context length is 10" in refused.detail
    assert found.reward == 0.5
    with scripted([error(400, "no")] * MAX_REFUSALS) as server, pytest.raises(EndpointRefused):
        grades(judge(server.url, tmp_path), *map(str, range(MAX_REFUSALS)))


def test_an_outage_is_a_failure_and_no_reward(tmp_path: Path) -> None:
    with scripted([completion('{"score": 5}'), error(503, "overloaded")]) as server:
        one = judge(server.url, tmp_path)
        with pytest.raises(EndpointError, match="overloaded"):
            grades(one, "a", "b")


def run(output: Path, url: str, *settings: str) -> Any:
    return nemo_tapo(
        "train", "runtime=scripted", "steps=1", "model.max_length=4096", "rollout.max_tokens=300",
        "rollout.queries_per_step=2", "tapo.correct_at=0.6", f"task.rewards.j.judge.endpoint.url={url}",
        "task.rewards.j.judge.endpoint.attempts=1", "task.rewards.j.judge.endpoint.pause=0.01",
        f"task.rewards.j.judge.cache={output.parent / 'cache'}", "task.rewards.own.weight=1", f"output={output}",
        *settings,
    )  # fmt: skip


def test_a_run_with_a_judge_and_the_tasks_own_verdict(tmp_path: Path) -> None:
    """Half the weight is the verdict's, half the judge's, who gives 4 of 10: 0.7 or 0.2."""

    def always(number: int, body: Any) -> Answer:
        return completion('{"score": 4}')

    with scripted(always) as server:
        done = run(tmp_path / "run", server.url)
    assert done.returncode == 0, done.stderr
    assert "task.rewards.j.judge: " in done.stdout + done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    right = metrics["grade/right"]
    assert right + metrics["grade/wrong"] == 16
    assert metrics["reward/mean"] == pytest.approx((0.7 * right + 0.2 * (16 - right)) / 16)


def test_a_judge_that_is_down_or_goes_down_is_one_sentence(tmp_path: Path) -> None:
    gone = run(tmp_path / "run", "http://127.0.0.1:9/v1")
    assert gone.returncode == 3 and "task.rewards.j.judge.endpoint.url" in gone.stderr
    assert not (tmp_path / "run").exists()

    def short_lived(number: int, body: Any) -> Answer:
        return completion('{"score": 4}') if number < 5 else error(503, "overloaded")

    with scripted(short_lived) as server:
        lost = run(tmp_path / "run", server.url)
    assert lost.returncode == 3 and "overloaded" in lost.stderr and "the same command goes on" in lost.stderr


def test_the_rubric_is_part_of_the_runs_identity_and_the_url_is_not() -> None:
    def identity(**settings: Any) -> dict[str, Any]:
        endpoint = {"url": settings.pop("url", "http://a/v1")}
        return rl_fingerprint(validate({"task": {"rewards": {"j": {"judge": {"endpoint": endpoint, **settings}}}}}))

    assert identity() == identity(url="http://b/v1", cache="elsewhere")
    assert identity() != identity(rubric="Is it short?")
