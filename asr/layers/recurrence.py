"""The weights of a recurrent cell, and the cell over a piece of every stream (asr_kernels.recurrence).

Every head sees its own units of the frame before and no others (Beck et al. 2024, "xLSTM"; one head is the
usual dense recurrence), which divides the recurrent weights by the number of heads.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from asr.state import wide
from asr_kernels import Cell, CellState, recurrence, recurrent_layer


class CellOutput(NamedTuple):
    """What a cell gives."""

    h: Tensor
    """(B, T, heads * width)."""
    state: CellState


class RecurrentCell(nn.Module):
    """Preactivations (B, T, heads * gates * width) of the input -> (B, T, heads * width)."""

    def __init__(self, cell: Cell, heads: int, width: int) -> None:
        super().__init__()
        self.cell, self.heads, self.width = cell, heads, width
        self.preactivations = heads * len(cell.gates) * width
        self.shapes = cell.parameter_shapes(heads, width)
        if cell.kind != "gru":
            # That of the input does for both, where the recurrent one is not multiplied by a gate.
            del self.shapes["bias"]
        for name, shape in self.shapes.items():
            # Biases and peepholes are vectors: the optimizer decays what has more dimensions.
            start = torch.empty(shape if "weight" in name else math.prod(shape))
            self.register_parameter(name, nn.Parameter(start.uniform_(-(width**-0.5), width**-0.5)))

    def forward(self, x: Tensor, lengths: Tensor | None, state: CellState) -> CellOutput:
        """The next piece of every stream; see asr_kernels.recurrence."""
        projected = x.view(*x.shape[:2], self.heads, len(self.cell.gates), self.width)
        found = recurrence(self.cell, projected, state=state, lengths=lengths, **self.weights())
        return CellOutput(found.y.flatten(2), found.state)

    def behind(
        self, projection: nn.Linear, x: Tensor, lengths: Tensor | None, state: CellState
    ) -> CellOutput:
        """The same of preactivations projection(x), which together may be faster."""
        layer = projection.weight, projection.bias
        found = recurrent_layer(self.cell, x, *layer, state=state, lengths=lengths, **self.weights())
        return CellOutput(found.y.flatten(2), found.state)

    def weights(self) -> dict[str, Any]:
        """As asr_kernels.recurrence takes them."""
        return {name: self.get_parameter(name).view(shape) for name, shape in self.shapes.items()}

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> CellState:
        """State of `batch` streams that have heard nothing; float32 at least."""
        return self.cell.initial_state(batch, self.heads, self.width, device=device, dtype=wide(dtype))
