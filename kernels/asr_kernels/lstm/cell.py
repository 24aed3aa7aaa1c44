"""What a recurrent cell is made of: the one description that every backend reads.

The equations stand in reference.py. A cell has a few preactivations per unit (its `gates`, in the order of
`x`, the weights and the bias), carries some state per unit from frame to frame (its `leaves`),
and takes some parameters beside the recurrent weights (`peephole_gates`, `gate_recurrence`).

- "lstm": Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000, gates in the order of
  torch.nn.LSTM, and the variants of Greff et al. 2017, "LSTM: A Search Space Odyssey", as options.
- "gru": Cho et al. 2014 as cuDNN and torch.nn.GRU compute it, reset after the product.
- "elman": h = tanh(x + R h), torch.nn.RNN.
- "slstm": Beck et al. 2024, "xLSTM", exponential gating with normaliser and stabiliser.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Kind = Literal["lstm", "gru", "elman", "slstm"]

_GATES = {"gru": ("r", "z", "n"), "elman": ("h",), "slstm": ("i", "f", "z", "o")}
_LEAVES = {"lstm": ("h", "c"), "gru": ("h",), "elman": ("h",), "slstm": ("h", "c", "n", "m")}


class CellState(NamedTuple):
    """What a cell carries from frame to frame, each (B, heads, D) in float32 (float64 for float64 input).

    Those that the cell does not have (see `Cell.leaves`) are None. All zero is the start of a stream.
    """

    h: Tensor | None = None
    """Output of the last frame."""
    c: Tensor | None = None
    """Cell (lstm, slstm); of slstm times exp(-m)."""
    n: Tensor | None = None
    """Normaliser times exp(-m) (slstm). Where it is zero nothing was seen yet, and c and m do not count."""
    m: Tensor | None = None
    """Stabiliser, a logarithm (slstm)."""
    i: Tensor | None = None
    """Input gate of the last frame (lstm with gate_recurrence)."""
    f: Tensor | None = None
    """Forget gate of the last frame (lstm with gate_recurrence)."""
    o: Tensor | None = None
    """Output gate of the last frame (lstm with gate_recurrence)."""


@dataclass(frozen=True, repr=False)
class Cell:
    """A cell; options other than the defaults are for the kind they name. Raises ValueError if they clash."""

    kind: Kind = "lstm"
    peepholes: bool = False
    """lstm: the gates see the cell, through one weight per unit (Gers and Schmidhuber 2000)."""
    input_gate: bool = True
    """lstm: False is NIG, i = 1."""
    forget_gate: bool = True
    """lstm: False is NFG, f = 1."""
    output_gate: bool = True
    """lstm: False is NOG, o = 1."""
    input_activation: bool = True
    """lstm: False is NIAF, the block input without its tanh."""
    output_activation: bool = True
    """lstm: False is NOAF, the cell without its tanh."""
    coupled: bool = False
    """lstm: CIFG, f = 1 - i."""
    gate_recurrence: bool = False
    """lstm: FGR, the gates of the last frame feed all gates."""
    exponential_forget: bool = False
    """slstm: f = exp instead of the sigmoid; the paper allows both."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"expected kind among {', '.join(get_args(Kind))}, found {self.kind!r}")
        for field in fields(self)[1:]:
            owner = "slstm" if field.name == "exponential_forget" else "lstm"
            value = getattr(self, field.name)
            if not isinstance(value, bool):
                raise ValueError(f"expected {field.name} True or False, found {value!r}")
            if value is not field.default and self.kind != owner:
                raise ValueError(
                    f"{field.name}={value} is for kind {owner!r}, found {self.kind!r}: leave it out"
                )
        if self.coupled and not (self.input_gate and self.forget_gate):
            raise ValueError("coupled=True needs the input gate and replaces the forget gate: remove neither")
        for name in ("peepholes", "gate_recurrence"):
            if getattr(self, name) and not self._sigmoids:
                raise ValueError(f"{name}=True needs a gate, found all gates removed: keep one of them")

    def __repr__(self) -> str:
        own = [field.name for field in fields(self)[1:] if getattr(self, field.name) is not field.default]
        return f"Cell({', '.join([repr(self.kind), *(f'{name}={getattr(self, name)}' for name in own)])})"

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the preactivations of a unit, in the order of `x`, the weights and the bias."""
        if self.kind != "lstm":
            return _GATES[self.kind]
        present = {"i": self.input_gate, "f": self.forget_gate and not self.coupled, "o": self.output_gate}
        return tuple(name for name in ("i", "f", "z", "o") if present.get(name, True))

    @property
    def leaves(self) -> tuple[str, ...]:
        """Names of the state that the cell carries, fields of `CellState`."""
        return _LEAVES[self.kind] + (self._sigmoids if self.gate_recurrence else ())

    @property
    def peephole_gates(self) -> tuple[str, ...]:
        """The gates with peepholes, in the order of `peepholes`."""
        return self._sigmoids if self.peepholes else ()

    @property
    def recurrent_gates(self) -> tuple[str, ...]:
        """The gates that feed one another, in the order of `gate_weight`."""
        return self._sigmoids if self.gate_recurrence else ()

    @property
    def _sigmoids(self) -> tuple[str, ...]:
        return tuple(name for name in self.gates if name in ("i", "f", "o")) if self.kind == "lstm" else ()

    def parameter_shapes(self, heads: int, width: int) -> dict[str, tuple[int, ...]]:
        """Of what `recurrence` takes beside `x`, for that many heads of that many units."""
        G, P, N = len(self.gates), len(self.peephole_gates), len(self.recurrent_gates)
        shapes: dict[str, tuple[int, ...]] = {"weight": (heads, width, G, width), "bias": (heads, G, width)}
        if P > 0:
            shapes["peepholes"] = (heads, P, width)
        if N > 0:
            shapes["gate_weight"] = (heads, N, width, N, width)
        return shapes

    def initial_state(
        self,
        batch: int,
        heads: int,
        width: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> CellState:
        """The start of a stream: zeros."""
        zeros = {leaf: torch.zeros(batch, heads, width, device=device, dtype=dtype) for leaf in self.leaves}
        return CellState(**zeros)


def leaf_of(state: CellState, name: str) -> Tensor:
    """The leaf of that name, which the cell has."""
    leaf: Tensor | None = getattr(state, name)
    assert leaf is not None
    return leaf
