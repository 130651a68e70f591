"""What the loop needs of a place to run: a generator, an actor, a tokenizer. Everything here is asynchronous.

```
            Request ->  Generator  -> Completion         (vLLM: sampling, continuous batching)
   train.py                ^ weights
            Batch   ->  Actor      -> UpdateResult       (Megatron: forward, loss, backward, update)
```
A runtime is chosen by `runtime:` in the config: `local` (Ray, Megatron-core over gloo, vLLM on CPU),
`nemo_rl` (NeMo-RL's policy and engines on a cluster), `scripted` (tests: canned completions, a two-layer torch actor).
None of the callers knows which it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from nemo_tapo.checkpoint import Checkpoint, Warn, Write
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.losses.base import Objective
from nemo_tapo.types import Batch, Completion, Request, UpdateResult

if TYPE_CHECKING:
    from nemo_tapo.utils.signals import Stop


from nemo_tapo.types import Experience, Grade, Provenance, Query, Row
from nemo_tapo.utils.signals import Stop


class Store(Protocol):
    """Where the loop's state is kept between steps and between processes."""

    def latest(self, warn: Warn) -> Checkpoint | None:
        """The newest good checkpoint; see the function `latest`."""

    async def save(self, state: dict[str, Any], write: Write, metrics: Mapping[str, float]) -> None:
        """A checkpoint of `state["step"]`; the actor writes its part by `write(path)`. See the function `save`.

        It may appear a little later, when the actor writes in the background; `settle` waits for it. `metrics` are
        the step's, for a store that keeps the best.
        """

    async def settle(self) -> None:
        """Returns when every checkpoint that was saved stands on the disk under its final name."""


class Tokenizer(Protocol):
    """Text to ids and back, as the policy's model directory defines it."""

    @property
    def eos_id(self) -> int:
        """Ends every response."""

    @property
    def pad_id(self) -> int:
        """Fills rows up."""

    def chat(self, user_text: str) -> tuple[int, ...]:
        """Ids of one user turn and the opening of the assistant's turn, chat template applied."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of plain text, nothing added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out; no clean-up of spaces."""


class Generator(Protocol):
    """The inference engine."""

    @property
    def max_model_len(self) -> int:
        """Prompt + completion, tokens."""

    async def generate(self, request: Request) -> Completion:
        """Sample one completion. Many calls run at once; each returns as soon as its own is finished."""

    async def update_weights(self, weights: Any) -> None:
        """Take the actor's weights (`Actor.weights()`); no request may be in flight. Empties the prefix cache."""


class Actor(Protocol):
    """The policy under training, with its optimizer and its frozen reference."""

    async def configure(self, optimizer: OptimizerConfig, total_steps: int) -> None:
        """A new optimizer and schedule on the present weights; step count 0."""

    async def load_model(self, path: Path) -> None:
        """Weights from a Hugging Face directory of the same architecture."""

    async def set_reference(self) -> None:
        """The present weights become the frozen reference policy."""

    async def set_teacher(self, path: Path) -> None:
        """Frozen weights of a Hugging Face directory of the same architecture teach (OPSD); else the reference does."""

    async def train(self, batch: Batch, objective: Objective) -> UpdateResult:
        """Forward, loss, backward, one optimizer step."""

    async def logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """[B, S] nats, log-probability of every token under the present weights at the rollouts' temperature.

        0 outside rows and at column 0.
        """

    async def reference_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """The same under the reference policy."""

    async def teacher_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """The same under the frozen teacher."""

    async def weights(self) -> Any:
        """A handle on the full weights, Hugging Face names, for `Generator.update_weights`."""

    async def save(self, path: Path) -> None:
        """Weights (`model.safetensors`), optimizer moments and schedule step into the existing folder `path`."""

    async def load(self, path: Path) -> None:
        """The inverse of `save`; the layout (TP, PP, DP) may differ from the one that saved."""

    async def export(self, path: Path) -> None:
        """A Hugging Face model directory: config, weights, tokenizer."""


class Runtime(Protocol):
    """One policy with its engine. `close` ends every process that it started."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def actor(self) -> Actor: ...

    @property
    def generator(self) -> Generator: ...

    def checkpoints(self, folder: Path, keep: int) -> Store:
        """Where the loop's checkpoints go."""

    def recorder(self, own: Recorder, stop: Stop) -> Recorder:
        """`own`, and what the runtime records or watches beside it."""

    def task(self, cfg: RunConfig) -> Task:
        """Queries and verifier of the run; the caller closes it."""

    def close(self) -> None: ...


class Task(Protocol):
    """Where queries come from and how responses are graded."""

    synthesis_prompt: str  # template with {question}, {wrong}, {reference}
    full_prompt: str  # the same for a whole new solution (tapo.full_reconstruction, Table 3)

    def train_queries(self) -> Sequence[Query]:
        """The training set, in a fixed order; `prompt_ids` still empty."""

    def benchmarks(self) -> Mapping[str, Sequence[Query]]:
        """The evaluation sets by name, each in a fixed order; uids are unique within a set, prompts still empty."""

    def provenance(self, name: str) -> Provenance:
        """Of a benchmark by its name, or of "train": where it comes from and which rows are not among its queries."""

    def row(self, query: Query) -> Mapping[str, Any]:
        """A training query's row as its publisher wrote it; a filter keeps what else stands there."""

    async def grade(self, query: Query, response: str) -> Grade:
        """Grades one response. Asynchronous: a verifier may work in other processes while the engine samples."""

    def close(self) -> None:
        """Ends what the task has started (processes of a verifier); may be called twice."""


class Algorithm(Protocol):
    """One step is `experience` then `rows`; the actor differentiates `objective` over the rows."""

    objective: Objective

    async def experience(self, step: int, queries: Sequence[Query]) -> Experience:
        """Everything that has to be sampled or graded for one step, in query order."""

    def rows(self, experience: Experience) -> list[Row]:
        """The training rows, advantages included. Pure."""

    def metrics(self, experience: Experience, rows: Sequence[Row]) -> dict[str, float]:
        """The step's counters. Pure."""


class Recorder(Protocol):
    """Where the loop's outcome is written, and how a person follows it."""

    def phase(self, text: str) -> None: ...

    def step(
        self,
        step: int,
        metrics: dict[str, float],
        experience: Experience,
        rows: Sequence[Row],
        results: Sequence[UpdateResult],
    ) -> None: ...

    def resume(self, step: int) -> None:
        """Forget records of `step` and later: they will be made again."""

    def warn(self, text: str) -> None: ...
