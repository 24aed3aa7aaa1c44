"""Pruned transducer losses; see README.md in this folder."""

from asr_kernels.pruned.op import (
    SimpleLoss,
    fused_pruned_rnnt_loss,
    pruned_rnnt_loss,
    pruning_bounds,
    simple_rnnt_loss,
)

__all__ = ["SimpleLoss", "fused_pruned_rnnt_loss", "pruned_rnnt_loss", "pruning_bounds", "simple_rnnt_loss"]
