"""Coefficients of the loss as tensors; they stand for numbers in code that is compiled or recorded once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fabric_ppo.ppo.loss import Coefficients


class CoefficientTensors:
    """The coefficients that a schedule may change, in memory that stays."""

    def __init__(self, weights: Tensor) -> None:
        """Make them on the device of the weights that train."""
        # it is compared with vectors, which round it as they round a number
        self._clip_coef = torch.zeros((), dtype=torch.float64, device=weights.device)
        # it is a factor of scalars, which would take its precision
        self._ent_coef = torch.zeros((), dtype=weights.dtype, device=weights.device)
        self._written: Coefficients | None = None

    def put(self, coefs: Coefficients) -> Coefficients:
        """Write coefficients, if they are others than before; return them with tensors in place of the numbers."""
        if coefs != self._written:
            self._written = coefs
            self._clip_coef.fill_(coefs.clip_coef)
            self._ent_coef.fill_(coefs.ent_coef)
        tensors: Any = self._clip_coef, self._ent_coef
        return coefs._replace(clip_coef=tensors[0], ent_coef=tensors[1])


def rest_of(coefs: Coefficients) -> Coefficients:
    """Return coefficients without those two: what code that is compiled or recorded once holds as it was."""
    return coefs._replace(clip_coef=0.0, ent_coef=0.0)
