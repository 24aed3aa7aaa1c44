"""Models that come with the package, each a model directory with its card."""

from __future__ import annotations

from pathlib import Path

from asr.errors import ModelError

DEFAULT = "english"


def pretrained(name: str = DEFAULT) -> Path:
    """The model directory of a model in the package; raises ModelError if there is none of this name."""
    here = Path(__file__).parent
    known = sorted(path.parent.name for path in here.glob("*/config.yaml"))
    if name not in known:
        raise ModelError(f"{name}: expected a model that comes with the package ({', '.join(known)})")
    return here / name
