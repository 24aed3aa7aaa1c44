"""On a machine with a GPU: are the Triton kernels right, and how fast are they beside their peers?

    python tools/gpu_check                 # GPU tests, then benchmarks: under 9 minutes
    python tools/gpu_check --smoke         # everything on tiny shapes, without a GPU too: does it run?
    TRITON_INTERPRET=1 python tools/gpu_check --smoke      # likewise, by the Triton kernels

Needs torch, triton (which needs a C compiler), numpy and pytest; torchaudio and flash-linear-attention join
where they are installed. Prints rows as they come; what there was no time for is named at the end. With
--output also writes the table as Markdown. Fails if a kernel of ours is wrong or breaks down; peers may.
tools/bench/gpu_losses.py and gpu_sequences.py tell what is measured, gpu.py how.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "kernels"), str(ROOT / "tools" / "bench")]

import gpu  # noqa: E402
import gpu_losses  # noqa: E402
import gpu_search  # noqa: E402
import gpu_sequences  # noqa: E402
import torch  # noqa: E402

from asr_kernels import use_backend  # noqa: E402
from asr_kernels.dispatch import interpreted  # noqa: E402

INTERPRETED = interpreted()
GROUPS = gpu_losses.GROUPS | gpu_sequences.GROUPS
HEADER = ("shape", "what", "ms", "x floor", "MB", "gradient off by", "")
# (group, ours, peer, how many times as fast ours should be)
GOALS = (
    ("fused", "fused, dense", "joiner + torchaudio", 5.0),
    ("fused", "fused, dense", "tiled", 1.4),
    ("fused", "fused, skipping", "tiled", 3.0),
    ("decay per channel", "gated_linear_attention", "flash-linear-attention", 1.0),
    ("decay per head", "gated_linear_attention", "flash-linear-attention", 1.0),
    ("lstm", "recurrent_layer", "torch.nn", 1.0),
    ("lstm, several heads", "recurrent_layer", "torch.nn", 2.0),
)
# (group, ours, how many times its floor it may take at the most)
FLOORS = (
    ("fused", "fused, dense", 2.5),
    ("fused", "fused, skipping", 2.5),
    ("pruned", "pruned", 2.0),
    ("scan", "linear_scan", 1.25),
)
MEMORY_SHARE = 1 / 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=500.0, help="for all of it")
    parser.add_argument("--only", choices=("tests", "benchmarks"))
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on a CPU if there is no GPU")
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.smoke:
        sys.exit("gpu_check: expected a GPU, found none; --smoke runs the benchmarks' code without one")
    end = time.monotonic() + arguments.seconds
    print(machine(), flush=True)
    right = True
    if arguments.only != "benchmarks":
        right = tests(end)
    if arguments.only != "tests":
        table = Table(arguments.output)
        table.add(machine(), "")
        with use_backend("triton" if INTERPRETED else None):
            right &= benchmarks(table, end, arguments.smoke)
        if arguments.output:
            print(f"written: {arguments.output}")
    sys.exit(0 if right else 1)


def machine() -> str:
    """Device, versions, commit and day."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    triton = "no Triton"
    if importlib.util.find_spec("triton"):
        import triton as module

        triton = f"Triton {module.__version__}"
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    commit = git.stdout.strip() or "unknown"
    today = datetime.date.today().isoformat()
    return f"{device}, torch {torch.__version__}, {triton}, commit {commit}, {today}"


