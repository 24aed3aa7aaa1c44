"""Recurrent cells over whole sequences; see README.md in this folder."""

from asr_kernels.lstm.cell import Cell, CellState
from asr_kernels.lstm.op import Recurrence, recurrence

__all__ = ["Cell", "CellState", "Recurrence", "recurrence"]
