"""The loop of greedy transducer search: from label to label, all streams of a batch at once.

Between two labels the predictor does not move, so a stream can look at several frames in one go: the joiner's
output layer is one matrix product over a window of frames of every stream. In the window a stream passes from
blank to blank, by what each consumes, until it meets a label or the end of the window, of the chunk (`look`).
All streams that met one put it out together and take one predictor step (`advance`). A stream's next window
begins where it stopped, whatever the others do.

This is the label-looping of Xu et al., *Label-looping: highly efficient decoding for transducers* (2024),
save that streams that met no label do not hold up those that did. What is found does not depend on the
window.

A step, `look` and `advance`, is a function of tensors of fixed shapes which asks for none of their values: it
can be captured in a CUDA graph (asr.search.label_graph).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asr import state as states
from asr.search.confidence import PLAIN, ConfidenceConfig
from asr.transducer import Transducer


@dataclass(frozen=True)
class Streams:
    """Where the streams are between two steps, batch-first."""

    predictor: Any
    """Predictor state after the labels so far."""
    projected: Tensor
    """(B, J) predictor output after the last label, projected for the joiner."""
    position: Tensor
    """(B,) int64 the frame of the chunk that comes next; beyond its length if the last symbol goes on."""
    count: Tensor
    """(B,) int64 labels that were put out on that frame."""
    held: Tensor
    """(B,) int64 the symbol of the frame before if it may be held on (CTC topology), else blank."""
    truncated: Tensor
    """(B,) int64 frames of this chunk given up because the bound on labels was reached."""


class Chunk(NamedTuple):
    """Encoder frames to search, the same for all steps."""

    frames: Tensor
    """(N, J) of all streams, projected for the joiner."""
    first: Tensor
    """(B, 1) int64 index of the first frame of each stream."""
    lengths: Tensor
    """(B,) int64."""
    ahead: Tensor
    """int64 0, 1, 2, ... as far as a blank can lead from within a window."""
    consumes: Tensor
    """int64 frames that each symbol consumes, or, where they are predicted, each duration."""


class Emissions(NamedTuple):
    """Labels that were put out: (B,) by a step, (B, N) by all of them, a stream's in order."""

    emits: Tensor
    """bool, where there is one; the rest is anything where there is none."""
    label: Tensor
    """int64."""
    position: Tensor
    """int64 frame in the chunk."""
    consumed: Tensor | None
    """int64 frames; None where they are not predicted."""
    log_prob: Tensor
    """float32."""
    log_confidence: Tensor | None
    """float32; None where it is the probability."""


class Searched(NamedTuple):
    """What a step brings, or all of them."""

    streams: Streams
    emissions: Emissions


class _Window(NamedTuple):
    """The best symbols of the frames ahead."""

    logits: Tensor
    """(B, W, V) of the symbols."""
    symbol: Tensor
    """(B, W) int64."""
    consumes: Tensor | int
    """(B, W) int64 frames; if all blanks consume one, and labels are not told, just that."""


class _Seen(NamedTuple):
    """What stopped each stream in its window."""

    moved: Tensor
    """(B,) int64 frames passed."""
    emits: Tensor
    """(B,) bool, whether it was a label."""
    label: Tensor
    """(B,) int64, a blank or anything if it was not."""
    consumed: Tensor | int
    """(B,) int64 frames that the label consumes."""
    log_prob: Tensor
    """(B,) float32 of the label."""
    log_confidence: Tensor | None
    """(B,) float32 of the label; None where it is the probability."""
    held: Tensor
    """(B,) int64 see `Streams.held`."""


