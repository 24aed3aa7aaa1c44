"""sLSTM: an LSTM with exponential gates and a normaliser, in heads (Beck et al. 2024, "xLSTM", section 2.2).

    u = SiLU(conv(x))      i, f of u and h_{t-1}      z, o of x and h_{t-1}
    c_t = f c_{t-1} + exp(i) tanh(z)      n_t = f n_{t-1} + exp(i)      h_t = sigmoid(o) c_t / n_t
    y_t = W_o norm(h_t)

A running maximum keeps the exponentials within the numbers (asr_kernels/lstm). As in the paper's block: a
causal convolution in front of the input and forget gates, and a norm per head behind the cell. Of the state,
frames keep between sigmoid(3) and sigmoid(6) at the start, the longest memory last. Departures: that start
(the authors' code spreads it by a power law), and the gated feed-forward network, which is that of the
recurrent layer.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from asr.encoders.mixers.base import Mixer, MixerConfig, MixerOutput
from asr.layers.convolution import CausalDepthwise
from asr.layers.heads import HeadNorm, by_head, head_width, state_width
from asr.layers.recurrence import RecurrentCell
from asr_kernels import Cell, CellState


class SlstmConfig(MixerConfig):
    """An sLSTM."""

    kind: Literal["slstm"] = "slstm"
    expansion: float = Field(1.0, gt=0, le=8)
    """Width of the state, in multiples of the frames'."""
    heads: int = Field(4, ge=1)
    """Parts of the state that do not see each other."""
    kernel: int = Field(4, ge=1, le=64)
    """Frames, its own the last, that the input and forget gates hear."""
    exponential_forget: bool = False
    """exp instead of the sigmoid in the forget gate; the paper allows both."""

    def build(self, dim: int) -> Slstm:
        """See MixerConfig.build."""
        width = head_width(state_width(dim, self.expansion), self.heads)
        cell = Cell("slstm", exponential_forget=self.exponential_forget)
        return Slstm(dim, cell, self.heads, width, self.kernel)


class Slstm(Mixer):
    """See the module docstring."""

    def __init__(self, dim: int, cell: Cell, heads: int, width: int, kernel: int) -> None:
        super().__init__()
        self.convolution = CausalDepthwise(dim, kernel)
        self.cell = RecurrentCell(cell, heads, width)
        self.gates = nn.Linear(dim, 2 * heads * width)  # i and f
        self.values = nn.Linear(dim, 2 * heads * width)  # z and o
        self.norm = HeadNorm(heads, width, centred=True)
        self.out = nn.Linear(heads * width, dim)
        keeps = torch.linspace(3.0, 6.0, width)
        with torch.no_grad():
            # What the state keeps is the same, whatever the gate makes it of.
            open_gates = functional.logsigmoid(keeps) if cell.exponential_forget else keeps
            self.gates.bias.view(heads, 2, width)[:, 1] = open_gates

    def forward(self, x: Tensor, lengths: Tensor | None, state: tuple[Tensor, CellState]) -> MixerOutput:
        """See Mixer.forward; the state is that of the convolution and that of the cell."""
        u, convolution = self.convolution(x, lengths, state[0])
        parts = (self.gates(functional.silu(u)), self.values(x))
        shape = *x.shape[:2], self.cell.heads, 2 * self.cell.width
        preactivations = torch.cat([part.view(shape) for part in parts], dim=-1).flatten(2)
        h, cell = self.cell(preactivations, lengths, state[1])
        return MixerOutput(self.out(self.norm(by_head(h, self.cell.heads))), (convolution, cell))

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, CellState]:
        """See Mixer.initial_state."""
        convolution = self.convolution.initial_state(batch, device, dtype)
        return convolution, self.cell.initial_state(batch, device, dtype)


CONFIG = SlstmConfig
