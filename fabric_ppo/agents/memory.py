"""What a recurrent agent remembers: an LSTM or GRU between the encoder and the heads of policy and value."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Recurrent = Literal["none", "lstm", "gru"]


class Memory(nn.Module):
    """One recurrent layer, a step at a time or along sequences, with its state as one vector a row.

    A state is `[B, state_size]`: the layer's output, and with an LSTM (Hochreiter & Schmidhuber, 1997) its cell after
    it; a GRU (arXiv 1406.1078) has the output only. Zeros are the state in which an episode begins.

    Attributes:
        num_features: of the output.
        state_size: of a state.
    """

    def __init__(self, kind: Recurrent, inputs: int, size: int) -> None:
        """Build the layer with PyTorch's own initialisation, from the global generator."""
        super().__init__()
        self.cell = (nn.LSTMCell if kind == "lstm" else nn.GRUCell)(inputs, size)
        self.num_features = size
        self.state_size = 2 * size if kind == "lstm" else size

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        """The state after a step with `inputs [B, n]` in `state [B, state_size]`."""
        if isinstance(self.cell, nn.LSTMCell):
            return torch.cat(self.cell(inputs, state.chunk(2, dim=1)), dim=1)
        after: Tensor = self.cell(inputs, state)
        return after

    def output(self, state: Tensor) -> Tensor:
        """What policy and value see of `state`, `[B, num_features]`."""
        return state[:, : self.num_features]

    def along(self, inputs: Tensor, sequences: Tensor) -> Tensor:
        """Outputs along sequences, through which gradients flow, `[b, num_features]`.

        Args:
            inputs: `[b, n]`, one sequence of L steps after the other.
            sequences: `[b / L, state_size + L]`: the state before a sequence's first step, and for each step 1 where
                an episode begins within the sequence, so that the state is forgotten before it, else 0.
        """
        state, begins = sequences[:, : self.state_size], sequences[:, self.state_size :]
        steps = inputs.view(len(sequences), begins.shape[1], inputs.shape[1]).unbind(1)
        outputs = []
        for step, begin in zip(steps, begins.split(1, dim=1), strict=True):
            state = self(step, state * (1 - begin))
            outputs.append(self.output(state))
        return torch.stack(outputs, dim=1).flatten(0, 1)


def orthogonal_memory(memory: Memory) -> None:
    """Orthogonal weights for each of the layer's gates, zero biases."""
    for name, parameter in memory.cell.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
        else:
            for gate in parameter.data.split(memory.num_features):
                nn.init.orthogonal_(gate)
