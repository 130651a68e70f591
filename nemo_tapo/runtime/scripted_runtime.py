"""A runtime for tests: scripted completions and a two-layer torch actor.

It runs the whole training loop in about a second. Types, seeds, loss and checkpoints are the real ones; only the
engine and the model are replaced.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.losses.base import Loss, LossNeeds, next_token_scores
from nemo_tapo.losses.distillation import select_taught_logits
from nemo_tapo.metrics import reduce_parts
from nemo_tapo.runtime.defaults import RuntimeDefaults
from nemo_tapo.tasks import arithmetic, countdown
from nemo_tapo.types import Batch, Completion, Request, UpdateResult

SCRIPTED_MARKER = "scripted"  # this file in an exported folder says that the weights are of this module's small model
Script = Callable[[str, Request], str]  # (prompt text, request) -> response text
BEGUN_PATTERN = re.compile(r"a: [0-9]+[+-]")  # the first step of a solution, behind its question
SYNTHESIS_PATTERN = re.compile(  # the last group is an answer that has been begun
    r"Question:\n(.*)\nWrong answer:\n(.*)\nRight answer:\n(.*)\nFind the first[^.]*\.(.*)", re.DOTALL
)


class CharacterTokenizer:
    """Maps each ASCII character to one token: its character code.

    Special tokens: 0 is padding, 1 ends a turn, 2 opens the user's turn, 3 opens the assistant's turn.

    >>> CharacterTokenizer().chat("Hi")
    (2, 72, 105, 3)
    >>> CharacterTokenizer().decode((2, 72, 105, 3))
    'Hi'
    """

    pad_id, eos_id = 0, 1
    vocab_size = 128

    def chat(self, user_text: str) -> tuple[int, ...]:
        """Return the ids of one user turn and the opening of the assistant's turn."""
        return (2, *self.encode(user_text), 3)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return one id per character; `?` stands for characters outside the vocabulary."""
        return tuple(ord(c) if 4 <= ord(c) < 128 else ord("?") for c in text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens left out."""
        return "".join(chr(i) for i in ids if i >= 4)


class ScriptedGenerator:
    """Answers every request with the script's text. Requests finish in another order than they arrive in."""

    def __init__(self, script: Script, tokenizer: CharacterTokenizer, max_model_len: int) -> None:
        self.script, self.tokenizer, self.max_model_len = script, tokenizer, max_model_len
        self.request_uids: list[str] = []  # in order of arrival
        self.weight_updates = 0
        self.weights: dict[str, Tensor] = {}  # those handed over last

    async def generate(self, request: Request) -> Completion:
        """Return the script's answer, ended by `request.stop` and cut to `request.max_tokens`."""
        self.request_uids.append(request.uid)
        for _ in range(request.seed % 61):  # let other requests run; how long depends on the seed
            await asyncio.sleep(0)
        return self.answer(request)

    def answer(self, request: Request) -> Completion:
        """Return the script's answer at once."""
        text = self.script(self.tokenizer.decode(request.prompt_ids), request)
        if request.stop is not None and request.stop in text:
            ids = self.tokenizer.encode(text[: text.index(request.stop) + len(request.stop)])
        else:
            ids = (*self.tokenizer.encode(text), self.tokenizer.eos_id)
        truncated = len(ids) > request.max_tokens
        ids = ids[: request.max_tokens]
        return Completion(ids, self.tokenizer.decode(ids), truncated, self._score(request, ids))

    def _score(self, request: Request, ids: tuple[int, ...]) -> tuple[float, ...] | None:
        """Return the log-probability of each token by the weights handed over last, if the request asks for them."""
        if not request.logprobs or not self.weights:
            return None
        before = torch.tensor((request.prompt_ids[-1], *ids[:-1]))
        hidden = torch.tanh(self.weights["0.weight"][before])
        logits = nn.functional.linear(hidden, self.weights["2.weight"], self.weights["2.bias"])
        scores = torch.log_softmax(logits / request.temperature, -1)
        return tuple(scores.gather(-1, torch.tensor(ids)[:, None])[:, 0].tolist())

    async def update_weights(self, weights: dict[str, Tensor]) -> None:
        """Keep a copy of the weights; the script does not depend on them, the log-probabilities do."""
        self.weight_updates += 1
        self.weights = {name: tensor.clone() for name, tensor in weights.items()}


