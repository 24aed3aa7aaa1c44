"""Kernels that make the toolkit fast: each op a definition to read, fast paths, and one public function.

    >>> from asr_kernels import rnnt_loss
    >>> rnnt_loss(logits, targets, logit_lengths, target_lengths, reduction="mean").backward()

Depends on torch and numpy and on nothing of `asr`. Every op takes `backend=None | "reference" | "cpu"`;
`use_backend` forces one for a block of code.
"""

from __future__ import annotations

from asr_kernels.dispatch import backends, use_backend
from asr_kernels.rnnt import rnnt_loss

__all__ = ["backends", "rnnt_loss", "use_backend"]
