"""Declare every Protocol of the package: what the loop needs of an algorithm, a task and a place to run.

```
            Request ->  Generator  -> Completion         (vLLM: sampling, continuous batching)
   train.py                ^ weights
            Batch   ->  Actor      -> UpdateResult       (Megatron: forward, loss, backward, update)
```
An Algorithm decides what is sampled and which rows are trained on; a Task has the queries and grades responses; a
Runtime has tokenizer, generator and actor: `local` (Ray, Megatron-core over gloo, vLLM on CPU), `nemo_rl` (NeMo-RL's
policy and engines on a cluster) or `scripted` (tests: canned completions, a two-layer torch actor). No caller knows
which it has. The Protocol of a loss is in losses/base.py, beside what workers need of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from nemo_tapo.checkpoint import Checkpoint, Warn, Write
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.losses.base import Loss
from nemo_tapo.types import (
    Batch,
    Completion,
    Experience,
    Grade,
    Kind,
    Provenance,
    Query,
    Request,
    Row,
    StepRecord,
    UpdateResult,
)
from nemo_tapo.utils.signals import Stop


class Algorithm(Protocol):
    """What is sampled in a step, and what is learned from it: `collect`, `make_rows`, then `loss` over the rows."""

    @property
    def samples(self) -> bool:
        """True if the engine samples; False for supervised training, which leaves the engine alone."""

    @property
    def loss(self) -> Loss:
        """What the actor differentiates; says in `needs` what it has to be given."""

    @property
    def term_weights(self) -> Mapping[Kind, float]:
        """The weight of each kind of rows in the loss (lambda of Eq. 6)."""

    async def collect(self, step: int, queries: Sequence[Query]) -> Experience:
        """Sample and grade everything that a step needs, in query order. Called once a step, in order.

        With `rollout.lag: 1` it runs while the step before is trained on, beside `make_rows` and `compute_metrics`.
        """

    def make_rows(self, experience: Experience) -> list[Row]:
        """Return the training rows, advantages included. Pure."""

    def compute_metrics(self, experience: Experience, rows: Sequence[Row]) -> dict[str, float]:
        """Return the step's counters, by key of metrics.py. Pure."""

    def state(self) -> dict[str, Any]:
        """Return what the next step needs of the steps before, as JSON; it becomes part of the checkpoint."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""


class Validation(Protocol):
    """The policy measured on held-out problems between steps. `step` counts the steps done."""

    @property
    def best_step(self) -> int:
        """The step with the best measurement so far; 0 before the first."""

    def due(self, step: int) -> bool:
        """Return True if the policy is to be measured after `step` steps."""

    async def measure(self, step: int) -> dict[str, float]:
        """Sample and grade; return the numbers by key of metrics.py. The engine has the policy's weights."""

    def state(self) -> dict[str, Any]:
        """Return what the next measurement needs of those before, as JSON; it becomes part of the checkpoint."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned; {} of a run that was not measured."""


class Task(Protocol):
    """Where queries come from and how responses are graded."""

    synthesis_prompt: str  # template with {question}, {wrong}, {reference}
    full_prompt: str  # the same for a whole new solution (tapo.full_reconstruction, Table 3)
    quoting_prompt: str  # as synthesis_prompt, with an analysis that names the wrong step (tapo.prefix: prefilled)
    error_quote: str  # regular expression whose group is the wrong step that an analysis names

    def train_queries(self) -> Sequence[Query]:
        """Return the training set, in a fixed order; `prompt_ids` still empty."""

    def benchmarks(self) -> Mapping[str, Sequence[Query]]:
        """Return the evaluation sets by name, each in a fixed order; uids are unique in a set, prompts still empty."""

    def provenance(self, name: str) -> Provenance:
        """Say where a benchmark, or "train", comes from, and which of its rows are not among its queries."""

    def row(self, query: Query) -> Mapping[str, Any]:
        """Return a training query's row as its publisher wrote it; a filter keeps what else stands there."""

    def locate_error(self, query: Query, response: str) -> int | None:
        """Return where the first wrong step of a wrong response ends, in characters; None if the task cannot tell."""

    async def grade(self, query: Query, response: str) -> Grade:
        """Grade one response. Asynchronous: a verifier may work in other processes while the engine samples."""

    def close(self) -> None:
        """End what the task has started (processes of a verifier); may be called twice."""


@runtime_checkable
class Oracle(Protocol):
    """What a task has beside the methods of Task if it can write perfect corrections itself."""

    def write_correction(self, query: Query, wrong: str, reference: str, full: bool, seed: int) -> str | None:
        """Write the perfect answer to the synthesis prompt of a wrong response; None if no mistake is found.

        `full`: a whole new solution, nothing kept (Table 3). The seed chooses between wordings.
        """


