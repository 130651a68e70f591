"""Implement SFT on micro-reflective trajectories (Table 3 of arXiv 2606.18844): likelihood on TAPO's constructions."""

from __future__ import annotations

from nemo_tapo.algorithms.tapo import TAPO
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.losses.likelihood import LikelihoodLoss
from nemo_tapo.types import Experience, Row


class ReflectiveSFT(TAPO):
    """The rollouts and constructions of TAPO at every step; of them only the right constructions are trained on.

    "Uniform maximum likelihood to all tokens" (section 4.4): no advantages, no OOD token suppression, and no rows of
    the rollouts themselves. As in TAPO's terms a row is the mean over its tokens, which `loss.token_mean` and
    `tapo.prefix_loss` change. A step without a right construction is an update with gradient 0.
    """

    def __init__(self, cfg: RunConfig, tools: Tools) -> None:
        super().__init__(cfg, tools)
        self.loss = LikelihoodLoss()

    def make_rows(self, experience: Experience) -> list[Row]:
        """Return one row a right construction, in query order."""
        return [self.make_constructed_row(c, advantage=1.0) for c in experience.constructions if c.correct]