def tests(end: float) -> bool:
    """The GPU tests of the kernels and of greedy search; their summary is printed."""
    if not torch.cuda.is_available():
        print("tests: no GPU, so none (tests/kernels/test_triton.py runs them in Triton's interpreter)")
        return True
    start = time.monotonic()
    # Without conftest.py there is no need of hypothesis; a warning of a new driver is no failure.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--durations=3"]
    command += ["--noconftest", "-W", "default"]
    folders = [ROOT / "tests" / "kernels", ROOT / "tests" / "asr"]
    command += [str(path) for path in sorted(folders[0].glob("triton*_checks.py"))]
    command += [str(path) for path in sorted(folders[1].glob("gpu*_checks.py"))]
    paths = (ROOT, ROOT / "kernels", ROOT / "tools" / "bench", *folders)
    path = os.pathsep.join(map(str, paths))
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": path}
    environment["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
    try:
        ran = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=max(1.0, end - start),
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
        print("tests: out of time after", output.decode()[-2000:] if isinstance(output, bytes) else output)
        return False
    lines = ran.stdout.strip().splitlines()
    shown = lines[-1:] if ran.returncode == 0 else lines[-60:] + ran.stderr.splitlines()[-20:]
    print(f"tests ({time.monotonic() - start:.0f} s):", *shown, sep="\n  ", flush=True)
    return ran.returncode == 0


class Table:
    """Lines that are printed and, if there is a file, written as they come."""

    def __init__(self, file: Path | None) -> None:
        self.file, self.lines = file, list[str]()

    def add(self, *lines: str) -> None:
        self.lines += lines
        print(*lines, sep="\n", flush=True)
        if self.file:
            self.file.write_text("\n".join(self.lines) + "\n")


def benchmarks(table: Table, end: float, smoke: bool) -> bool:
    """Rows of the table in Markdown, then what became of the goals. Whether ours all were right."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bench, found, missed, right = gpu.Bench(GROUPS, device, budget_s=0.3 if smoke else 1.0), {}, [], True
    table.add(row_of(HEADER), row_of("---" for _ in HEADER))
    for row in (*gpu_losses.rows(smoke), *gpu_sequences.rows(smoke)):
        group = GROUPS[row.group]
        ours = group.contestants[row.name].ours
        if time.monotonic() > end:
            missed.append(f"{row.name} {row.shape}")
            continue
        try:
            found[row] = result = bench.run(row)
            cells = cells_of(result)
        except torch.cuda.OutOfMemoryError:
            right &= not ours
            cells = ["", "", "", "", "out of memory"]
        except Exception as error:  # whatever a compiler, a driver or a peer comes up with: the rest goes on
            right &= not ours
            cells = ["", "", "", "", f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"]
        shape = f"{group.dimensions} = {', '.join(map(str, row.shape))}"
        table.add(row_of([shape, f"{row.group}: {row.name}", *cells]))
    right &= search_rows(table, device, end, smoke)
    goals = () if smoke else verdicts(found)
    table.add("", *goals, *(f"no time for: {what}" for what in missed))
    return right


def search_rows(table: Table, device: str, end: float, smoke: bool) -> bool:
    """A table of greedy search beside the encoder. Whether what it found was right."""
    if time.monotonic() > end:
        table.add("", "no time for: greedy search")
        return True
    try:
        table.add("", row_of(gpu_search.HEADER), row_of("---" for _ in gpu_search.HEADER))
        for cells in gpu_search.rows(device, smoke):
            table.add(row_of(cells))
    except ImportError as error:
        table.add("", f"greedy search: not measured, the toolkit needs more than its kernels do: {error}")
    except ArithmeticError as error:
        table.add("", f"greedy search: {error}")
        return False
    return True


def row_of(cells: Iterator[str] | list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def cells_of(result: gpu.Result) -> list[str]:
    """What follows the name."""
    return [
        f"{1e3 * result.seconds:.3g}",
        "" if result.floor is None else f"{result.seconds / result.floor:.2f}",
        "" if result.memory is None else f"{result.memory / 1e6:.0f}",
        f"{result.error:.0e}",
        result.note,
    ]


def verdicts(found: dict[gpu.Row, gpu.Result]) -> Iterator[str]:
    """The goals of the kernels on a GPU, each with what was measured."""
    for row, one in found.items():
        what = f"{row.group}, {', '.join(map(str, row.shape))}: {row.name}"
        for group, ours, peer, times in GOALS:
            other = found.get(row._replace(name=peer))
            if (group, ours) == (row.group, row.name) and other:
                yield verdict(f"{what} against {peer}", other.seconds / one.seconds, times, at_least=True)
        for group, ours, most in FLOORS:
            if (group, ours) == (row.group, row.name) and one.floor:
                yield verdict(f"{what} against its floor", one.seconds / one.floor, most, at_least=False)
        if row.name == "fused, dense" and one.memory is not None:
            share = one.memory / (2 * gpu_losses.nodes(row.shape) * row.shape[3])
            yield verdict(f"{what}, memory / logits", share, MEMORY_SHARE, at_least=False)


def verdict(what: str, found: float, goal: float, *, at_least: bool) -> str:
    reached = found >= goal if at_least else found <= goal
    bound = "least" if at_least else "most"
    return f"- {what}: {found:.3g}, {'reached' if reached else 'MISSED'} (goal: at {bound} {goal:.3g})"


if __name__ == "__main__":
    main()
