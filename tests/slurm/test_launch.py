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


def in_container(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A dry run with a container, in a shell with `variables` and no other of the caches'."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "NRL_", "NEMO_"))}
    command = [sys.executable, str(LAUNCH), "--container", "any", "--dry-run", *arguments]
    given = {"check": False, "capture_output": True, "text": True, "cwd": folder, "env": environment | variables}
    return subprocess.run(command, timeout=60, **given)  # type: ignore[call-overload, no-any-return]


def exported(script: str, name: str) -> list[str]:
    return [line.partition("=")[2] for line in script.splitlines() if line.startswith(f"export {name}=")]


def mounts(script: str) -> list[str]:
    return script.split("--container-mounts=")[1].split()[0].split(",")


def test_a_container_has_the_models_caches_of_all_runs_beside_this_one(tmp_path: Path) -> None:
    runs, here = tmp_path / "runs", tmp_path / "here"
    here.mkdir()
    for output in (runs / "a", runs / "b"):
        script = in_container(here, "--", "train", f"output={output}").stdout
        assert exported(script, "HF_HOME") == [f"{runs}/model-cache/huggingface"]
        assert exported(script, "NRL_MEGATRON_CHECKPOINT_DIR") == [f"{runs}/model-cache/megatron"]
        assert mounts(script) == [
            f"{folder}:{folder}"
            for folder in (output, here, f"{runs}/model-cache/huggingface", f"{runs}/model-cache/megatron")
        ]
    assert not runs.exists()
    plain = dry(tmp_path, "--", "train", f"output={runs}/a")
    assert not exported(plain, "HF_HOME")  # without a container the home folder is there


def test_caches_that_the_user_names_are_kept(tmp_path: Path) -> None:
    own = ("--mounts", f"{tmp_path}:{tmp_path}", "--", "train", f"output={tmp_path}/runs/a")
    script = in_container(tmp_path, *own, HF_HOME=f"{tmp_path}/hub", NRL_MEGATRON_CHECKPOINT_DIR=" ").stdout
    assert not exported(script, "HF_HOME")  # it goes along with the shell's variables
    assert exported(script, "NRL_MEGATRON_CHECKPOINT_DIR") == [f"{tmp_path}/runs/model-cache/megatron"]
    script = in_container(tmp_path, "--env", f"HF_HOME={tmp_path}/other", *own).stdout
    assert exported(script, "HF_HOME") == [f"{tmp_path}/other"]
    assert mounts(script) == [f"{tmp_path}:{tmp_path}"]


@pytest.mark.parametrize("name", ["HF_HOME", "NRL_MEGATRON_CHECKPOINT_DIR", "HF_HUB_CACHE", "NEMO_RL_SRC"])
def test_a_folder_of_a_variable_that_is_not_mounted_is_refused(tmp_path: Path, name: str) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    here.mkdir()
    sentence = f"launch.py: {name}={there}: the container would not have {there}, add it (or a folder above it) to"
    for arguments, variables in (([], {name: str(there)}), (["--env", f"{name}={there}"], {})):
        done = in_container(here, *arguments, "--", "train", "output=x", **variables)
        assert done.returncode == 2 and done.stderr.startswith(sentence) and done.stderr.count("\n") == 1, done.stderr
    assert in_container(here, "--mounts", f"{tmp_path}:{tmp_path}", "--", "train", "output=x", **variables).stdout


def test_a_path_that_is_here_and_not_in_the_container_is_refused(tmp_path: Path) -> None:
    """In the command, also quoted or in a list, or in the config; a link too. What is nowhere may be in the image."""
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there / "my model", here):
        folder.mkdir(parents=True)
    (there / "data.jsonl").touch()
    (here / "model").symlink_to(there / "my model")
    (here / "with.yaml").write_text(f"policy:\n  model_name: '{there}/data.jsonl' # here\n")
    (here / "without.yaml").write_text(f"# {there}/data.jsonl\npolicy: {{model_name: acme/tiny}}\n")
    lost = {
        f"policy.model_name='{there}/my model'": f"{there}/my model",
        "model.path=../there": str(there),
        "policy.model_name=./model": f"{there}/my model",
        f"task.files=[{here},{there}/data.jsonl]": f"{there}/data.jsonl",
        "checkpointing.checkpoint_dir=/nowhere/kept": "/nowhere/kept",  # what is written there would be lost
    }
    for argument, path in lost.items():
        done = in_container(here, "--", "train", "tapo.output=x", argument)
        assert done.returncode == 2, argument
        assert f"launch.py: {argument}: the container would not have {path}, add it" in done.stderr
    done = in_container(here, "--", "train", "--config", "with.yaml", "tapo.output=x")
    assert f"with.yaml: model_name: '{there}/data.jsonl': the container would not have {there}/data" in done.stderr
    fine = ["--config", "without.yaml", "policy.model_name=/opt/models/tiny", "tapo.prompt=a / b ../ c", "x=acme/tiny"]
    assert in_container(here, "--", "train", "tapo.output=x", *fine).returncode == 0
    for argument in [*list(lost)[:4], "x=1"]:
        seen = in_container(here, "--mounts", f"{there}:{there}", "--", "train", "tapo.output=x", argument)
        assert seen.returncode == 0, seen.stderr


def test_a_mount_to_another_place_is_known_by_that_place(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here):
        folder.mkdir()
    (there / "model").mkdir()
    moved = ("--mounts", f"{there}:/data", "--", "train", "output=x")
    assert in_container(here, *moved, "model.path=/data/model").returncode == 0
    assert f"would not have {there}/model" in in_container(here, *moved, f"model.path={there}/model").stderr


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
    (logs / "nodes").mkdir()
    (logs / "nodes" / "n1.log").touch()
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
