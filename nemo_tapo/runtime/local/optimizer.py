"""AdamW on Megatron's gradients: the norm over all ranks, clipping, the step, and its state for checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.runtime.local.lr_schedule import learning_rate
from nemo_tapo.runtime.local.model import gradient_of
from nemo_tapo.runtime.local.weights import is_shared_over_tp
from nemo_tapo.utils.errors import RuntimeFailure

MOMENTS = ("exp_avg", "exp_avg_sq")
MUON_MOMENT = "momentum_buffer"


@dataclass(frozen=True)
class Ownership:
    """Which of its parameters a rank counts in the norm, so that a copy on several ranks counts once."""

    tp_rank: int
    dp_rank: int
    copies_embedding: bool  # a last stage that holds the tied embedding a second time

    def counts(self, name: str) -> bool:
        if self.dp_rank or (self.tp_rank and is_shared_over_tp(name)):
            return False
        return not (self.copies_embedding and name == "output_layer.weight")


class Updater:
    """The optimizer of one rank's parameters. Megatron's own optimizer wants CUDA, hence torch's AdamW.

    `parameters` are Megatron names to parameters with a `main_grad`, which is what is read.
    """

    def __init__(
        self, parameters: dict[str, Parameter], ownership: Ownership, settings: OptimizerConfig, total_steps: int
    ) -> None:
        self.parameters, self.settings, self.total_steps = parameters, settings, total_steps
        self.steps_done = 0
        self._counted = [p for name, p in parameters.items() if ownership.counts(name)]
        matrices = {n for n, p in parameters.items() if p.ndim == 2 and n.startswith("decoder.")}
        if settings.name == "adamw":
            matrices = set()
        others = [p for n, p in parameters.items() if n not in matrices]
        # as in Megatron: no decay on vectors (the norms)
        groups = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True
        )
        self._optimizers: list[tuple[float, torch.optim.Optimizer]] = [(1.0, adamw)]  # (lr relative to lr, optimizer)
        if matrices:
            muon = torch.optim.Muon(
                [parameters[n] for n in sorted(matrices)], lr=settings.muon_lr, weight_decay=settings.weight_decay
            )
            self._optimizers.append((settings.muon_lr / settings.lr, muon))

    def step(self, own_loss: float) -> tuple[float, float, float]:
        """One update from the reduced gradients; returns (loss of all ranks, gradient norm before clipping, lr).

        `own_loss` is this rank's share of the loss. Collective. Raises RuntimeFailure, on every rank alike and
        with nothing changed, if the loss or the norm is not finite.
        """
        loss, norm = self._reduce(own_loss)
        number = self.steps_done + 1
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise RuntimeFailure(
                f"update {number}: the loss is {loss:g} and the gradient norm {norm:g}; the weights were left as "
                "they are. Look at the batch's log-probabilities, or lower optimizer.lr."
            )
        rate = learning_rate(self.settings, number, self.total_steps)
        gradients = [gradient_of(p) for p in self.parameters.values()]
        if norm > self.settings.clip_norm:
            torch._foreach_mul_(gradients, self.settings.clip_norm / (norm + 1e-6))
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        for ratio, optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * ratio
            optimizer.step()
        for parameter in self.parameters.values():
            parameter.grad = None
        self.steps_done = number
        return loss, norm, rate

    def _reduce(self, own_loss: float) -> tuple[float, float]:
        norms = torch._foreach_norm([gradient_of(p) for p in self._counted]) if self._counted else ()
        square = sum((float(norm) ** 2 for norm in norms), 0.0)
        both = torch.tensor([own_loss, square], dtype=torch.float64)
        if dist.get_world_size() > 1:
            dist.all_reduce(both)
        return float(both[0]), float(both[1].sqrt())

    def moments(self, which: str) -> dict[str, Tensor]:
        """`exp_avg` or `exp_avg_sq` by Megatron name; zeros before the first step.

        Muon has one moment, which counts as exp_avg; its exp_avg_sq stays zero.
        """
        states = {p: state for _, optimizer in self._optimizers for p, state in optimizer.state.items()}
        own = MUON_MOMENT if which == "exp_avg" else which
        found = {n: states.get(p, {}) for n, p in self.parameters.items()}
        return {
            n: state.get(which, state.get(own, torch.zeros_like(self.parameters[n].data))) for n, state in found.items()
        }

    def restore(self, steps_done: int, moments: dict[str, dict[str, Tensor]]) -> None:
        """The state after `steps_done` steps; `moments` is {"exp_avg": {name: tensor}, "exp_avg_sq": ...}."""
        self.steps_done = steps_done
        names = {parameter: name for name, parameter in self.parameters.items()}
        for _, optimizer in self._optimizers:
            optimizer.state.clear()
            for parameter in [p for group in optimizer.param_groups for p in group["params"]] if steps_done else ():
                moment = {which: moments[which][names[parameter]].clone() for which in MOMENTS}
                state: dict[str, Any] = {"step": torch.tensor(float(steps_done)), **moment}
                if isinstance(optimizer, torch.optim.Muon):
                    state = {MUON_MOMENT: moment["exp_avg"]}
                optimizer.state[parameter] = state