class LabelLoop:
    """The steps of a model, for every topology; the tensors are the caller's."""

    def __init__(
        self, model: Transducer, max_symbols: int, window: int, confidence: ConfidenceConfig = PLAIN
    ) -> None:
        self.model, self.max_symbols, self.window = model, max_symbols, window
        self.confidence = confidence
        topology, blank, vocab_size = model.topology, model.blank, model.vocab_size
        labels = [arc.frames for arc in topology.arcs if arc.kind == "label"]
        blanks = {arc.symbol: arc.frames for arc in topology.arcs if arc.kind in ("blank", "big blank")}
        self.label_consumes = max(labels)
        """Frames of a label, where they are not predicted."""
        self.longest = max(arc.frames for arc in topology.arcs if arc.kind in ("blank", "big blank"))
        """Most frames of a blank."""
        self.labels_per_frame = max_symbols * (min(labels) == 0) + (max(labels) > 0)
        """Most labels that are put out on a frame: those that stay there are bounded, one may leave."""
        if topology.durations:
            self._consumes = labels
        else:
            self._consumes = [blanks[0] if id == blank else labels[0] for id in range(vocab_size)]
            self._consumes += [blanks[2 + i] for i in range(topology.big_blanks)]

    @property
    def predicts_frames(self) -> bool:
        """Whether labels differ in the frames that they consume, which then are told."""
        return self.model.topology.durations > 0

    @property
    def measures(self) -> bool:
        """Whether confidences are other than probabilities, and told."""
        return self.confidence.measure != "probability"

    def weights(self) -> Iterator[Tensor]:
        """What the steps read of the model."""
        yield from self.model.predictor.parameters()
        yield from self.model.joiner.parameters()

    def chunk(self, frames: Tensor, first: Tensor, lengths: Tensor) -> Chunk:
        """Projected frames (N, J), of which `lengths` (B,) belong to each stream, from `first` (B,) on."""
        device = frames.device
        ahead = torch.arange(self.window + self.longest, device=device)
        return Chunk(frames, first[:, None], lengths, ahead, torch.tensor(self._consumes, device=device))

    def packed(self, encoded: Tensor, lengths: Tensor) -> Chunk:
        """The valid ones alone of encoder frames (B, T, E), stream after stream."""
        there = torch.arange(encoded.shape[1], device=encoded.device) < lengths[:, None]
        return self.chunk(self.model.joiner.encoder(encoded[there]), lengths.cumsum(0) - lengths, lengths)

    def searching(self, chunk: Chunk, streams: Streams) -> Tensor:
        """() bool: whether any stream has frames left."""
        return (streams.position < chunk.lengths).any()

    def run(self, chunk: Chunk, streams: Streams) -> Searched:
        """Search a chunk with frames left to its end, for which it asks after every step."""
        found: list[Emissions] = []
        while not found or bool(self.searching(chunk, streams)):
            seen = self.look(chunk, streams)
            streams, emissions = self.advance(seen, streams, predict=bool(seen.emits.any()))
            found.append(emissions)
        return Searched(streams, _side_by_side(found))

    def step(self, chunk: Chunk, streams: Streams) -> Searched:
        """One window and at most one label for every stream; nothing happens to those that have ended."""
        return self.advance(self.look(chunk, streams), streams)

    def look(self, chunk: Chunk, streams: Streams) -> _Seen:
        """What stops each stream within its window."""
        topology, blank, W = self.model.topology, self.model.blank, self.window
        ahead, end = chunk.ahead[:W], (chunk.lengths - streams.position).clamp(0, W)
        logits, symbol, consumes = self._ahead(chunk, streams)
        stops = symbol != blank
        if topology.big_blanks:
            stops &= symbol < self.model.vocab_size
        if topology.repeats:
            stops &= symbol != torch.cat((streams.held[:, None], symbol[:, :-1]), dim=1)
        if self.longest == 1:
            moved = ahead.where(stops, W).amin(dim=1).minimum(end)
        else:
            moved = self._jump(chunk, consumes, stops | (ahead >= end[:, None]))
        emits = moved < end
        at = moved.clamp(max=W - 1)[:, None]
        label = symbol.gather(1, at)[:, 0]
        if topology.big_blanks:
            label = label.where(emits, blank)  # the predictor knows no big blanks
        log_probs = logits.gather(1, at[..., None].expand(-1, -1, logits.shape[2]))[:, 0].log_softmax(dim=-1)
        told = self.predicts_frames
        return _Seen(
            moved,
            emits,
            label,
            consumes.gather(1, at)[:, 0] if isinstance(consumes, Tensor) and told else self.label_consumes,
            log_probs.gather(1, label[:, None])[:, 0],
            self.confidence.log_confidences(log_probs).gather(1, label[:, None])[:, 0]
            if self.measures
            else None,
            self._held(streams, symbol, moved, emits),
        )

    def _ahead(self, chunk: Chunk, streams: Streams) -> _Window:
        """The best symbols of the next frames, should nothing be put out before them."""
        topology = self.model.topology
        place = streams.position[:, None] + chunk.first + chunk.ahead[: self.window]
        frames = chunk.frames.index_select(0, place.clamp(max=len(chunk.frames) - 1).flatten())
        both = self.model.joiner.combine(frames.view(*place.shape, -1), streams.projected[:, None]).float()
        logits = both[..., : both.shape[2] - topology.durations]
        symbol = logits.argmax(dim=-1)
        if topology.durations:
            # Blank always consumes a frame.
            least = (symbol == self.model.blank).long()
            predicted = both[..., logits.shape[2] :].argmax(dim=-1)
            return _Window(logits, symbol, chunk.consumes[predicted].maximum(least))
        return _Window(logits, symbol, chunk.consumes[symbol] if topology.big_blanks else 1)

    def _jump(self, chunk: Chunk, consumes: Tensor | int, stops: Tensor) -> Tensor:
        """(B,) where the first frame of each window leads, frame by frame as each `consumes`, to a stop."""
        W, beyond = self.window, chunk.ahead[self.window :].expand(len(stops), -1)
        to = torch.cat((torch.where(stops, 0, consumes) + chunk.ahead[:W], beyond), dim=1)
        # Each round doubles the number of blanks that are passed.
        for _ in range((W - 1).bit_length()):
            to = to.gather(1, to)
        return to[:, 0]

    def _held(self, streams: Streams, symbol: Tensor, moved: Tensor, emits: Tensor) -> Tensor:
        """(B,) the symbol of the last frame that was passed or consumed."""
        if not self.model.topology.repeats:
            return streams.held
        last = (moved - 1 + emits.long())[:, None]
        return torch.where(last[:, 0] < 0, streams.held, symbol.gather(1, last.clamp(min=0))[:, 0])

    def advance(self, seen: _Seen, streams: Streams, predict: bool = True) -> Searched:
        """The streams after what they saw, and what they put out.

        Without `predict` the predictor is left alone, for when no stream emits.
        """
        emits, consumed, position = seen.emits, seen.consumed, streams.position + seen.moved
        count, truncated, after = streams.count, streams.truncated, position
        if not isinstance(consumed, Tensor) and consumed > 0:
            after = after + consumed * emits
        else:
            # What consumes no frame is bounded; the frame is given up where the bound bites.
            stays = emits & (consumed == 0) if isinstance(consumed, Tensor) else emits
            count = count * (seen.moved == 0)
            over = stays & (count >= self.max_symbols)
            emits, stays = emits ^ over, stays ^ over
            count, truncated, after = (count + 1) * stays, truncated + over, after + over
            if isinstance(consumed, Tensor):
                after = after + consumed * emits
        predictor, projected = streams.predictor, streams.projected
        if predict:
            predictor, projected = self.extend(predictor, projected, seen.label, emits)
        return Searched(
            Streams(predictor, projected, after, count, seen.held, truncated),
            Emissions(
                emits,
                seen.label,
                position,
                consumed if isinstance(consumed, Tensor) else None,
                seen.log_prob,
                seen.log_confidence,
            ),
        )

    def extend(self, predictor: Any, projected: Tensor, label: Tensor, emits: Tensor) -> tuple[Any, Tensor]:
        """Predictor state and projection after `label` (B,) in the streams that emit; the others stay."""
        y, advanced = self.model.predictor(label[:, None], predictor)
        moved = states.where(emits, advanced, predictor)
        return moved, torch.where(emits[:, None], self.model.joiner.predictor(y[:, 0]), projected)


def _side_by_side(steps: Sequence[Emissions]) -> Emissions:
    """(B, N) of N steps, one at least."""
    columns = zip(*steps, strict=True)
    return Emissions._make(None if each[0] is None else torch.stack(each, dim=1) for each in columns)
