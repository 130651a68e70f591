"""Name the files that a run reads again, and damage one of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random

FILES = {
    "a checkpoint's weights": "checkpoints/step-*/model.safetensors",
    "a checkpoint's optimizer": "checkpoints/step-*/optimizer.*",
    "a checkpoint's state": "checkpoints/step-*/state.json",
    "a checkpoint's manifest": "checkpoints/step-*/manifest.json",
    "metrics.jsonl": "metrics.jsonl",
    "trajectories.jsonl": "trajectories.jsonl",
    "config.yaml": "config.yaml",
    "run.lock": "run.lock",
    "data.json": "data.json",
    "the trained model": "hf/*",
    "evaluation.json": "evaluation.json",
    "the evaluation's samples": "evaluation/*/*.jsonl",
    "the evaluation's settings": "evaluation/*/settings.json",
    "the cold start's samples": "coldstart/samples/*",
    "the cold start's corrections": "coldstart/corrections/*",
    "the cold start's data": "coldstart/data.jsonl",
    "the cold start's statistics": "coldstart/statistics.json",
    "the cold start's metrics": "coldstart/metrics.jsonl",
    "the cold start's checkpoint": "coldstart/checkpoints/step-*/*",
    "the cold start's model": "coldstart/hf/*",
    "the cold start's trained.json": "coldstart/trained.json",
    "TensorBoard's events": "tensorboard/*",
}
# What only people read, and the statistics, without which the data counts as the user's own.
LOST_WITH = {
    "trajectories.jsonl": ("trajectories.jsonl",),
    "the cold start's statistics": ("coldstart/statistics.json",),
    "the cold start's metrics": ("coldstart/metrics.jsonl",),  # of a stage that is done nothing is read again
    "the cold start's data": ("coldstart/data.jsonl",),  # once the model is there, it is told and not mended
}
DAMAGES = ("cut short", "with one bit flipped", "emptied", "removed")


def damage_file(file: Path, how: str, rng: Random) -> None:
    """Damage a file in one of the ways of DAMAGES."""
    data = bytearray(file.read_bytes())
    if how == "removed":
        file.unlink()
    elif how == "emptied" or not data:
        file.write_bytes(b"")
    elif how == "cut short":
        file.write_bytes(data[: rng.randrange(len(data))])
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)


def find_files(output: Path, patterns: Mapping[str, str]) -> dict[str, list[Path]]:
    """Return the files that there are of each kind."""
    there = {what: sorted(f for f in output.glob(pattern) if f.is_file()) for what, pattern in patterns.items()}
    return {what: files for what, files in there.items() if files}
