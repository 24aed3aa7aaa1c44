"""Cost curves: time and extra memory of the transducer losses and CTC over frames T, labels U, vocabulary V.

    python tools/bench/curves.py                      # 2 threads; draws kernels/asr_kernels/curves.svg
    python tools/bench/curves.py --threads 1 --output -

Each doubles while the others stay at B,T,U,V,D = 4,200,24,250,256. All contestants start from the outputs of
encoder and predictor (CTC: a linear layer on the encoder's) and end with all gradients, on the half-trained
lattice of fused.py. Times are medians; memory is the peak resident size of one call above the size before it,
the median of three.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import fused
import matplotlib
import pruned
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from measure import extra_memory, turns
from torch import Tensor

from asr_kernels import ctc_loss, fused_rnnt_loss, rnnt_loss

OUTPUT = Path(__file__).parents[2] / "kernels" / "asr_kernels" / "curves.svg"
BATCH, WIDTH = 4, 256
BASE = {"T": 200, "U": 24, "V": 250}
AXES = {"T": (100, 200, 400, 800), "U": (12, 24, 48, 96), "V": (125, 250, 500, 1000)}
NAMES = {"T": "frames T", "U": "labels U", "V": "vocabulary V"}
STYLES = {
    "joiner + rnnt_loss": ("#8a8fa8", "s"),
    "fused_rnnt_loss, dense": ("#3d5a98", "o"),
    "fused_rnnt_loss, skipping": ("#12a5c2", "D"),
    "pruned, S = 5": ("#c2571a", "^"),
    "ctc_loss": ("#5b8c5a", "v"),
}


class Cost(NamedTuple):
    seconds: float
    memory: float


Curves = dict[str, dict[int, dict[str, Cost]]]


def contestants(problem: pruned.Problem) -> dict[str, Callable[[], Tensor]]:
    """In the order of STYLES."""
    joiner, labels = problem.joiner, (problem.targets, *problem.lengths)
    fused_loss = partial(fused_rnnt_loss, *joiner, *labels, reduction="sum")
    losses: tuple[Callable[[], Tensor], ...] = (
        lambda: rnnt_loss(fused.logits(fused.Problem(*joiner, *labels)), *labels, reduction="sum"),
        partial(fused_loss, skip_below=0.0),
        fused_loss,
        lambda: pruned.ours(problem).total,
        lambda: ctc_loss(problem.am(), *labels, reduction="sum"),
    )
    return dict(zip(STYLES, losses, strict=True))


def problem_of(T: int, U: int, V: int) -> pruned.Problem:
    """The half-trained joiner; am by its output layer, lm at random."""
    half = fused.half_trained(BATCH, T, U, V, WIDTH)
    am = half.weight.detach().clone(), half.bias.detach().clone()
    lm = torch.randn(V, WIDTH) / WIDTH, torch.zeros(V)
    linear = (x.requires_grad_() for x in (*am, *lm))
    return pruned.Problem(*half.inputs, *linear, *half[4:])


def measured(sizes: dict[str, int], repeats: int) -> dict[str, Cost]:
    problem = problem_of(**sizes)
    losses = contestants(problem)
    times = turns(list(losses.values()), problem.inputs, repeats)
    memory = [extra_memory(loss, problem.inputs, 3) for loss in losses.values()]
    return {name: Cost(*cost) for name, *cost in zip(losses, times, memory, strict=True)}


def draw(curves: Curves) -> Figure:
    figure = Figure(figsize=(9.6, 5.4), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(2, 3, sharex="col", sharey="row")
    for column, (axis, points) in enumerate(curves.items()):
        for row, (field, unit) in enumerate((("seconds", 1e3), ("memory", 1e-6))):
            panel = panels[row, column]
            for name, (color, marker) in STYLES.items():
                y = [unit * getattr(costs[name], field) for costs in points.values()]
                panel.plot(list(points), y, color=color, marker=marker, markersize=4, lw=1.4, label=name)
            _dress(panel, list(points))
        panels[1, column].set_xlabel(NAMES[axis])
    panels[0, 0].set_ylabel("forward + backward, ms")
    panels[1, 0].set_ylabel("extra memory, MB")
    base = ", ".join(f"{name} = {size}" for name, size in {"B": BATCH, **BASE, "D": WIDTH}.items())
    figure.suptitle(f"CPU, {torch.get_num_threads()} threads, float32; {base} but for the axis", fontsize=10)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _dress(panel: Axes, sizes: list[int]) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_minor_locator(NullLocator())
    panel.tick_params(length=0)
    panel.grid(True, lw=0.4, color="#d5d7e0")
    panel.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Text stays text; the file is small, and the same for the same numbers."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "curves"}):
        figure.savefig(path, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    path.write_text("\n".join(line.strip() for line in path.read_text().splitlines()) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", default=str(OUTPUT), help="an SVG file; - draws none")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measured(dict.fromkeys(BASE, 16), 2)  # what happens once happens here
    curves: Curves = {}
    for axis, sizes in AXES.items():
        print(f"\n{NAMES[axis]:26}" + "".join(f"{size:>20}" for size in sizes), flush=True)
        curves[axis] = {size: measured({**BASE, axis: size}, arguments.repeats) for size in sizes}
        for name in STYLES:
            costs = [curves[axis][size][name] for size in sizes]
            cells = (f"{1e3 * cost.seconds:9.1f} ms {cost.memory / 1e6:5.1f} MB" for cost in costs)
            print(f"{name:26}" + "".join(f"{cell:>20}" for cell in cells), flush=True)
    if arguments.output != "-":
        save(draw(curves), Path(arguments.output))
        print(f"\n{arguments.output}: {Path(arguments.output).stat().st_size} bytes")


if __name__ == "__main__":
    main()
