"""First-order linear recurrences; see README.md."""

from asr_kernels.scan.op import Scan, linear_scan, log_linear_scan

__all__ = ["Scan", "linear_scan", "log_linear_scan"]
