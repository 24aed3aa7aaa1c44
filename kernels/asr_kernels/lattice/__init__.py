"""Lattices: topologies as data, the recursion over them, best paths; see README.md in this folder."""

from asr_kernels.lattice.arcs import Alignment, Lattice, Rules
from asr_kernels.lattice.op import best_alignment, lattice_loss
from asr_kernels.lattice.topology import CTC, MONOTONIC, RNNT, Topology, multi_blank, tdt

__all__ = [
    "CTC",
    "MONOTONIC",
    "RNNT",
    "Alignment",
    "Lattice",
    "Rules",
    "Topology",
    "best_alignment",
    "lattice_loss",
    "multi_blank",
    "tdt",
]
