"""Recurrent cells over whole sequences; see README.md in this folder."""

from asr_kernels.lstm.cell import Cell, CellState
from asr_kernels.lstm.layer import recurrent_layer
from asr_kernels.lstm.newton import NewtonRecurrence, newton_rnn
from asr_kernels.lstm.op import Recurrence, recurrence

__all__ = [
    "Cell",
    "CellState",
    "NewtonRecurrence",
    "Recurrence",
    "newton_rnn",
    "recurrence",
    "recurrent_layer",
]
