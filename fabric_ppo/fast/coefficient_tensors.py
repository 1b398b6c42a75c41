"""Coefficients of the loss as tensors; they stand for numbers in code that is compiled or recorded once."""

from __future__ import annotations

from typing import Any

import torch

from fabric_ppo.ppo.loss import Coefficients


class CoefficientTensors:
    """The coefficients that a schedule may change, in memory that stays: a vector of two numbers.

    They have double precision. So an operation with a float32 tensor rounds them as it rounds numbers.
    """

    def __init__(self, device: torch.device) -> None:
        self._vector = torch.zeros(2, dtype=torch.float64, device=device)
        self._written: Coefficients | None = None

    def put(self, coefs: Coefficients) -> Coefficients:
        """Write coefficients, if they are others than before; return them with tensors in place of the numbers."""
        if coefs != self._written:
            self._written = coefs
            for place, value in zip(self._vector, (coefs.clip_coef, coefs.ent_coef), strict=True):
                place.fill_(value)
        both: Any = self._vector
        return coefs._replace(clip_coef=both[0], ent_coef=both[1])


def rest_of(coefs: Coefficients) -> Coefficients:
    """Return coefficients without those two: what code that is compiled or recorded once holds as it was."""
    return coefs._replace(clip_coef=0.0, ent_coef=0.0)
