"""Transducer losses fused with the joiner; see README.md in this folder."""

from asr_kernels.fused.op import fused_rnnt_loss

__all__ = ["fused_rnnt_loss"]
