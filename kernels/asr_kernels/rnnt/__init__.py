"""Transducer losses on the joiner's output; see README.md in this folder."""

from asr_kernels.rnnt.op import align, rnnt_loss

__all__ = ["align", "rnnt_loss"]
