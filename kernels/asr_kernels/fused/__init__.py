"""Transducer losses fused with the joiner; see README.md in this folder."""

from asr_kernels.fused.op import fused_align, fused_rnnt_loss

__all__ = ["fused_align", "fused_rnnt_loss"]
