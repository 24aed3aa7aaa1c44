"""What a command imports before it answers: start-up time and memory are mostly libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "lhotse",
    "torchaudio",
    "matplotlib",
    "scipy",
    "jiwer",
    "sentencepiece",
    "tensorboard",
    "torch._dynamo",
)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import asr.cli.app", ("torch", "numpy", "pydantic", *HEAVY)),
        ("import asr; asr.load; import asr.live, asr.cli.formats", HEAVY),
    ],
    ids=["the command line", "transcribing"],
)
def test_nothing_needless_is_imported(statement: str, absent: tuple[str, ...]) -> None:
    program = f"{statement}; import sys; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
