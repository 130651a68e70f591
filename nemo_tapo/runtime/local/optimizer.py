"""AdamW (and Muon) on Megatron's gradients: norm over all ranks, clipping, update, and state for checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.runtime.local.lr_schedule import compute_learning_rate
from nemo_tapo.runtime.local.model import get_gradient
from nemo_tapo.runtime.local.weights import is_shared_over_tp
from nemo_tapo.utils.errors import RuntimeFailure

MOMENTS = ("exp_avg", "exp_avg_sq")
MUON_MOMENT = "momentum_buffer"


@dataclass(frozen=True)
class NormOwnership:
    """Decides which of its parameters a rank counts in the gradient norm, so that each parameter counts once.

    >>> NormOwnership(tp_rank=1, dp_rank=0, copies_embedding=False).counts("decoder.final_layernorm.weight")
    False
    """

    tp_rank: int
    dp_rank: int
    copies_embedding: bool  # this is a last stage that holds a second copy of the tied embedding

    def counts(self, name: str) -> bool:
        """Return whether this rank counts the parameter with this Megatron name."""
        if self.dp_rank or (self.tp_rank and is_shared_over_tp(name)):
            return False
        return not (self.copies_embedding and name == "output_layer.weight")


class Optimizer:
    """The optimizer of one rank's parameters: torch's AdamW, and Muon if configured. Megatron's own needs CUDA.

    `parameters` maps Megatron names to parameters. The gradient is read from each parameter's `main_grad`.
    """

    def __init__(
        self, parameters: dict[str, Parameter], ownership: NormOwnership, settings: OptimizerConfig, total_steps: int
    ) -> None:
        self.parameters, self.settings, self.total_steps = parameters, settings, total_steps
        self.steps_done = 0
        self._norm_parameters = [p for name, p in parameters.items() if ownership.counts(name)]
        matrices = {n for n, p in parameters.items() if p.ndim == 2 and n.startswith("decoder.")}
        if settings.name == "adamw":
            matrices = set()
        others = [p for n, p in parameters.items() if n not in matrices]
        # as in Megatron, vectors (the norms) have no weight decay
        groups = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True
        )
        # (factor on the learning rate, optimizer)
        self._optimizers: list[tuple[float, torch.optim.Optimizer]] = [(1.0, adamw)]
        if matrices:
            muon = torch.optim.Muon(
                [parameters[n] for n in sorted(matrices)], lr=settings.muon_lr, weight_decay=settings.weight_decay
            )
            self._optimizers.append((settings.muon_lr / settings.lr, muon))

    def step(self, local_loss: float) -> tuple[float, float, float]:
        """Make one update from the reduced gradients.

        Return (loss over all ranks, gradient norm before clipping, learning rate). `local_loss` is this rank's share of
        the loss. Collective: all ranks must call it. If the loss or the norm is not finite, every rank raises
        RuntimeFailure and nothing has changed.
        """
        loss, norm = self._reduce(local_loss)
        number = self.steps_done + 1
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise RuntimeFailure(
                f"update {number}: the loss is {loss:g} and the gradient norm {norm:g}; the weights were left as "
                "they are. Look at the batch's log-probabilities, or lower optimizer.lr."
            )
        rate = compute_learning_rate(self.settings, number, self.total_steps)
        gradients = [get_gradient(p) for p in self.parameters.values()]
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

    def _reduce(self, local_loss: float) -> tuple[float, float]:
        norms = torch._foreach_norm([get_gradient(p) for p in self._norm_parameters]) if self._norm_parameters else ()
        square = sum((float(norm) ** 2 for norm in norms), 0.0)
        both = torch.tensor([local_loss, square], dtype=torch.float64)
        if dist.get_world_size() > 1:
            dist.all_reduce(both)
        return float(both[0]), float(both[1].sqrt())

    def moments(self, which: str) -> dict[str, Tensor]:
        """Return the moment `which`, "exp_avg" or "exp_avg_sq", by Megatron name; zeros before the first step.

        Muon has only one moment. It is returned as exp_avg; its exp_avg_sq is zero.
        """
        states = {p: state for _, optimizer in self._optimizers for p, state in optimizer.state.items()}
        own_name = MUON_MOMENT if which == "exp_avg" else which
        state_by_name = {n: states.get(p, {}) for n, p in self.parameters.items()}
        return {
            n: state.get(which, state.get(own_name, torch.zeros_like(self.parameters[n].data)))
            for n, state in state_by_name.items()
        }

    def restore(self, steps_done: int, moments: dict[str, dict[str, Tensor]]) -> None:
        """Set the state after `steps_done` steps; `moments` is {"exp_avg": {name: tensor}, "exp_avg_sq": ...}."""
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
