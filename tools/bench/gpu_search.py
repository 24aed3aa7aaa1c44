"""Greedy search on a GPU: with recorded steps, with steps launched one by one, and the share of the encoder.

    python tools/bench/gpu_search.py [--smoke]

Run by tools/gpu_check. The network is of the size of a large Conformer with random weights, and the bias of
its blank is such that about one frame in five puts out a label, as with 500 pieces; decoding minds nothing
else. Both ways must find the same labels, and on a CPU the definition's, before they are timed. Columns: the
encoder, the recorded and the launched loop, the loop with a window of one for one utterance times the batch,
and the share of decoding in encoder and decoding together, which is to be below 10 %.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests" / "asr")]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

HEADER = ("batch, frames", "encoder ms", "recorded ms", "launched ms", "one by one ms", "decoding's share")
SHAPES = ((1, 250), (16, 250), (64, 250), (64, 750))
RATE = 0.2
GOAL = 0.1


def rows(device: str, smoke: bool) -> Iterator[tuple[str, ...]]:
    """Cells of each row. Raises ArithmeticError if the two ways differ, ImportError without the toolkit."""
    from asr.encoders import ConformerEncoderConfig
    from asr.joiner import JoinerConfig
    from asr.predictors import StatelessPredictorConfig
    from asr.transducer import Transducer, TransducerConfig

    dim, layers, vocab = (16, 1, 9) if smoke else (512, 16, 500)
    config = TransducerConfig(
        encoder=ConformerEncoderConfig(dim=dim, layers=layers, heads=4),
        predictor=StatelessPredictorConfig(dim=dim),
        joiner=JoinerConfig(dim=dim),
    )
    torch.manual_seed(0)
    model = Transducer(config, 80, vocab).eval().to(device)
    for shape in ((2, 12),) if smoke else SHAPES:
        yield row(model, *shape, device, 1 if smoke else 10)


@torch.inference_mode()
def row(model: torch.nn.Module, B: int, T: int, device: str, repeats: int) -> tuple[str, ...]:
    from naive_greedy import naive_greedy

    from asr.search import GreedySearch

    features = torch.randn(B, 4 * T, 80, device=device)
    feature_lengths = torch.full((B,), 4 * T, device=device)
    y, lengths, _ = model.encode(features, feature_lengths)
    steer(model, y)
    search = GreedySearch(model)
    state = search.initial_state(B, y.device)

    def recorded() -> list[object]:
        if y.is_cuda:
            return search(y, lengths, state).tokens
        # Where there is no GPU, the same buffers without the recording.
        run, frames = search.loop.run, model.joiner.encoder(y)
        search.loop.run = lambda chunk, streams: search.graphs.run(frames, chunk.lengths, streams)
        found = search(y, lengths, state).tokens
        search.loop.run = run
        return found

    unrecorded = GreedySearch(model, graphs=False)

    def launched() -> list[object]:
        return unrecorded(y, lengths, state).tokens

    a, b = recorded(), launched()
    if [[t[:3] for t in each] for each in a] != [[t[:3] for t in each] for each in b]:
        raise ArithmeticError("wrong: recorded steps find other labels than steps one by one")
    whole = y[0, : int(lengths[0])].cpu()
    on_cpu = model if device == "cpu" else None
    if on_cpu and [t[:3] for t in naive_greedy(on_cpu, whole, 8).tokens] != [t[:3] for t in a[0]]:
        raise ArithmeticError("wrong: the definition finds other labels")
    encoder = milliseconds(lambda: model.encode(features, feature_lengths), repeats)
    times = [milliseconds(way, repeats) for way in (recorded, launched)]
    one = GreedySearch(model, window=1, graphs=False)
    first = one.initial_state(1, y.device)

    def naive() -> None:
        one(y[:1], lengths[:1], first)

    slow = B * milliseconds(naive, max(1, repeats // 3))
    share = times[0] / (encoder + times[0])
    mark = f"{100 * share:.1f} %"
    if y.is_cuda:
        mark += f" ({'reached' if share <= GOAL else 'MISSED'}: goal {100 * GOAL:.0f} %)"
    return (f"{B}, {T}", *(f"{x:.3g}" for x in (encoder, *times, slow)), mark)


def steer(model: torch.nn.Module, y: Tensor) -> None:
    """Set the bias of blank so that, before a label was said, RATE of the frames would put out one."""
    with torch.no_grad():
        output = model.joiner.output
        output.bias[0] = 0
        g = model.joiner.predictor(y.new_zeros(1, 1, model.predictor.output_dim))
        logits = model.joiner.combine(model.joiner.encoder(y), g)
        lead = (logits[..., 1:].amax(dim=-1) - logits[..., 0]).float().flatten()
        output.bias[0] = torch.quantile(lead[:100_000], 1 - RATE)


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Median wall time, the device having finished."""
    times = []
    for _ in range(repeats + 1):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny, on a CPU if there is no GPU")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.smoke:
        sys.exit("gpu_search: expected a GPU, found none; --smoke runs the code without one")
    for cells in (
        HEADER,
        rows_line(),
        *rows("cuda" if torch.cuda.is_available() else "cpu", arguments.smoke),
    ):
        print("| " + " | ".join(cells) + " |", flush=True)


def rows_line() -> tuple[str, ...]:
    return ("---",) * len(HEADER)


if __name__ == "__main__":
    main()
