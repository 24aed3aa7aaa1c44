"""The label loop on a GPU: steps recorded in a CUDA graph and replayed until all streams have ended.

A step of the loop is some fifty small kernels, which take longer to launch one by one than to run. Recorded
once in buffers that stay where they are, STEPS of them are one launch; only then does the host ask whether
any stream has frames left, and steps of streams that have ended change nothing.

Sizes are rounded up to powers of two, so that few graphs serve all batches; streams that are too many have no
frames.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from asr import state as states
from asr.search.label_loop import Emissions, LabelLoop, Searched, Streams

STEPS = 8
"""Steps between two questions of the host."""
LEAST_FRAMES = 16
"""A smaller chunk gets the buffers of one of so many frames."""
KEPT = 4
"""Graphs of different sizes that are kept, the last ones used."""


class Buffers:
    """Room for the search of `batch` streams over chunks of up to `frames` frames, and steps within it."""

    def __init__(self, loop: LabelLoop, batch: int, frames: int, like: Streams) -> None:
        self.loop, self.batch, self.frames = loop, batch, frames
        device, width = like.projected.device, like.projected.shape[1]
        self.streams = states.map_tensors(lambda x: x.new_zeros(batch, *x.shape[1:]), like)
        self.encoded = like.projected.new_zeros(batch, frames, width)
        lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        first = torch.arange(0, batch * frames, frames, device=device)
        self.chunk = loop.chunk(self.encoded.view(-1, width), first, lengths)
        # What a stream puts out that has put out all it can would be written behind.
        shape = batch, frames * loop.labels_per_frame + 1

        def room(dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        consumed = room(torch.int64) if loop.predicts_frames else None
        sure = room(torch.float32) if loop.measures else None
        self.found = Emissions(
            room(torch.bool), room(torch.int64), room(torch.int64), consumed, room(torch.float32), sure
        )
        self.count = lengths.new_zeros(batch, 1)
        """Labels found."""
        self.searching = torch.zeros((), dtype=torch.bool, device=device)

    def advance(self) -> None:
        """Go on by STEPS steps, in place."""
        streams = self.streams
        for _ in range(STEPS):
            streams, new = self.loop.step(self.chunk, streams)
            for kept, column in zip(self.found, new, strict=True):
                if kept is not None and column is not None:
                    # A stream that does not emit writes where its next label will be written.
                    kept.scatter_(1, self.count, column[:, None])
            self.count += new.emits[:, None]
        states.map_tensors(Tensor.copy_, self.streams, streams)
        self.searching.copy_(self.loop.searching(self.chunk, self.streams))

    def run(self, encoded: Tensor, lengths: Tensor, streams: Streams, advance: Callable[[], Any]) -> Searched:
        """Search projected frames (B, T, J), calling `advance` (or the replay of it) as often as it takes."""
        B, T, _ = encoded.shape
        self.encoded[:B, :T].copy_(encoded)
        self.chunk.lengths.zero_()[:B].copy_(lengths)
        states.map_tensors(lambda to, new: to[:B].copy_(new), self.streams, streams)
        self.count.zero_()
        self.found.emits.zero_()
        advance()
        while bool(self.searching):
            advance()
        most = int(self.count.max())
        columns = (None if x is None else x[:B, :most].clone() for x in self.found)
        return Searched(states.map_tensors(lambda x: x[:B].clone(), self.streams), Emissions._make(columns))


class LabelGraphs:
    """The loop's CUDA graphs of the sizes that were last asked for.

    One thread at a time uses them; threads that take turns must use one CUDA stream.
    """

    def __init__(self, loop: LabelLoop) -> None:
        self.loop = loop
        self._kept: OrderedDict[Any, tuple[Buffers, Callable[[], Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, encoded: Tensor, lengths: Tensor, streams: Streams) -> Searched:
        """Search projected frames (B, T, J), B and T at least 1, as LabelLoop.run does."""
        with self._lock:
            buffers, advance = self._find(encoded, streams)
            return buffers.run(encoded, lengths, streams, advance)

    def _find(self, encoded: Tensor, streams: Streams) -> tuple[Buffers, Callable[[], Any]]:
        batch, frames = power_of_two(encoded.shape[0]), power_of_two(max(LEAST_FRAMES, encoded.shape[1]))
        # A graph reads the weights where they were when it was recorded.
        weights = tuple(x.data_ptr() for x in self.loop.weights())
        key = batch, frames, encoded.dtype, encoded.device, weights
        if key not in self._kept:
            while len(self._kept) >= KEPT:
                self._kept.popitem(last=False)
            buffers = Buffers(self.loop, batch, frames, streams)
            self._kept[key] = buffers, record(buffers.advance) if encoded.is_cuda else buffers.advance
        self._kept.move_to_end(key)
        return self._kept[key]


def record(advance: Callable[[], Any]) -> Callable[[], Any]:
    """`advance` as the replay of a CUDA graph."""
    here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        advance()  # libraries set themselves up at the first call, which cannot be recorded
    here.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the GPU meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        advance()
    return graph.replay


def power_of_two(number: int) -> int:
    """The least that is not below a number from 1 on."""
    return 1 << (number - 1).bit_length()
