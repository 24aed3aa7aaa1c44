"""What the backward pass that skips nodes saves and costs, on models in the course of a training.

    egs/digits/run.sh --exp EXP --set training.keep_best=36 --stop-stage 2      # keeps every epoch
    python tools/bench/skipping.py EXP [--threads 2]

For the untrained network and some of the run's checkpoints, on the same training batches (augmented as in
training, without SpecAugment): the share of the lattices' nodes whose occupation exceeds `skip_below`, the
error of the gradients at encoder, predictor, weight and bias of the joiner (relative norm, all together)
beside the dense ones in float64, and the time of loss and gradients beside that without skipping in the same
process.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import fused
import torch
from measure import turns
from torch import Tensor

from asr.model_directory import build_network, load_weights
from asr.train.checkpoint import WEIGHTS, checkpoints
from asr.train.setup import CHECKPOINTS, RunSetup, resume_run
from asr.transducer import Transducer

SKIPS = (0.0, 1e-8, 1e-6, 1e-4, 1e-3)
BATCHES = 8


class Cost(NamedTuple):
    visited: float  # share of the nodes
    error: float
    time: float  # of that without skipping


def stages(setup: RunSetup, exp: Path) -> Iterator[tuple[str, Transducer]]:
    """The network untrained, and after the first, third, ... of its saved epochs up to the last."""
    torch.manual_seed(0)
    yield "untrained", build_network(setup.model_config)
    paths = checkpoints(exp / CHECKPOINTS)
    numbers = sorted({1, 3, 6, len(paths) // 2, len(paths)})
    for number in numbers:
        load_weights(setup.network, paths[number - 1] / WEIGHTS)
        yield f"epoch {number}", setup.network


def problems(setup: RunSetup, network: Transducer) -> Iterator[fused.Problem]:
    """The joiner's inputs for the first training batches, always the same ones."""
    torch.manual_seed(0)
    for batch in islice(setup.unmasked(), BATCHES):
        with torch.no_grad():
            encoded = network.eval().encode(batch.features, batch.feature_lengths)
            frames = encoded.y[:, : int(encoded.y_lengths.max())]
            within = torch.arange(batch.targets.shape[1]) < batch.target_lengths[:, None]
            spoken = network.predictor.whole(torch.where(within, batch.targets, network.blank))
            inputs = network.joiner.projected(frames, spoken)
        leaves = (x.detach().clone().requires_grad_() for x in inputs[:4])
        yield fused.Problem(*leaves, batch.targets, encoded.y_lengths, batch.target_lengths)


def gradients(problem: fused.Problem, skip_below: float) -> list[Tensor]:
    return [x.double() for x in fused.step(partial(fused.ours, problem, skip_below), problem)[1]]


def exact(problem: fused.Problem) -> list[Tensor]:
    wide = (x.detach().double().requires_grad_() for x in problem.inputs)
    return gradients(fused.Problem(*wide, *problem[4:]), 0.0)


def nodes(problem: fused.Problem) -> Tensor:
    """Occupations of the nodes of the lattices, relative to the largest of the utterance."""
    occupation = fused.occupation(problem)
    relative = occupation / occupation.amax((1, 2), keepdim=True)
    t, u = (torch.arange(n) for n in relative.shape[1:])
    T_b, U_b = (x[:, None, None] for x in problem[5:])
    return relative[(t[:, None] < T_b) & (u <= U_b)]


def measure(network: Transducer, setup: RunSetup, repeats: int) -> dict[float, Cost]:
    found: dict[float, list[Cost]] = {skip: [] for skip in SKIPS}
    for problem in problems(setup, network):
        wanted, occupied = exact(problem), nodes(problem)
        losses = [partial(fused.ours, problem, skip) for skip in SKIPS]
        times = turns(losses, problem.inputs, repeats)
        for skip, time in zip(SKIPS, times, strict=True):
            share = float((occupied > max(skip, fused.NEGLIGIBLE)).double().mean())
            found[skip].append(Cost(share, fused.error(gradients(problem, skip), wanted), time / times[0]))
    return {skip: Cost(*map(statistics.mean, zip(*costs, strict=True))) for skip, costs in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("exp", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    setup = resume_run(arguments.exp)
    print(
        f"means over {BATCHES} batches; share of the nodes / error of the gradient / time beside skip_below 0"
    )
    print("| model |" + "".join(f" {skip:g} |" for skip in SKIPS))
    print("|---|" + "---|" * len(SKIPS))
    for name, network in stages(setup, arguments.exp):
        costs = measure(network, setup, arguments.repeats)
        cells = (f" {cost.visited:.1%} / {cost.error:.0e} / {cost.time:.2f} |" for cost in costs.values())
        print(f"| {name} |" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
