"""Clipping of the gradient's norm in one function or few kernels; stands for `torch.nn.utils.clip_grad_norm_`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fabric_ppo.fast.kernels import kernels_for
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.profile import timed


class GradientClip:
    """`clip_grad_norm_` for the parameters of one module; it does not ask which optimizer follows.

    At PPO's usual sizes PyTorch's function takes four times as long, nearly all of it for
    bookkeeping: here that is done once. Nothing waits for the device.
    """

    def __init__(self, module: nn.Module, max_grad_norm: float) -> None:
        """Clip the gradient of a module.

        Args:
            module: all of its parameters have a gradient when it is clipped.
            max_grad_norm: largest norm of the gradient; a longer one is scaled down to it.
        """
        self._params, self._max_grad_norm = list(module.parameters()), max_grad_norm
        self._constants: list[Tensor] = []

    @timed("optimizer")
    def __call__(self) -> Tensor:
        """Clip all gradients together, in place; return the norm from before, a scalar.

        Raises:
            ConfigError: a parameter has no gradient.
        """
        grads: list[Tensor] = [each.grad for each in self._params if each.grad is not None]
        if len(grads) < len(self._params):
            raise ConfigError(
                "backward gave the agent's weights no gradient: a loss that is computed from what the agent "
                "returned, without detach() or item(), is expected"
            )
        library = kernels_for(grads) if len(grads) == 1 else None
        if library is None:
            return self._clip(grads)
        (grad,) = grads
        return torch.full((), library.clip(grad.data_ptr(), grad.numel(), self._max_grad_norm), dtype=grad.dtype)

    @torch.no_grad()
    def _clip(self, grads: list[Tensor]) -> Tensor:
        if not self._constants:  # not in __init__: a module may be moved to its device after it
            like, numbers = self._params[0], (self._max_grad_norm, 1e-6, 1.0)
            # filled there: what is copied to a GPU from ordinary memory is waited for
            self._constants = [torch.full((), each, dtype=like.dtype, device=like.device) for each in numbers]
        norm = _norm(grads)
        # the factor of clip_grad_norm_, min(max_norm / (norm + 1e-6), 1), from tensors: each Python
        # number would be converted to one in every step
        most, tiny, one = self._constants
        scale = torch.minimum(most / (norm + tiny), one)
        for grad in grads:
            grad.mul_(scale)
        return norm


def _norm(grads: list[Tensor]) -> Tensor:
    """Compute the Euclidean norm of all gradients together, a scalar."""
    # as clip_grad_norm_ does: the norm of the norms
    norms: list[Tensor] = [torch.linalg.vector_norm(each) for each in grads]
    return norms[0] if len(norms) == 1 else _norm([torch.stack(norms)])
