"""Connectionist temporal classification; see README.md in this folder."""

from asr_kernels.ctc.op import ctc_align, ctc_loss

__all__ = ["ctc_align", "ctc_loss"]
