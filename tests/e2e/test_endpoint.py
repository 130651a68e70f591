"""The client and the judge against vLLM's own OpenAI server, with the tiny model on this machine's CPU."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_tapo.config.sections import EndpointConfig, JudgeConfig
from nemo_tapo.endpoint.client import ChatReply, Endpoint, EndpointRefused
from nemo_tapo.judge.judging import JudgeItem, judge_all
from nemo_tapo.tasks.arithmetic import verify_response
from tests.helpers.endpoint_servers import vllm_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
MODEL = Path(__file__).parents[2] / "assets" / "tiny-coldstart"
QUESTION, ANSWER = "47\na: +38\nb: -19", "66"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Served with room for the judge's prompt, which is longer than what the model was made for."""
    log = tmp_path_factory.mktemp("vllm") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
        with vllm_server(MODEL, log, "--max-model-len", "8192") as served:
            yield served


def sampled(url: str, seeds: range) -> list[ChatReply]:
    async def go() -> list[ChatReply]:
        async with Endpoint(EndpointConfig(url=url, concurrency=8)) as endpoint:
            assert endpoint.model == "tiny"
            ask = [{"role": "user", "content": QUESTION}]
            chats = [endpoint.chat(ask, temperature=1.0, top_p=0.9, max_tokens=64, seed=seed) for seed in seeds]
            replies = await asyncio.gather(*chats)
            assert not endpoint.retries
            return replies

    return asyncio.run(go())


def test_seeds_decide_the_replies(url: str) -> None:
    replies = sampled(url, range(24))
    assert sampled(url, range(24)) == replies
    assert len({reply.text for reply in replies}) > 1
    assert all(reply.text.startswith("a: 47+38=") and 0 < reply.tokens <= 64 for reply in replies)
    outcomes = [verify_response(ANSWER, reply.text)[1] for reply in replies if not reply.truncated]
    assert {"right", "wrong"} >= set(outcomes) and len(outcomes) >= 20


def test_the_length_limit_and_refusals(url: str) -> None:
    async def go() -> None:
        async with Endpoint(EndpointConfig(url=url)) as endpoint:
            ask = [{"role": "user", "content": QUESTION}]
            short = await endpoint.chat(ask, temperature=0, max_tokens=3)
            assert short.truncated and short.tokens == 3
            with pytest.raises(EndpointRefused, match="maximum context length is 8192") as refused:
                await endpoint.chat([{"role": "user", "content": "7+8=15\n" * 4000}], temperature=0, max_tokens=3)
            assert refused.value.status == 400
        async with Endpoint(EndpointConfig(url=url, model="other")) as endpoint:
            with pytest.raises(ValueError, match="no model 'other'; it has tiny"):
                await endpoint.chat(ask, temperature=0, max_tokens=3)

    asyncio.run(go())


def test_a_model_that_cannot_judge_gives_no_verdicts(url: str, tmp_path: Path) -> None:
    """Everything is counted: what it babbles is unparsable, what it cannot read is too long."""
    responses = [reply.text for reply in sampled(url, range(4))]
    items = [JudgeItem(QUESTION, ANSWER, text) for text in [*responses, "7+8=15\n" * 4000]]
    cfg = JudgeConfig(endpoint=EndpointConfig(url=url), cache=tmp_path, max_tokens=32, tries=2)
    judgements, tally, model = judge_all(cfg, items)
    assert model == "tiny" and [j.outcome for j in judgements] == ["unparsable"] * 4 + ["too_long"]
    assert tally.outcomes == {"judged": 0, "unparsable": 4, "too_long": 1, "refused": 0, "failed": 0}
    assert sum(tally.tries.values()) == 2 * len(set(responses)) and not list(tmp_path.iterdir())
