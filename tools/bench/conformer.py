"""The Conformer: training beside torchaudio's, live streams on one thread, memory of long utterances.

    python tools/bench/conformer.py                     # all three
    python tools/bench/conformer.py --only streaming --profile

Training: full context, forward and backward of the sum of squares, from features (8, 1200, 80) of uneven
lengths, torch's threads as they are. The peer is torchaudio.models.Conformer of the same width, depth, heads
and kernel behind the same subsampling; it has no positions, batch normalisation where ours has layer
normalisation, and dropout on the attention weights too. The contestants take turns; memory is the peak
resident size of one step above the size before it.

Streaming: chunks of 320 ms with 2.56 s of history, features in, encoder frames out; the real-time factor is
that of one session. Before it is timed, chunks must give what the whole gives, to 1e-4. The peer is
torchaudio.models.Emformer of about the same number of parameters, on segments of the same length and
history.

Memory: one training step of a transducer with the same encoder and 500 symbols on one long utterance, loss
and gradients included, weights not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from typing import Any

import torch
from measure import extra_memory, peak_above, turns
from streams import agree, step_times
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torchaudio.models import Conformer, Emformer

from asr.data.batch import Batch
from asr.encoders import ConformerEncoderConfig, build_encoder
from asr.encoders.base import Encoder
from asr.layers.context import ContextConfig
from asr.layers.subsampling import Subsampling, SubsamplingConfig
from asr.train.metrics import Stopwatch
from asr.train.step import train_batch
from asr.transducer import Transducer, TransducerConfig

BINS, SHIFT_S = 80, 0.01
LIVE = ContextConfig(chunk=8, left_chunks=8)
CHUNK_S = 0.32


class Peer(nn.Module):
    """torchaudio's Conformer behind our subsampling."""

    def __init__(self, config: ConformerEncoderConfig) -> None:
        super().__init__()
        self.subsample = Subsampling(config.subsampling, BINS, config.dim)
        self.conformer = Conformer(
            config.dim,
            config.heads,
            config.expansion * config.dim,
            config.layers,
            config.kernel,
            dropout=config.dropout,
        )

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y, lengths, _ = self.subsample(x, lengths, None)
        return self.conformer(y[:, : int(lengths.max())], lengths)[0]


def parameters(module: nn.Module) -> int:
    return sum(x.numel() for x in module.parameters())


def training(repeats: int) -> None:
    print(f"training step, {torch.get_num_threads()} threads")
    x, lengths = torch.randn(8, 1200, BINS), torch.linspace(700, 1200, 8).long()
    for dim, layers, kernel, dropout in ((144, 16, 31, 0.1), (256, 8, 15, 0.1), (256, 8, 15, 0.0)):
        config = ConformerEncoderConfig(
            dim=dim,
            heads=4,
            layers=layers,
            kernel=kernel,
            dropout=dropout,
            subsampling=SubsamplingConfig(channels=dim),
        )
        torch.manual_seed(0)
        ours, peer = build_encoder(config, BINS, SHIFT_S), Peer(config)
        modules = {"ours": ours, "torchaudio": peer}
        losses = [
            lambda ours=ours: ours(x, lengths).y.square().sum(),
            lambda peer=peer: peer(x, lengths).square().sum(),
        ]
        sizes = [parameters(module) for module in modules.values()]
        assert abs(sizes[0] / sizes[1] - 1) < 0.02, sizes
        weights = [*ours.parameters(), *peer.parameters()]
        turns(losses, weights, 2)  # warms up
        times = turns(losses, weights, repeats)
        memory = [extra_memory(loss, weights, 3) for loss in losses]
        print(
            f"  width {dim}, {layers} layers, kernel {kernel}, dropout {dropout:g}, "
            f"{sizes[0] / 1e6:.1f} M parameters"
        )
        for name, seconds, size in zip(modules, times, memory, strict=True):
            print(f"    {name:<11}{seconds:7.3f} s  {size / 1e6:6.0f} MB")
        print(f"    ours takes {times[0] / times[1]:.2f}x the time, {memory[0] / memory[1]:.2f}x the memory")


