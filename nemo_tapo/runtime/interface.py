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

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from nemo_tapo.checkpoint import Store
from nemo_tapo.config import RunConfig
from nemo_tapo.errors import RuntimeFailure as RuntimeFailure
from nemo_tapo.objective import Objective
from nemo_tapo.sections import OptimizerConfig
from nemo_tapo.tasks.interface import Task
from nemo_tapo.types import Batch, Completion, Request, UpdateResult

if TYPE_CHECKING:
    from nemo_tapo.stop import Stop
    from nemo_tapo.train import Recorder


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
