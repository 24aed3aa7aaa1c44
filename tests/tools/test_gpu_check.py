"""tools/gpu_check runs from beginning to end where there is no GPU, and says so where it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOOL = Path(__file__).parents[2] / "tools" / "gpu_check"


def gpu_check(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOL, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_benchmarks_run_without_a_gpu(tmp_path: Path) -> None:
    """Every contestant, right to the definition, in a table that is printed and written."""
    table = tmp_path / "table.md"
    ran = gpu_check("--smoke", "--only", "benchmarks", "--output", str(table))
    assert ran.returncode == 0, ran.stderr
    rows = [line.split(" | ") for line in ran.stdout.splitlines() if line.startswith("| B, T")]
    # A package that need not be there.
    rows = [row for row in rows if "flash-linear-attention" not in row[1]]
    expected = {"fused: fused, skipping", "pruned: pruned", "ctc: torch ctc_loss", "scan: linear_scan"}
    expected |= {"decay per head: matrix products", "delta rule: delta_rule", "lstm, several heads: torch.nn"}
    assert expected <= {row[1] for row in rows}
    assert all(float(row[2]) > 0 for row in rows), ran.stdout
    assert "commit" in table.read_text()
    assert all(" | ".join(row) in table.read_text() for row in rows)


def test_what_there_is_no_time_for_is_named() -> None:
    ran = gpu_check("--smoke", "--only", "benchmarks", "--seconds", "0")
    assert ran.returncode == 0, ran.stderr
    assert "no time for: fused, dense (2, 12, 4, 20, 16)" in ran.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_asks_for_a_gpu() -> None:
    ran = gpu_check()
    assert ran.returncode == 1
    assert "expected a GPU, found none" in ran.stderr
