"""The launcher's arguments and script, without Slurm: what is refused, what is written, that quoting survives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_tapo.runtime.nemo_rl.config import validate

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "tools" / "slurm" / "launch.py"
CONFIG = ROOT / "examples" / "configs" / "tapo-tiny-1n0g.yaml"


def launch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Called as from a shell in `folder`, on a machine without sbatch."""
    environment = {**os.environ, "PATH": "/usr/bin-without-slurm"}
    command = [sys.executable, str(LAUNCH), "--python", sys.executable, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, env=environment, timeout=60)


def dry(folder: Path, *arguments: str) -> str:
    done = launch(folder, "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(script: str, task: int = 0) -> list[str]:
    """COMMAND as bash reads it from the script, for one element of the array."""
    values = script.split("# ---- what follows")[0]
    shown = f"SLURM_ARRAY_TASK_ID={task}\n{values}\nprintf '%s\\0' \"${{COMMAND[@]}}\""
    done = subprocess.run(["bash", "-eu"], input=shown, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--nodes", "0", "--", "train", "output=x"], "--nodes is 0"),
        (["--time", "5h", "--", "train", "output=x"], "--time '5h' is none of"),
        (["--time", "10", "--", "train", "output=x"], "leaves nothing before the signal"),
        (["--time", "0:09:59", "--", "train", "output=x"], "leaves nothing before the signal"),
        (["--env", "A", "--", "train", "output=x"], "--env 'A' is not KEY=VALUE"),
        (["--mounts", "/a:/b", "--", "train", "output=x"], "no --container is given"),
        (["--container", "c", "--", "train", "output=x"], "exclude each other"),
        (["--gpus-per-node", "-1", "--", "train", "output=x"], "--gpus-per-node is -1"),
        (["--start-minutes", "0", "--", "train", "output=x"], "--start-minutes is 0.0"),
        (["--", "trian", "output=x"], "here trian"),
        (["--"], "here nothing"),
        (["--", "train"], "add output=FOLDER"),
        (["--", "train", "--config", "no.yaml", "output=x"], "no config file no.yaml"),
        (["--sweep", "output=a,b", "--", "train", "output=x"], "chooses the output folders itself"),
        (["--sweep", "seed", "--", "train", "output=x"], "is not KEY=A,B,C"),
        (
            ["--sweep", "grpo.seed=1,2", "--", "train", "tapo.output=x", "checkpointing.checkpoint_dir=y"],
            "checkpointing.checkpoint_dir would be one folder for the whole sweep",
        ),
        (["--python", "/no/python", "--", "train", "output=x"], "no python at /no/python"),
        (["--", "train", "output=x"], "there is no sbatch here"),
    ],
)
def test_bad_arguments_are_one_sentence_and_write_nothing(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    done = launch(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_dry_run_prints_a_script_and_writes_nothing(tmp_path: Path) -> None:
    script = dry(
        tmp_path, "--nodes", "4", "--time", "1-12:00", "--account", "A", "--partition", "P", "--gpus-per-node", "8",
        "--sbatch", "qos=high", "--signal-minutes", "15", "--", "train", "--config", str(CONFIG), "output=runs/x",
    )  # fmt: skip
    assert not list(tmp_path.iterdir())
    given = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    expected = {
        "nodes=4", "time=1-12:00", "account=A", "partition=P", "gres=gpu:8", "qos=high", "requeue", "exclusive",
        "signal=B:USR1@900", "ntasks-per-node=1", f"output={tmp_path}/runs/x/slurm/%j.log", "dependency=singleton",
    }  # fmt: skip
    assert expected <= set(given)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=20)


def test_paths_are_absolute_and_the_config_is_the_snapshots(tmp_path: Path) -> None:
    found = commands(dry(tmp_path, "--", "train", "--config", str(CONFIG), "output=runs/x", "steps=3"))
    assert found[:2] == ["train", "--config"]
    assert found[2].startswith(f"{tmp_path}/runs/x/slurm/submit-")
    assert found[2].endswith("/code/examples/configs/tapo-tiny-1n0g.yaml")
    assert found[3:] == [f"output={tmp_path}/runs/x", "steps=3"]
    (tmp_path / "mine.yaml").write_text("steps: 3\n")
    other = commands(dry(tmp_path, "--", "train", "--config", "mine.yaml", "tapo.output=y"))
    assert other[2].endswith("/config/mine.yaml")
    assert other[3] == f"tapo.output={tmp_path}/y"


def test_values_with_quotes_blanks_and_dollars_survive(tmp_path: Path) -> None:
    odd = ["tapo.prompt='it is \"$HOME\" {question}'", "a=b c", "x=`id`"]
    script = dry(tmp_path, "--env", "WORDS=two $words", "--", "train", "output=o", *odd)
    assert commands(script)[2:] == odd
    values = script.split("# ---- what follows")[0]
    shown = subprocess.run(["bash"], input=f'{values}\necho "$WORDS"', capture_output=True, text=True, check=True)
    assert shown.stdout == "two $words\n"


def test_container_sees_the_run_and_the_folder_of_submission(tmp_path: Path) -> None:
    command = [sys.executable, str(LAUNCH), "--container", "nvcr.io#nvidia/nemo-rl:v0.7.0"]
    mounts = ["--mounts", f"/data:/data,{tmp_path}/out:{tmp_path}/out", "--dry-run"]
    rest = ["--", "train", f"output={tmp_path}/out/x"]
    done = subprocess.run([*command, *mounts, *rest], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "--container-image=nvcr.io#nvidia/nemo-rl:v0.7.0" in done.stdout
    # `out` covers the run's folder; the folder of submission is added
    assert f"--container-mounts=/data:/data,{tmp_path}/out:{tmp_path}/out,{tmp_path}:{tmp_path} " in done.stdout
    assert "export NT_PYTHON=python\n" in done.stdout


@pytest.mark.parametrize(
    "image", ["nvcr.io#nvidia/nemo-rl:v0.5.0", "docker://nvcr.io/nvidia/nemo-rl:v0.5.0", "nvcr.io#nvidia/nemo-rl"]
)
def test_a_container_that_is_not_supported_is_refused_before_it_is_queued(tmp_path: Path, image: str) -> None:
    """By the launcher as by the plan; the launcher needs nothing installed, so it has the tags a second time."""
    command = [sys.executable, str(LAUNCH), "--container", image, "--dry-run", "--", "train", "output=x"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert f"--container {image} is not supported: of NVIDIA's, {', '.join(validate.SUPPORTED_TAGS)} is." in done.stderr
    assert list(validate.check_container(image))


def test_a_run_of_nemo_rls_has_its_checkpoints_and_logs_in_its_folder(tmp_path: Path) -> None:
    """Recipes name one folder for all runs: elements of a sweep would go on from each other's checkpoints."""
    script = dry(tmp_path, "--sweep", "grpo.seed=1,2", "--", "train", "tapo.output=s")
    for task in range(2):
        folder = f"{tmp_path}/s/00{task}-grpo.seed-{task + 1}"
        assert commands(script, task)[1:] == [
            f"tapo.output={folder}", f"checkpointing.checkpoint_dir={folder}/checkpoints",
            f"logger.log_dir={folder}/logs", f"grpo.seed={task + 1}",
        ]  # fmt: skip
        assert f"export NT_CHECKPOINTS={folder}/checkpoints\n" in script
    named = dry(tmp_path, "--", "train", "tapo.output=s", "++checkpointing.checkpoint_dir=kept", "logger.log_dir=l")
    assert commands(named)[1:] == [
        f"tapo.output={tmp_path}/s",
        "++checkpointing.checkpoint_dir=kept",
        "logger.log_dir=l",
    ]
    assert f"export NT_CHECKPOINTS={tmp_path}/kept\n" in named
    assert "checkpointing" not in dry(tmp_path, "--", "train", "output=s").split("# ---- what follows")[0]


@pytest.mark.parametrize("place", ["kept/step_2/policy", "run/checkpoints/step_2", "run/coldstart/checkpoints/x", None])
def test_the_job_sees_what_an_allocation_saved(tmp_path: Path, place: str | None) -> None:
    job = (ROOT / "tools" / "slurm" / "job.sh").read_text()
    function = job[job.index("saved() {") :].split("\n}\n")[0] + "\n}\n"
    run, logs = tmp_path / "run", tmp_path / "run" / "slurm" / "7" / "0"
    old = tmp_path / "kept" / "step_1" / "weights"
    for folder in (logs, run / "checkpoints" / "step_1", old.parent):
        folder.mkdir(parents=True)
    for file in (old, run / "checkpoints" / "step_1" / "weights", logs / "begin"):
        file.touch()
        os.utime(file, (1000, 1000))
    (run / "metrics.jsonl").touch()
    (logs / "nodes.log").touch()
    if place is not None:
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "weights").touch()
    given = {**os.environ, "NT_RUN": str(run), "NT_CHECKPOINTS": str(tmp_path / "kept"), "NT_LOGS": str(logs)}
    done = subprocess.run(["bash", "-u"], input=f"{function}saved", text=True, check=False, env=given, timeout=20)
    assert (done.returncode == 0) is (place is not None)


def test_a_sweep_is_one_element_a_combination(tmp_path: Path) -> None:
    script = dry(
        tmp_path, "--sweep", "optimizer.lr=1e-4,1e-3,1e-2", "--sweep", "optimizer.betas=[0.9,0.95],[0.9,0.99]",
        "--at-once", "2", "--", "train", "output=s", "steps=3",
    )  # fmt: skip
    assert "#SBATCH --array=0-5%2\n" in script
    assert "singleton" not in script  # elements share a name: they would wait for each other
    assert commands(script, 3)[2:] == ["steps=3", "optimizer.lr=1e-3", "optimizer.betas=[0.9,0.99]"]
    folders = [commands(script, task)[1] for task in range(6)]
    assert len(set(folders)) == 6
    assert all(folder.startswith(f"output={tmp_path}/s/00") for folder in folders)
    assert commands(dry(tmp_path, "--sweep", "seed=7", "--", "train", "output=s"))[2:] == ["seed=7"]


def listed(folder: Path, *lines: str) -> str:
    (folder / "list.jsonl").write_text("".join(line + "\n" for line in lines))
    return str(folder / "list.jsonl")


def test_a_list_gives_each_element_its_own_settings_and_folder(tmp_path: Path) -> None:
    file = listed(
        tmp_path,
        '["algorithm=grpo", "seed=0", "output=runs/s/grpo/seed-0"]',
        '["tapo.suppression=false", "seed=1", "output=runs/s/no-ots/seed-1"]',
    )
    script = dry(tmp_path, "--list", file, "--", "run", "--config", str(CONFIG), "output=runs/s", "steps=3")
    assert "#SBATCH --array=0-1" in script
    first, second = commands(script), commands(script, 1)
    assert first[:2] == second[:2] == ["run", "--config"]
    assert first[3:] == ["steps=3", "algorithm=grpo", "seed=0", f"output={tmp_path}/runs/s/grpo/seed-0"]
    assert second[3:] == ["steps=3", "tapo.suppression=false", "seed=1", f"output={tmp_path}/runs/s/no-ots/seed-1"]
    assert f"export NT_RUN={tmp_path}/runs/s/no-ots/seed-1" in script


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["not JSON"], "line 1 is not a JSON array of settings"),
        (['["output=s/a"]', '["seed=1"]'], "line 2 is not a JSON array of settings with an output="),
        (['["output=elsewhere/a"]'], "is not below"),
        (['["output=s/a"]', '["output=s/a", "seed=1"]'], "two runs have the same output"),
        ([], "has 0 runs"),
    ],
)
def test_a_bad_list_is_one_sentence(tmp_path: Path, lines: list[str], sentence: str) -> None:
    done = launch(tmp_path, "--dry-run", "--list", listed(tmp_path, *lines), "--", "run", "output=s")
    assert done.returncode == 2, done.stdout
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
