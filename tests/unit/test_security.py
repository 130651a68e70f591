"""What docs/security.md claims: hostile names and replies stay text, secrets stay out, no pickle, no foreign link."""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from nemo_tapo.checkpoint import MANIFEST, make_manifest
from nemo_tapo.cli import print_failure
from nemo_tapo.report.html import write_page
from nemo_tapo.utils.files import replace_text, write_json
from nemo_tapo.utils.jsonl import Appender
from nemo_tapo.utils.run_folder import claim_run_folder
from tests.helpers.command import nemo_tapo
from tests.helpers.endpoint_servers import Answer, Body, completion, error, scripted

ROOT = Path(__file__).parents[2]
SECRET = "sk-5up3r-s3cr3t-k3y-0123456789"
ESCAPE = "\x1b[2J\x1b]0;owned\x07"  # clears a screen and renames the window
TAG = "<script>alert(1)</script>"
SMALL = [
    "runtime=scripted", "parts=[train,report]", "steps=2", "rollout.max_tokens=300", "tapo.max_tokens=700",
    "model.max_length=3000", "rollout.queries_per_step=4", "checkpoint.min_free_gib=0", "checkpoint.every=1",
]  # fmt: skip
TASK = f'''
from dataclasses import replace
from nemo_tapo.config.sections import ArithmeticConfig
from nemo_tapo.tasks.arithmetic_task import ArithmeticTask

class Hostile(ArithmeticTask):
    """Problems whose names would leave the folder, clear the screen and run a script."""

    def __init__(self):
        super().__init__(ArithmeticConfig(train_queries=16, held_out_queries=4), 0)

    def train_queries(self):
        name = "../../../{{}}{ESCAPE.encode("unicode_escape").decode()}{TAG}=1+1"
        made = enumerate(super().train_queries())
        return [replace(query, uid=name.format(i), row={{"path": "/etc/passwd"}}) for i, query in made]
'''


def judge_and_echo(number: int, body: Body) -> Answer:
    """Score 0 or 10 by turns and repeat the key; refuse every fifth response with the key in the message."""
    if number % 5 == 4:
        return error(400, f"Bearer {SECRET} is not allowed this{ESCAPE}")
    return completion(f'{ESCAPE}{TAG} Authorization: Bearer {SECRET} {{"why": "=1+1", "score": {10 * (number % 2)}}}')


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run on a task with hostile names, judged by a server that sends back the key and escape sequences."""
    folder = tmp_path_factory.mktemp("hostile") / "in" / "here"
    folder.mkdir(parents=True)
    (folder / "task.py").write_text(TASK)
    with pytest.MonkeyPatch.context() as patch, scripted(judge_and_echo) as server:
        patch.setenv("JUDGE_KEY", SECRET)
        judged = ["task.name=custom", f"task.target={folder / 'task.py'}:Hostile"]
        judged += [f"task.rewards.j.judge.{name}" for name in (
            f"endpoint.url={server.url}", "endpoint.key_env=JUDGE_KEY", f"cache={folder / 'cache'}", "tries=1",
        )]  # fmt: skip
        done = nemo_tapo("run", *SMALL, *judged, f"output={folder / 'run'}")
        assert done.returncode == 0, done.stderr
        assert SECRET in str(server.keys)  # the server did get it
    return folder, done


def every_file(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    return files


def content(path: Path) -> bytes:
    """Return what a file says, compressed or not."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def test_a_secret_is_in_nothing_that_a_run_writes(hostile: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = hostile
    files = every_file(folder.parents[1])
    assert {"config.yaml", "metrics.jsonl", "report.html", "state.json", "ungraded.jsonl"} <= {f.name for f in files}
    assert any(path.parent.parent.name == "cache" for path in files)
    holding = [path for path in files if SECRET.encode() in content(path)]
    assert holding == []
    assert SECRET not in done.stdout + done.stderr
    assert b"***" in b"".join(content(path) for path in files if path.parent.parent.name == "cache")


