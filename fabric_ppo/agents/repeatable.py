"""A check that networks give the same outputs for an observation in every call.

The ratio of probabilities measures the policy's change only if the same observation has the same
features in the rollout and in every minibatch.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fabric_ppo.process.errors import ConfigError

_INSTEAD = "without is expected, or LayerNorm or GroupNorm"


def require_repeatable(network: nn.Module, compute: Callable[[Any], Tensor], whose: str) -> None:
    """Check that a network gives the same outputs for an observation in each call and each mode.

    Args:
        network: the network; only copies of it are called and changed.
        compute: function from such a network to its outputs for some observations.
        whose: beginning of the error's text, such as `--encoder mine:Net: its`.

    Raises:
        ConfigError: one of its layers, or its output, depends on chance, on other observations, on
            earlier calls or on the mode.
    """
    for each in network.modules():
        if _depends(each):
            depends = "makes of an observation what depends on others, on chance, or on earlier calls"
            raise ConfigError(f"{whose} {type(each).__name__} {depends}; {_INSTEAD}")
    with contextlib.suppress(TypeError, RuntimeError):  # a network that cannot be copied
        twin = copy.deepcopy(network)
        with torch.random.fork_rng(devices=[]):
            acting = [_outputs(twin.train(mode), compute, False) for mode in (True, True, False)]
            # the update computes gradients, which a network may ask for as it asks for the mode
            updating = [_outputs(twin.train(), compute, True) for _ in range(2)]
        is_same = all(torch.equal(each[0], other) for each in (acting, updating) for other in each)
        # with gradients PyTorch may compute in another way, and round otherwise
        if not (is_same and torch.allclose(acting[0], updating[0], rtol=1e-3, atol=1e-5)):
            raise ConfigError(
                f"{whose} outputs for the same observation differ from call to call, in training from a test, or with "
                f"gradients from without, as with dropout; {_INSTEAD}"
            )


def _outputs(network: nn.Module, compute: Callable[[Any], Tensor], has_grad: bool) -> Tensor:
    with torch.set_grad_enabled(has_grad):
        return compute(network).detach().nan_to_num()


def _depends(layer: nn.Module) -> bool:
    """Return True for a layer whose outputs depend on chance, other observations, earlier calls or the mode."""
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return layer.p > 0
    if isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)):
        return layer.dropout > 0
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm):
        return layer.track_running_stats
    always = (nn.modules.batchnorm._BatchNorm, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
    return isinstance(layer, always) or type(layer).__name__ == "_SpectralNorm"