class Tokenizer(Protocol):
    """Text to ids and back, as the policy's model directory defines it."""

    @property
    def eos_id(self) -> int:
        """The id that ends every response."""

    @property
    def pad_id(self) -> int:
        """The id that fills rows up."""

    def chat(self, user_text: str) -> tuple[int, ...]:
        """Return the ids of one user turn and the opening of the assistant's turn, chat template applied."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of plain text, nothing added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out; no clean-up of spaces."""


class Generator(Protocol):
    """The inference engine."""

    @property
    def max_model_len(self) -> int:
        """Longest prompt and completion together, tokens."""

    async def generate(self, request: Request) -> Completion:
        """Sample one completion. Many calls run at once; each returns as soon as its own is finished."""

    async def update_weights(self, weights: Any) -> None:
        """Take the actor's weights (`Actor.weights()`); no request may be in flight. Empties the prefix cache."""


class Actor(Protocol):
    """The policy under training, with its optimizer and its frozen reference."""

    async def configure(self, optimizer: OptimizerConfig, total_steps: int) -> None:
        """Make a new optimizer and schedule for the present weights; step count 0."""

    async def load_model(self, path: Path) -> None:
        """Load weights from a Hugging Face directory of the same architecture."""

    async def set_reference(self) -> None:
        """Freeze a copy of the present weights as the reference policy."""

    async def set_teacher(self, path: Path) -> None:
        """Load a frozen teacher from a Hugging Face directory of the same architecture; else the reference teaches."""

    async def train(self, batch: Batch, loss: Loss) -> UpdateResult:
        """Make one optimizer step: forward, loss, backward, update."""

    async def logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return the log-probability of every token under the present weights, [B, S] nats at the given temperature.

        0 outside rows and at column 0.
        """

    async def reference_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return the same under the reference policy."""

    async def teacher_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return the same under the frozen teacher."""

    async def weights(self) -> Any:
        """Return a handle on the full weights, Hugging Face names, for `Generator.update_weights`."""

    async def save(self, path: Path) -> None:
        """Write weights (`model.safetensors`), optimizer moments and schedule step into the existing folder `path`."""

    async def load(self, path: Path) -> None:
        """Restore what `save` wrote; the layout (TP, PP, DP) may differ from the one that saved."""

    async def export(self, path: Path) -> None:
        """Write a Hugging Face model directory: config, weights, tokenizer."""


class CheckpointStore(Protocol):
    """Where the loop's state is kept between steps and between processes."""

    def latest(self, warn: Warn) -> Checkpoint | None:
        """Return the newest good checkpoint; see `checkpoint.find_latest`."""

    async def save(self, state: dict[str, Any], write: Write, metrics: Mapping[str, float]) -> None:
        """Save a checkpoint of `state["step"]`; the actor writes its part by `write(path)`.

        It may appear a little later, when the actor writes in the background; `settle` waits for it. `metrics` are
        the step's, for a store that keeps the best.
        """

    async def settle(self) -> None:
        """Wait until every checkpoint that was saved is on the disk under its final name."""


class Recorder(Protocol):
    """Where the loop's outcome is written, and how a person follows it."""

    def phase(self, text: str) -> None:
        """Show what the step is doing: "sampling", "updating"."""

    def step(self, record: StepRecord) -> None:
        """Write what a finished step gave."""

    def resume(self, step: int, history: Sequence[str]) -> None:
        """Forget records of `step` and later: they will be made again. `history` has the numbers of those before."""

    def history(self) -> Sequence[str]:
        """Return the numbers of every step so far, a line each, for a checkpoint: it may outlive the run's files."""

    def warn(self, text: str) -> None:
        """Tell the user a sentence that stays on the screen."""


class Runtime(Protocol):
    """One policy with its engine. With `rollout.lag: 1` the two are at work at the same time."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The policy's tokenizer."""

    @property
    def actor(self) -> Actor:
        """The policy under training."""

    @property
    def generator(self) -> Generator:
        """The engine that samples from it."""

    def checkpoints(self, folder: Path, keep: int) -> CheckpointStore:
        """Return where the loop's checkpoints go; the newest `keep` stay."""

    def wrap_recorder(self, recorder: Recorder, stop: Stop) -> Recorder:
        """Return a recorder that does what `recorder` does, and what the runtime records or watches beside it."""

    def task(self, cfg: RunConfig) -> Task:
        """Return the queries and the verifier of the run; the caller closes it."""

    def processes(self) -> Mapping[str, Sequence[int]]:
        """Return the ids of the runtime's processes on this machine by part (engine, ranks), to be watched."""

    def close(self) -> None:
        """End every process that the runtime started."""
