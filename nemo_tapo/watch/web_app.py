"""Answer the page's requests: a WSGI application that reads run folders, and nothing else.

    GET /                 the page; its style and scripts are under /assets/
    GET /api/words        what outcomes and metrics mean
    GET /api/runs         the runs and how far they are
    GET /api/run          a run's settings and evaluation        run
    GET /api/series       its metrics by column                  run, begin, version
    GET /api/steps        the steps whose samples are there      run
    GET /api/queries      queries that fit, newest first         run, step, outcome, verdict, group, text, cursor, limit
    GET /api/query        a query with its rollouts and pairs    run, step, index

Nothing that a request says becomes a path: runs, assets and routes are looked up in tables. A request must name this
machine as its host, so that no web site can read the answers through a name of its own (DNS rebinding).
"""

from __future__ import annotations

import json
import mimetypes
import threading
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import BadRequest, HTTPException, NotFound
from werkzeug.wrappers import Request, Response

from nemo_tapo.metrics import DESCRIPTIONS
from nemo_tapo.report.summary import OUTCOME_MEANINGS
from nemo_tapo.utils.jsonl import replace_non_finite
from nemo_tapo.watch.find_runs import find_runs
from nemo_tapo.watch.query_search import Filter, search
from nemo_tapo.watch.watched_run import WatchedRun

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

HOSTS = ["127.0.0.1", "localhost"]  # any port: it may be forwarded over ssh
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
ASSETS = {file.name: file.read_bytes() for file in resources.files("nemo_tapo.watch").joinpath("assets").iterdir()}
PAGE = "watch.html"
MOST_QUERIES = 200  # of one answer


class WatchApp:
    """The application. Runs that begin below the folders while it serves are found."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._runs: dict[str, WatchedRun] = {}
        self._lock, self._note = threading.Lock(), ""
        self._routes: dict[str, Callable[[Request], Any]] = {
            "/api/words": self._words,
            "/api/runs": self._list_runs,
            "/api/run": self._describe_run,
            "/api/series": self._series,
            "/api/steps": self._steps,
            "/api/queries": self._queries,
            "/api/query": self._query,
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        request = Request(environ)
        request.trusted_hosts = HOSTS
        try:
            response = self._answer(request)
        except HTTPException as error:
            response = _send_json({"error": error.description}, error.code or 500)
        except ValueError as error:
            response = _send_json({"error": str(error)}, 404)
        response.headers.update(HEADERS)
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        _ = request.host  # raises SecurityError, a 400, unless it is one of HOSTS
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise BadRequest("another web site asked for this.")
        if request.method not in ("GET", "HEAD"):
            raise BadRequest("nothing can be changed here: only GET.")
        name = PAGE if request.path == "/" else request.path.removeprefix("/assets/")
        if name in ASSETS:
            return Response(ASSETS[name], content_type=_guess_type(name))
        if request.path not in self._routes:
            raise NotFound(f"there is no {request.path}.")
        return _send_json(self._routes[request.path](request))

    def _find_run(self, request: Request) -> WatchedRun:
        name = request.args.get("run", "")
        if name not in self._runs:
            self._look_for_runs()
        if name not in self._runs:
            raise NotFound(f"there is no run {name!r} among those that are watched.")
        return self._runs[name]

    def _look_for_runs(self) -> None:
        with self._lock:
            found, self._note = find_runs(self._folders)
            self._runs = {
                name: run if (run := self._runs.get(name)) and run.folder == folder else WatchedRun(name, folder)
                for name, folder in found.items()
            }

    def _words(self, request: Request) -> Any:
        metrics = {key: [each.unit, each.meaning] for key, each in DESCRIPTIONS.items()}
        return {"outcomes": OUTCOME_MEANINGS, "metrics": metrics}

    def _list_runs(self, request: Request) -> Any:
        self._look_for_runs()
        described = []
        for run in list(self._runs.values()):
            with run.lock:
                run.refresh()
                described.append(run.describe())
        return {"runs": described, "notes": [self._note] * bool(self._note)}

    def _describe_run(self, request: Request) -> Any:
        run = self._find_run(request)
        with run.lock:
            run.refresh()
            told, settings = run.describe(), run.describe_settings()
            return {**told, **settings, "notes": told["notes"] + settings["notes"]}

    def _series(self, request: Request) -> Any:
        run = self._find_run(request)
        with run.lock:
            run.metrics.refresh()
            same = request.args.get("version", type=int) == run.metrics.version
            return run.metrics.get_rows(max(request.args.get("begin", 0, type=int), 0) if same else 0)

    def _steps(self, request: Request) -> Any:
        run = self._find_run(request)
        with run.lock:
            run.samples.refresh()
            return {"version": run.samples.version, "steps": run.samples.steps, "times": run.samples.get_times()}

    def _queries(self, request: Request) -> Any:
        run, asked = self._find_run(request), request.args
        wanted = Filter(*(asked.get(name, "").strip() for name in ("outcome", "verdict", "group", "text")))
        limit = min(max(asked.get("limit", 50, type=int), 1), MOST_QUERIES)
        with run.lock:
            run.samples.refresh()
            found = search(run.samples, wanted, asked.get("step", type=int), asked.get("cursor", ""), limit)
        return {"queries": found.queries, "cursor": found.cursor, "notes": found.notes}

    def _query(self, request: Request) -> Any:
        run = self._find_run(request)
        step, index = (request.args.get(name, type=int) for name in ("step", "index"))
        if step is None or index is None:
            raise BadRequest("step and index must be whole numbers.")
        with run.lock:
            run.samples.refresh()
            return run.samples.read_query(step, index)


def _send_json(value: Any, status: int = 200) -> Response:
    text = json.dumps(replace_non_finite(value), ensure_ascii=True, separators=(",", ":"))
    return Response(text, status, content_type="application/json")


def _guess_type(name: str) -> str:
    return f"{mimetypes.guess_type(name)[0] or 'application/octet-stream'}; charset=utf-8"