class ScriptedActor:
    """A small model with real gradients: embedding, tanh, linear output. It predicts p(next token | this token)."""

    def __init__(self, vocab_size: int = 128, width: int = 16, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Embedding(vocab_size, width), nn.Tanh(), nn.Linear(width, vocab_size))
        self.vocab = VocabShard(0, vocab_size)
        self.reference = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.teacher: dict[str, Tensor] | None = None

    async def configure(self, optimizer: OptimizerConfig, total_steps: int) -> None:
        """Create a new AdamW with a constant learning rate; step count 0."""
        self.settings, self.steps_done = optimizer, 0
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), optimizer.lr, optimizer.betas, optimizer.eps, optimizer.weight_decay
        )

    async def load_model(self, path: Path) -> None:
        """Load weights that `export` wrote. For any other folder, keep the seeded initial weights."""
        file = path / "model.safetensors"
        if (path / SCRIPTED_MARKER).is_file():
            self.model.load_state_dict(load_file(file))

    async def set_reference(self) -> None:
        """Freeze a copy of the present weights as the reference policy."""
        self.reference = {k: v.clone() for k, v in self.model.state_dict().items()}

    async def set_teacher(self, path: Path) -> None:
        """Load the frozen teacher from weights that `export` wrote."""
        self.teacher = load_file(path / "model.safetensors")

    async def train(self, batch: Batch, loss: Loss) -> UpdateResult:
        """Make one optimizer step: forward, loss, backward, update."""
        self.optimizer.zero_grad()
        logits = self.model(batch.input_ids)
        output = loss(logits, batch, self.vocab, self._teacher_logits(batch, loss.needs))
        output.loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.steps_done += 1
        return UpdateResult(
            loss=float(output.loss.detach()),
            grad_norm=float(norm),
            learning_rate=self.settings.lr,
            metrics=reduce_parts([output.parts]),
            token_weights=output.token_weights,
        )

    def _teacher_logits(self, batch: Batch, needs: LossNeeds) -> Tensor | None:
        if needs.teacher_logits is None or batch.teacher_input_ids is None:
            return None
        with torch.no_grad():
            weights = self.model.state_dict() if needs.teacher_logits == "live" else self.teacher or self.reference
            logits = torch.func.functional_call(self.model, weights, batch.teacher_input_ids)
            return select_taught_logits(logits, batch)

    async def logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return the log-probability of every token under the present weights, [B, S] nats."""
        with torch.no_grad():
            return self._scores(self.model(batch.input_ids), batch, temperature)

    async def reference_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return the same under the reference policy."""
        return self._scores_under(self.reference, batch, temperature)

    async def teacher_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return the same under the teacher, or under the reference policy if no teacher was set."""
        return self._scores_under(self.teacher or self.reference, batch, temperature)

    def _scores_under(self, weights: dict[str, Tensor], batch: Batch, temperature: float) -> Tensor:
        with torch.no_grad():
            logits = torch.func.functional_call(self.model, weights, batch.input_ids)
            return self._scores(logits, batch, temperature)

    def _scores(self, logits: Tensor, batch: Batch, temperature: float) -> Tensor:
        scores = next_token_scores(logits, batch, self.vocab, False, temperature)[0]
        return scores.masked_fill(torch.arange(scores.shape[1]) >= batch.input_lengths[:, None], 0.0)

    async def weights(self) -> dict[str, Tensor]:
        """Return the model's weights by name."""
        return dict(self.model.state_dict())

    async def save(self, path: Path) -> None:
        """Write weights, optimizer state and step count into the existing folder `path`."""
        save_file(self.model.state_dict(), path / "model.safetensors")
        moments = io.BytesIO()  # torch, writing to a disk that is full, raises an error that does not say so
        torch.save(self.optimizer.state_dict(), moments)
        (path / "optimizer.pt").write_bytes(moments.getvalue())
        (path / "optimizer.json").write_text(json.dumps({"steps_done": self.steps_done}))

    async def load(self, path: Path) -> None:
        """Restore what `save` wrote."""
        self.model.load_state_dict(load_file(path / "model.safetensors"))
        self.optimizer.load_state_dict(torch.load(path / "optimizer.pt", weights_only=True))
        self.steps_done = json.loads((path / "optimizer.json").read_text())["steps_done"]

    async def export(self, path: Path) -> None:
        """Write the weights and the marker file that `load_model` looks for."""
        path.mkdir(parents=True, exist_ok=True)
        save_file(self.model.state_dict(), path / "model.safetensors")
        (path / SCRIPTED_MARKER).touch()


