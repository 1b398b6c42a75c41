"""Memory of a recurrent agent: an LSTM or GRU between the encoder and policy and value."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Recurrent = Literal["none", "lstm", "gru"]


class Memory(nn.Module):
    """A recurrent layer, called step by step or along sequences.

    Its state is one vector a row, `[B, state_size]`: the layer's output, followed by the cell of an
    LSTM (Hochreiter & Schmidhuber, 1997); a GRU (arXiv 1406.1078) has the output only. An episode
    begins with a state of zeros.

    Attributes:
        num_features: width of the output.
        state_size: width of a state.
    """

    def __init__(self, kind: Recurrent, inputs: int, size: int) -> None:
        """Build the layer with PyTorch's own initialisation, from the global generator."""
        super().__init__()
        self.cell = (nn.LSTMCell if kind == "lstm" else nn.GRUCell)(inputs, size)
        self.num_features = size
        self.state_size = 2 * size if kind == "lstm" else size

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        """Return the state after a step with `inputs [B, n]` from `state [B, state_size]`."""
        if isinstance(self.cell, nn.LSTMCell):
            return torch.cat(self.cell(inputs, state.chunk(2, dim=1)), dim=1)
        after: Tensor = self.cell(inputs, state)
        return after

    def output(self, state: Tensor) -> Tensor:
        """Return the layer's output in `state`, `[B, num_features]`, for policy and value."""
        return state[:, : self.num_features]

    def along(self, inputs: Tensor, sequences: Tensor) -> Tensor:
        """Return the outputs along sequences, `[b, num_features]`, with gradients through time.

        Args:
            inputs: `[b, n]`, one sequence of L steps after the other.
            sequences: `[b / L, state_size + L]`: the state before each sequence's first step, and
                for each step 1 where an episode begins with it, so that the state is reset, else 0.
        """
        state, begins = sequences[:, : self.state_size], sequences[:, self.state_size :]
        steps = inputs.view(len(sequences), begins.shape[1], inputs.shape[1]).unbind(1)
        outputs = []
        for step, begin in zip(steps, begins.split(1, dim=1), strict=True):
            # backpropagation through time ends at the sequence's first step and between episodes
            state = self(step, state * (1 - begin))
            outputs.append(self.output(state))
        return torch.stack(outputs, dim=1).flatten(0, 1)


def orthogonal_memory(memory: Memory) -> None:
    """Initialise each of the layer's gates with orthogonal weights and zero biases."""
    for name, parameter in memory.cell.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
        else:
            # PyTorch stacks the gates in one matrix, which as a whole would not be orthogonal
            for gate in parameter.data.split(memory.num_features):
                nn.init.orthogonal_(gate)