def of_30_million(**options: object) -> ConformerEncoderConfig:
    subsampling = SubsamplingConfig(channels=320)
    return ConformerEncoderConfig(dim=320, heads=8, layers=12, kernel=9, subsampling=subsampling, **options)


@torch.inference_mode()
def streaming(repeats: int, profiled: bool) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = build_encoder(of_30_million(contexts=(LIVE,)), BINS, SHIFT_S).eval()
    emformer = Emformer(320, 8, 1280, 21, LIVE.chunk, left_context_length=LIVE.history).eval()
    print(
        f"streaming step, 1 thread, chunks of {1000 * CHUNK_S:.0f} ms, "
        f"{parameters(encoder) / 1e6:.1f} M parameters (Emformer {parameters(emformer) / 1e6:.1f} M)"
    )
    agree(encoder)
    for batch in (1, 8):
        times = chunk_times(encoder, batch, repeats)
        seconds = statistics.median(times)
        late = sorted(times)[int(0.95 * len(times))]
        peer = statistics.median(emformer_times(emformer, batch, repeats))
        print(
            f"  batch {batch}: {1000 * seconds:5.1f} ms per chunk (95 % within {1000 * late:.1f}), real-time "
            f"factor of a session {seconds / CHUNK_S / batch:.3f}; Emformer {1000 * peer:.1f} ms"
        )
    if profiled:
        with profile(activities=[ProfilerActivity.CPU]) as found:
            chunk_times(encoder, 1, 20)
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
    torch.set_num_threads(threads)


def chunk_times(encoder: Encoder, batch: int, chunks: int) -> list[float]:
    x, lengths = torch.randn(batch, 32, BINS), torch.full((batch,), 32)

    def hear(state: Any) -> Any:
        y, _, state = encoder(x, lengths, state)
        assert y.shape[1] == LIVE.chunk
        return state

    return step_times(hear, encoder.initial_state(batch), chunks)


def emformer_times(emformer: Emformer, batch: int, chunks: int) -> list[float]:
    x, lengths = torch.randn(batch, LIVE.chunk, 320), torch.full((batch,), LIVE.chunk)
    return step_times(lambda state: emformer.infer(x, lengths, state)[2], None, chunks)


def memory() -> None:
    print("peak memory of a training step on one utterance, MB, and its seconds")
    for seconds, labels in ((10, 40), (30, 120), (60, 240)):
        T = round(seconds / SHIFT_S)
        batch = Batch(
            ("long",),
            torch.randn(1, T, BINS),
            torch.tensor([T]),
            ("",),
            torch.randint(1, 500, (1, labels)),
            torch.tensor([labels]),
            float(seconds),
        )
        for precision in ("float32", "bfloat16"):
            for checkpointing in (False, True):
                torch.manual_seed(0)
                encoder = of_30_million(checkpointing=checkpointing)
                network = Transducer(TransducerConfig(encoder=encoder), BINS, 500, SHIFT_S).train()
                train = partial(train_batch, network, batch, precision=precision, clock=Stopwatch())
                train()
                start = time.perf_counter()
                train()
                taken = time.perf_counter() - start
                peak = statistics.median(peak_above(train, list(network.parameters())) for _ in range(3))
                print(
                    f"  {seconds:3} s, {precision:8} {'checkpointing' if checkpointing else 'all kept':13} "
                    f"{peak / 1e6:6.0f} MB  {taken:5.2f} s"
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["training", "streaming", "memory"])
    parser.add_argument("--repeats", type=int, default=5, help="training steps; ten times as many chunks")
    parser.add_argument("--profile", action="store_true", help="where the time of a chunk goes")
    arguments = parser.parse_args()
    if arguments.only in (None, "training"):
        training(arguments.repeats)
    if arguments.only in (None, "streaming"):
        streaming(10 * arguments.repeats, arguments.profile)
    if arguments.only in (None, "memory"):
        memory()


if __name__ == "__main__":
    main()
