"""Language models over the labels of a recogniser, and what else scores a hypothesis."""

from __future__ import annotations

from asr.lms.base import Scorer

__all__ = ["Scorer"]
