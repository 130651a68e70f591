"""The pages in a real browser: every view, dark and light, a phone's width, hostile text, links, keys, no network.

With WATCH_PICTURES=<folder> the pictures are written there, to be looked at.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from werkzeug.serving import make_server

from nemo_tapo.report.html import write_page
from nemo_tapo.tracking.records import TrajectoryWriter
from nemo_tapo.tracking.rollout_writer import RolloutWriter
from nemo_tapo.watch.serve import QuietHandler
from nemo_tapo.watch.web_app import WatchApp
from tests.helpers.browser import CHROMIUM, MISSING, Browser
from tests.helpers.report_samples import HOSTILE, example_record
from tests.helpers.watch_samples import make_query, write_watched_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs; in the last step of one, every text of a query tries to break out of the page."""
    folder = tmp_path_factory.mktemp("runs")
    write_watched_run(folder / "grpo", steps=12, seed=1)
    write_watched_run(folder / "tapo", steps=12)
    rng = Random(3)
    queries = [make_query(f"train-{i}", rng) for i in range(8)]
    hostile = next(query for query in queries if query["pairs"] and query["pairs"][0]["tokens"])
    hostile |= {"uid": HOSTILE, "question": HOSTILE, "answer": HOSTILE}
    for rollout in hostile["rollouts"]:
        rollout |= {"text": HOSTILE, "extracted": HOSTILE, "outcome": HOSTILE, "detail": HOSTILE}
        rollout |= {"tokens": [HOSTILE, ""], "logprobs": [-3.0, -0.1]}
    for pair in hostile["pairs"]:
        pair |= dict.fromkeys(("wrong", "reference", "analysis", "extracted", "raw"), HOSTILE)
        pair["tokens"] = [*pair["tokens"][:-1], HOSTILE] if pair["tokens"] else []
    writer = RolloutWriter(folder / "tapo", 2**30)
    writer.write(13, queries)
    writer.close()
    return folder


@pytest.fixture(scope="module")
def origin(folder: Path) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, WatchApp([folder]), threaded=True, request_handler=QuietHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as started:
        yield started


VIEWS = {
    "curves": "document.querySelectorAll('.panel .line').length >= 4",
    "rollouts": "document.querySelectorAll('.rollout, .query-row').length >= 8",
    "time": "document.querySelectorAll('.plot rect').length >= 24 && document.querySelectorAll('.span').length >= 4",
    "run": "document.querySelector('dl.facts')",
}


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_dark_and_light_and_on_a_phone(browser: Browser, origin: str, view: str) -> None:
    browser.requests.clear()
    browser.errors.clear()
    for width, dark in ((1280, False), (1280, True), (390, True), (390, False)):
        browser.show(f"{origin}/#view={view}&run=tapo", width, 850, dark)
        browser.wait_for(VIEWS[view])
        wide = browser.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{view} is {wide} pixels wider than a window of {width}"
        light = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0] > 128")
        assert light is not dark
        if pictures := os.environ.get("WATCH_PICTURES"):
            browser.save_picture(Path(pictures) / f"{view}-{width}-{'dark' if dark else 'light'}.png")
    assert browser.errors == []
    asked = [url for url in browser.requests if url != "about:blank"]
    assert asked and all(url.startswith(f"{origin}/") for url in asked), asked


def test_hostile_text_stays_text(browser: Browser, origin: str) -> None:
    browser.errors.clear()
    browser.show(f"{origin}/#view=rollouts&run=tapo&step=13&text=onerror")
    browser.wait_for("document.querySelector('.query-card .pair')")
    browser.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.evaluate("document.title") == "TAPO watch"
    assert browser.evaluate("document.querySelectorAll('img, main script').length") == 0
    assert browser.evaluate("document.querySelector('.detail h2').firstChild.data") == HOSTILE
    texts = browser.evaluate(
        "Array.from(document.querySelectorAll('.rollout pre, .block pre'), (each) => each.textContent)"
    )
    assert sum(HOSTILE in text for text in texts) >= 8 + 3
    assert browser.errors == []


def test_links_keys_and_filters(browser: Browser, origin: str) -> None:
    browser.errors.clear()
    browser.show(f"{origin}/#view=rollouts&run=tapo&step=5")
    browser.wait_for("location.hash.includes('query=5')")
    first = browser.evaluate("location.href")
    name = "document.querySelector('.detail h2')?.firstChild.data"
    browser.wait_for(name)
    uid = browser.evaluate(name)
    browser.press("ArrowRight")
    browser.wait_for("location.hash.includes('step=6') && location.hash.includes('query=6')")
    browser.press("j")
    browser.press("/")
    assert browser.evaluate("document.activeElement.id") == "search"
    browser.call("Input.insertText", text="carry")
    browser.wait_for("location.hash.includes('text=carry')")
    browser.show(first)  # a link shows the same query again
    browser.wait_for(f"{name} === {uid!r}")
    browser.press("Escape")
    browser.press("1")
    browser.wait_for(VIEWS["curves"])
    assert browser.errors == []


def test_a_step_that_is_written_appears(browser: Browser, origin: str, folder: Path) -> None:
    browser.show(f"{origin}/#view=curves")
    browser.wait_for(VIEWS["curves"])
    with (folder / "grpo" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "reward/mean": 0.98765, "loss": 0.0}\n')
    browser.press("1")
    browser.wait_for("document.querySelector('.run .step').textContent.startsWith('13')")


def test_the_report_opens_on_right_constructions_of_the_last_steps(browser: Browser, tmp_path: Path) -> None:
    writer = TrajectoryWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, [example_record(dropped="leak"), example_record()])
    writer.close()
    browser.errors.clear()
    browser.show(write_page(tmp_path).as_uri(), ready="document.querySelector('.card')")
    heads = browser.evaluate("Array.from(document.querySelectorAll('.card h3'), (each) => each.textContent)")
    assert [head.split("group")[0] for head in heads] == ["correctedstep 3", "correctedstep 2", "correctedstep 1"]
    browser.evaluate("(() => { const s = document.getElementById('outcome'); s.value = ''; s.onchange(); })()")
    assert browser.evaluate("document.querySelectorAll('.card').length") == 6
    assert browser.errors == []
