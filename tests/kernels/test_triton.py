"""Runs triton*_checks.py in processes of their own: triton is interpreted or not from its import on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
CHECKS = sorted(path.name for path in HERE.glob("triton*_checks.py"))


@pytest.mark.parametrize("checks", CHECKS)
@pytest.mark.parametrize("where", ["interpreter", "gpu"])
def test_kernels_equal_the_cpu_path(where: str, checks: str) -> None:
    pytest.importorskip("triton", reason="no Triton for this platform")
    if where == "gpu" and not torch.cuda.is_available():
        pytest.skip("no GPU: the kernels run in Triton's interpreter and are compiled ahead of time")
    environment = os.environ | {"TRITON_INTERPRET": str(int(where == "interpreter"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(HERE / checks)]
    result = subprocess.run(
        command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_importing_the_package_does_not_import_triton() -> None:
    """Where there is no GPU nobody waits for a compiler to load."""
    program = "import asr_kernels, sys; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
