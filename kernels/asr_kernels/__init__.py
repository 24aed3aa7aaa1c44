"""Kernels that make the toolkit fast: each op a definition to read, fast paths, and one public function.

    >>> from asr_kernels import rnnt_loss
    >>> rnnt_loss(logits, targets, logit_lengths, target_lengths, reduction="mean").backward()

Depends on torch and numpy and on nothing of `asr`. Every op takes `backend=None` or one of "reference", "cpu"
and "triton", the pruned ones also "k2"; `use_backend` forces one for a block of code.
"""

from __future__ import annotations

from asr_kernels.attention import Attended, delta_rule, gated_linear_attention
from asr_kernels.ctc import ctc_align, ctc_loss
from asr_kernels.dispatch import backends, use_backend
from asr_kernels.fused import fused_align, fused_rnnt_loss
from asr_kernels.lattice import CTC, MONOTONIC, RNNT, Alignment, Topology, multi_blank, tdt
from asr_kernels.lstm import (
    Cell,
    CellState,
    NewtonRecurrence,
    Recurrence,
    newton_rnn,
    recurrence,
    recurrent_layer,
)
from asr_kernels.pruned import (
    SimpleLoss,
    fused_pruned_rnnt_loss,
    pruned_rnnt_loss,
    pruning_bounds,
    simple_rnnt_loss,
)
from asr_kernels.rnnt import align, rnnt_loss
from asr_kernels.scan import Scan, linear_scan, log_linear_scan

__all__ = [
    "CTC",
    "MONOTONIC",
    "RNNT",
    "Alignment",
    "Attended",
    "Cell",
    "CellState",
    "NewtonRecurrence",
    "Recurrence",
    "Scan",
    "SimpleLoss",
    "Topology",
    "align",
    "backends",
    "ctc_align",
    "ctc_loss",
    "delta_rule",
    "fused_align",
    "fused_pruned_rnnt_loss",
    "fused_rnnt_loss",
    "gated_linear_attention",
    "linear_scan",
    "log_linear_scan",
    "multi_blank",
    "newton_rnn",
    "pruned_rnnt_loss",
    "pruning_bounds",
    "recurrence",
    "recurrent_layer",
    "rnnt_loss",
    "simple_rnnt_loss",
    "tdt",
    "use_backend",
]
