"""A check that networks make the same numbers of an observation whenever they see it.

The ratio of probabilities is that of the policy's change only if the same observation has the same
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
    """Check that a network makes the same of an observation in each call, in training as in a test.

    Args:
        network: the network; it is neither called nor changed, but copies of it.
        compute: function from such a network to its outputs for some observations.
        whose: beginning of the error's text, such as `--encoder mine:Net: its`.

    Raises:
        ConfigError: it has a layer that depends on chance, on other observations or on the mode, or
            its outputs do.
    """
    for each in network.modules():
        if _depends(each):
            raise ConfigError(
                f"{whose} {type(each).__name__} makes of an observation what depends on others or on chance; {_INSTEAD}"
            )
    with contextlib.suppress(TypeError, RuntimeError):  # a network that cannot be copied
        twin = copy.deepcopy(network)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            first, *others = (compute(twin.train(mode)).nan_to_num() for mode in (True, True, False))
        if not all(torch.equal(first, other) for other in others):
            raise ConfigError(
                f"{whose} outputs for the same observation differ from call to call, or in training from a test, "
                f"as with dropout; {_INSTEAD}"
            )


def _depends(layer: nn.Module) -> bool:
    """Return True for a layer whose outputs depend on chance, on other observations or on the mode."""
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return layer.p > 0
    if isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)):
        return layer.dropout > 0
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm):
        return layer.track_running_stats
    always = (nn.modules.batchnorm._BatchNorm, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
    return isinstance(layer, always) or type(layer).__name__ == "_SpectralNorm"