class ScriptedRuntime(RuntimeDefaults):
    """Implementation of `interfaces.Runtime` with this module's tokenizer, generator and actor."""

    def __init__(self, script: Script, max_model_len: int = 4096, seed: int = 0) -> None:
        self.tokenizer = CharacterTokenizer()
        self.generator = ScriptedGenerator(script, self.tokenizer, max_model_len)
        self.actor = ScriptedActor(self.tokenizer.vocab_size, seed=seed)

    def close(self) -> None:
        """Do nothing: no process was started."""


def arithmetic_script(prompt: str, request: Request) -> str:
    """Answer a prompt of the generated arithmetic as a policy would; the request's seed decides how well.

    A question gets a solution with or without mistakes, a begun solution an end, right or wrong. A synthesis prompt
    gets a good correction, one with a wrong final answer, or a malformed one.
    """
    draw = random.Random(request.seed)
    if (solution := BEGUN_PATTERN.search(prompt)) and "Wrong answer:" not in prompt:
        answer = arithmetic.parse_question(prompt[: solution.start()]).answer
        return f"{draw.choice(('Wait, ', ''))}{arithmetic.format_box(draw.choice((answer, '0')))}"
    if "Wrong answer:" not in prompt:
        return arithmetic.write_solution(arithmetic.parse_question(prompt), draw, mistake_rate=0.5)
    question, wrong, reference, begun = SYNTHESIS_PATTERN.fullmatch(prompt).groups()  # type: ignore[union-attr]
    fixed = arithmetic.write_correction(arithmetic.parse_question(question), wrong, request.seed)
    return spoil_correction(None if fixed is None else fixed.text, reference, begun, draw)


def countdown_script(prompt: str, request: Request) -> str:
    """Answer a prompt of Countdown as a policy would: an attempt that reaches the target or not, or a correction."""
    draw = random.Random(request.seed)
    if "Wrong answer:" not in prompt:
        problem = countdown.parse_question(prompt)
        solutions = countdown.list_solutions(problem)
        if solutions and draw.random() < 0.5:
            return draw.choice(solutions).write(problem.target)
        numbers = draw.sample(problem.numbers, len(problem.numbers))
        return countdown.Attempt(numbers[0], tuple((draw.choice("+*"), n) for n in numbers[1:])).write(problem.target)
    question, wrong, reference, begun = SYNTHESIS_PATTERN.fullmatch(prompt).groups()  # type: ignore[union-attr]
    fixed = countdown.write_correction(countdown.parse_question(question), wrong, reference)
    return spoil_correction(fixed, reference, begun, draw)


def spoil_correction(fixed: str | None, reference: str, begun: str, draw: random.Random) -> str:
    """Return what follows `begun` in a perfect answer; now and then with a wrong box, or a malformed answer."""
    kind = draw.choice(("good", "good", "good", "wrong", "malformed"))
    if fixed is None or kind == "malformed":
        return f"<analysis>It is wrong.</analysis>\n<reconstruction>{reference}"
    answer = fixed.removeprefix(begun) if fixed.startswith(begun) else "</reconstruction>"
    return answer.replace("\\boxed{", "\\boxed{1") if kind == "wrong" else answer
