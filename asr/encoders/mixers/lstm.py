"""LSTM (Hochreiter and Schmidhuber 1997), with the variants of Greff et al. 2017, "A Search Space Odyssey".

    i, f, o = sigmoid(W x_t + R h_{t-1})      z = tanh(W_z x_t + R_z h_{t-1})
    c_t = f c_{t-1} + i z      h_t = o tanh(c_t)      y_t = W_o h_t

The options are those of the paper, each of which leaves out or changes one thing; its baseline has
peepholes, this one has not, as torch.nn.LSTM. Departures: heads that do not see each other, if there are
several; y is projected from h (Sak et al. 2014, without feeding the projection back). A forget gate of its
own begins open, with a bias of 1 (Jozefowicz et al. 2015).
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from asr.encoders.mixers.base import Mixer, MixerConfig, MixerOutput
from asr.layers.heads import head_width, state_width
from asr.layers.recurrence import RecurrentCell
from asr_kernels import Cell, CellState


class LstmConfig(MixerConfig):
    """An LSTM."""

    kind: Literal["lstm"] = "lstm"
    expansion: float = Field(1.0, gt=0, le=8)
    """Width of the state, in multiples of the frames'."""
    heads: int = Field(1, ge=1)
    """Parts of the state that do not see each other."""
    peepholes: bool = False
    """The gates see the cell."""
    input_gate: bool = True
    forget_gate: bool = True
    output_gate: bool = True
    input_activation: bool = True
    output_activation: bool = True
    coupled: bool = False
    """One gate for input and forget, f = 1 - i."""
    gate_recurrence: bool = False
    """The gates see the gates of the frame before."""

    @property
    def cell(self) -> Cell:
        """The cell; raises ValueError if the options do not go together."""
        return Cell("lstm", **self.model_dump(exclude={"kind", "expansion", "heads"}))

    @model_validator(mode="after")
    def _a_cell(self) -> Self:
        _ = self.cell  # raises
        return self

    def build(self, dim: int) -> CellMixer:
        """See MixerConfig.build."""
        width = head_width(state_width(dim, self.expansion), self.heads)
        return CellMixer(dim, self.cell, self.heads, width)


class CellMixer(Mixer):
    """y = W_o h of a recurrent cell; the LSTM's, and the GRU's too."""

    def __init__(self, dim: int, cell: Cell, heads: int, width: int) -> None:
        super().__init__()
        self.cell = RecurrentCell(cell, heads, width)
        self.project = nn.Linear(dim, self.cell.preactivations)
        self.out = nn.Linear(heads * width, dim)
        if "f" in cell.gates:
            with torch.no_grad():
                gates = self.project.bias.view(heads, len(cell.gates), width)
                gates[:, cell.gates.index("f")] = 1.0

    def forward(self, x: Tensor, lengths: Tensor | None, state: CellState) -> MixerOutput:
        """See Mixer.forward."""
        h, state = self.cell.behind(self.project, x, lengths, state)
        return MixerOutput(self.out(h), state)

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> CellState:
        """See Mixer.initial_state."""
        return self.cell.initial_state(batch, device, dtype)


CONFIG = LstmConfig
