"""The weights of a recurrent cell, and the cell over a piece of every stream (asr_kernels.recurrence).

Every head sees its own units of the frame before and no others (Beck et al. 2024, "xLSTM"; one head is the
usual dense recurrence), which divides the recurrent weights by the number of heads.
"""

from __future__ import annotations

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

    weight: Tensor
    bias: Tensor | None
    peepholes: Tensor | None
    gate_weight: Tensor | None

    def __init__(self, cell: Cell, heads: int, width: int) -> None:
        super().__init__()
        self.cell, self.heads, self.width = cell, heads, width
        self.preactivations = heads * len(cell.gates) * width
        shapes = cell.parameter_shapes(heads, width)
        # The bias of the input does for both, but where the recurrent one is multiplied by a gate.
        for name in ("weight", "bias", "peepholes", "gate_weight"):
            wanted = name in shapes and (name != "bias" or cell.kind == "gru")
            parameter = nn.Parameter(torch.empty(shapes[name])) if wanted else None
            if parameter is not None:
                nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor, lengths: Tensor | None, state: CellState) -> CellOutput:
        """The next piece of every stream; see asr_kernels.recurrence."""
        projected = x.view(*x.shape[:2], self.heads, len(self.cell.gates), self.width)
        found = recurrence(self.cell, projected, self.weight, self.bias, state, **self._options(lengths))
        return CellOutput(found.y.flatten(2), found.state)

    def behind(
        self, projection: nn.Linear, x: Tensor, lengths: Tensor | None, state: CellState
    ) -> CellOutput:
        """The same of preactivations projection(x), which together may be faster."""
        parameters = projection.weight, projection.bias, self.weight, self.bias
        found = recurrent_layer(self.cell, x, *parameters, state, **self._options(lengths))
        return CellOutput(found.y.flatten(2), found.state)

    def _options(self, lengths: Tensor | None) -> dict[str, Any]:
        return {"peepholes": self.peepholes, "gate_weight": self.gate_weight, "lengths": lengths}

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> CellState:
        """State of `batch` streams that have heard nothing; float32 at least."""
        return self.cell.initial_state(batch, self.heads, self.width, device=device, dtype=wide(dtype))


def check_heads(width: int, heads: int) -> None:
    """Raise ValueError if `width` cannot be divided among the heads."""
    if width % heads:
        fits = [n for n in range(1, width + 1) if width % n == 0]
        nearest = min(fits, key=lambda n: abs(n - heads))
        raise ValueError(f"a state of {width} is not a multiple of heads {heads}: {nearest} would do")
