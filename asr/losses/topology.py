"""The topology of a transducer, chosen by configuration: which paths its lattice has."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

import asr_kernels
from asr.config import Config


class TopologyConfig(Config):
    """What a symbol consumes. Training and search follow it."""

    name: Literal["rnnt", "monotonic", "ctc", "tdt", "multi_blank"] = "rnnt"
    """rnnt: blank takes a frame, labels none. monotonic: every symbol takes one. ctc: likewise, and labels
    may be held. tdt: the frames a symbol takes are predicted. multi_blank: some blanks take several."""
    durations: tuple[int, ...] = ()
    """Frames: of tdt's symbols (default 0 to 4), or of multi_blank's big blanks (default 2 and 4)."""
    sigma: float = Field(0.0, ge=0)
    """Logit under-normalisation of tdt and multi_blank: what every symbol costs on top."""

    @model_validator(mode="after")
    def _check(self) -> TopologyConfig:
        if self.name not in ("tdt", "multi_blank") and (self.durations or self.sigma):
            raise ValueError(f"durations and sigma belong to tdt and multi_blank, not to {self.name}")
        self.build()
        return self

    def build(self) -> asr_kernels.Topology:
        """The topology as the kernels know it."""
        if self.name == "tdt":
            return asr_kernels.tdt(self.durations or (0, 1, 2, 3, 4), self.sigma)
        if self.name == "multi_blank":
            return asr_kernels.multi_blank(self.durations or (2, 4), self.sigma)
        fixed = {"rnnt": asr_kernels.RNNT, "monotonic": asr_kernels.MONOTONIC, "ctc": asr_kernels.CTC}
        return fixed[self.name]