def test_names_of_a_data_set_name_no_file(hostile: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = hostile
    outside = [path for path in folder.parents[1].rglob("*") if folder not in (path, *path.parents)]
    assert outside == [folder.parent]
    assert all(set(str(path.relative_to(folder))) <= set("abcdefghijklmnopqrstuvwxyz"
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/") for path in every_file(folder))  # fmt: skip


def test_nothing_of_it_steers_a_terminal_or_a_page(hostile: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = hostile
    run = str(folder / "run")
    assert "no_reward" in done.stderr  # the refusals were told
    shown = [done, nemo_tapo("show", run, "--limit", "50"), nemo_tapo("replay", run, "--all")]
    shown.append(nemo_tapo("replay", run, "--step", "1"))
    assert TAG in shown[1].stdout.replace("\n", "")
    for each in shown:
        assert each.returncode == 0, each.stdout + each.stderr
        assert not {"\x1b", "\x07"} & set(each.stdout + each.stderr)
    page = (folder / "run" / "report.html").read_text()
    assert TAG not in page and "alert(1)" in page
    assert "default-src 'none'" in page
    events = b"".join(content(path) for path in (folder / "run" / "tensorboard").iterdir())
    assert b"reward/mean" in events and not any(text in events for text in (b"alert", b"boxed", b"\x1b[2J"))


def test_a_failure_does_not_steer_the_terminal() -> None:
    with redirect_stderr(io.StringIO()) as told:
        assert print_failure(f"the server says {ESCAPE}47\n+38", 3) == 3
    assert told.getvalue() == "nemo-tapo: the server says ␛[2J␛]0;owned␇47\n+38\n"


# ---- pickles ---------------------------------------------------------------------------------------------------------


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_pickle_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    """The manifest fits: whoever may write into the folder writes that too."""
    run = [*SMALL, "parts=[train]", "task.arithmetic.train_queries=16", f"output={tmp_path / 'run'}"]
    assert nemo_tapo("run", *run).returncode == 0
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    (newest / "optimizer.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    write_json(newest / MANIFEST, make_manifest(newest))
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        nemo_tapo("run", *run)
    assert not (tmp_path / "executed").exists()


def test_no_call_of_the_package_can_load_a_pickle_or_run_a_string() -> None:
    """Every call that could: torch.load says weights_only, yaml.load names a safe loader, the others are absent.

    But for code_host.py, which runs programs inside the sandbox: the package itself takes no more of it than its path
    and the two functions that turn values into JSON and back.
    """
    faults = []
    taken = set()
    for path in [*(ROOT / "nemo_tapo").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::"):
                faults.append((path.name, node.lineno, "listens on every interface"))
            if isinstance(node, ast.Call) and (fault := find_fault(node)) and path.name != SANDBOXED:
                faults.append((path.name, node.lineno, fault))
            if isinstance(node, ast.ImportFrom) and str(node.module).endswith("code_host"):
                taken |= {alias.name for alias in node.names}
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "code_host":
                taken.add(node.attr)
    assert faults == []
    assert taken == {"encode", "decode", "__file__"}


SANDBOXED = "code_host.py"
PICKLES = ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
EXECUTES = ("np.load", "numpy.load", "pd.read_pickle", "eval", "exec", "os.system")


def find_fault(call: ast.Call) -> str | None:
    name, options = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
    module, _, last = name.rpartition(".")
    if options.get("trust_remote_code", "False") != "False" or options.get("shell", "False") != "False":
        return f"{name} executes what it is given"
    if name == "torch.load":
        return None if options.get("weights_only") == "True" else "torch.load without weights_only"
    if module == "yaml" and last not in ("safe_load", "safe_dump", "dump"):
        return None if options.get("Loader") == "_Loader" else f"{name} without a safe loader"
    unpickles = module in PICKLES and last.startswith(("load", "open"))
    return f"{name} can execute what it reads" if unpickles or name in EXECUTES else None


def test_the_search_finds_what_it_looks_for() -> None:
    for text in ("torch.load(f)", "pickle.loads(b)", "yaml.load(t)", "eval(t)", "run(c, shell=True)", "np.load(f)"):
        assert find_fault(ast.parse(text, mode="eval").body)  # type: ignore[arg-type]
    for text in ("torch.load(f, weights_only=True)", "yaml.safe_load(t)", "json.loads(t)", "model.eval()"):
        assert find_fault(ast.parse(text, mode="eval").body) is None  # type: ignore[arg-type]


# ---- links -----------------------------------------------------------------------------------------------------------


def place_foreign_link(link: Path, target: Path, patch: pytest.MonkeyPatch) -> None:
    """Make a link that belongs to another user than the one who writes."""
    link.symlink_to(target)
    if os.geteuid() == 0:
        os.chown(link, 4242, -1, follow_symlinks=False)
    else:
        patch.setattr(os, "geteuid", lambda: 4242)


def claim(folder: Path) -> None:
    with claim_run_folder(folder, "steps: 1\n", "train"):
        pass


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("metrics.jsonl", lambda folder: Appender(folder / "metrics.jsonl")),
        ("text.tmp", lambda folder: replace_text(folder / "text", "mine")),
        ("report.html.tmp", write_page),
        ("state.json", lambda folder: write_json(folder / "state.json", {})),
        ("run.lock", claim),
    ],
)
def test_a_link_of_another_user_is_not_followed(
    tmp_path: Path, name: str, write: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    treasure, folder = tmp_path / "treasure", tmp_path / "run"
    treasure.write_text('{"step": 1, "loss": 0.5}\n')
    folder.mkdir()
    if name != "metrics.jsonl":
        shutil.copy(treasure, folder / "metrics.jsonl")
    place_foreign_link(folder / name, treasure, monkeypatch)
    with pytest.raises(ValueError, match="is a link that another user placed"):
        write(folder)
    assert treasure.read_text() == '{"step": 1, "loss": 0.5}\n'


def test_a_run_does_not_start_in_a_folder_with_such_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    place_foreign_link(tmp_path / "run" / "checkpoints", tmp_path, monkeypatch)
    done = nemo_tapo("train", *SMALL, f"output={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "checkpoints is a link that another user placed" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_link_of_ones_own_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere.jsonl")
    file = Appender(tmp_path / "link")
    file.append([{"step": 1}])
    file.close()
    assert json.loads((tmp_path / "elsewhere.jsonl").read_text()) == {"step": 1}
