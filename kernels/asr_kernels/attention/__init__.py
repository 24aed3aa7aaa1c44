"""Linear attention with a matrix state: gated sums and the delta rule; see README.md in this folder."""

from asr_kernels.attention.op import delta_rule, gated_linear_attention
from asr_kernels.attention.reference import Attended

__all__ = ["Attended", "delta_rule", "gated_linear_attention"]
