"""Is what is heard live what was measured on files? Five ways to hear a recording, compared.

    whole      features and encoder at once, under the mask of the stream
    chunks     a stream fed in equal pieces
    ragged     a stream fed in random pieces, from one sample to several seconds
    sessions   a batch of streams that start and stop at different times
    live       a session, fed a millisecond at a time

Encoder outputs have to agree to TOLERANCE, tokens have to be the same (a session shows only them). Besides,
what comes later than the stated latency changes nothing, neither the latency measured by disturbing single
samples nor that of the live session is above it, and the state of a stream stays as large as it was. The
mismatch of file and microphone is the fault that users of other toolkits report most; this is how it is kept
out, for a user's own model and recordings too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asr import state as states
from asr.audio import Samples
from asr.encoders import EncoderOutput
from asr.lengths import seconds_to_samples
from asr.pipeline import StreamState
from asr.recognizer import Recognizer, Transcript
from asr.search import Token, search_whole

TOLERANCE = 1e-4
"""Of the largest encoder output of the recording."""
LONGEST_PIECE_S = 3.0
LIVE_PIECE_S = 0.001


class Heard(NamedTuple):
    """What a recording gave."""

    encoded: Tensor
    """(T, E)"""
    tokens: list[Token]
    state_bytes: tuple[int, int]
    """Smallest and largest memory of the stream; zeros for the whole."""


@dataclass(frozen=True)
class Parity:
    """How far apart the ways to hear a recording are."""

    differences: dict[str, float]
    """Largest difference of encoder outputs to the whole, by way, relative to the largest output."""
    same_tokens: bool
    tokens: int
    moved_before: float
    """Largest difference of outputs that were given before a change was heard."""
    stated_latency_s: float
    measured_latency_s: float
    """From the start of an output's frame to the last sample that moves it."""
    live_latency_s: float
    """From the start of an output's frame to the samples with which a session gave it, at worst."""
    state_bytes: tuple[int, int]

    @property
    def faults(self) -> list[str]:
        """What is not as it should be, in words; empty if all is well."""
        found = [
            f"{way} differ from the whole by {difference:.1e} (at most {TOLERANCE:.0e} is rounding)"
            for way, difference in self.differences.items()
            if not difference <= TOLERANCE
        ]
        if not self.same_tokens:
            found.append("the ways to hear it give different tokens")
        if not self.moved_before <= TOLERANCE:
            found.append(f"what comes later than the latency moves outputs by {self.moved_before:.1e}")
        if self.measured_latency_s > self.stated_latency_s + 1e-6:
            found.append(
                f"outputs wait for {1000 * self.measured_latency_s:.1f} ms, stated are "
                f"{1000 * self.stated_latency_s:.1f} ms"
            )
        if self.live_latency_s > self.stated_latency_s + LIVE_PIECE_S + 1e-6:
            found.append(
                f"live, outputs come after {1000 * self.live_latency_s:.1f} ms, stated are "
                f"{1000 * self.stated_latency_s:.1f} ms"
            )
        if self.state_bytes[0] != self.state_bytes[1]:
            found.append(
                f"the state of the stream grows from {self.state_bytes[0]} to {self.state_bytes[1]} bytes"
            )
        return found


def check(recognizer: Recognizer, samples: Samples, *, seed: int = 0, chunk_s: float = 0.1) -> Parity:
    """Hear a recording (N,) at the model's rate in all ways; raises StreamingError if the model cannot.

    It is about what is said live, whatever final results are.
    """
    recognizer.network.encoder.require_streaming()
    recognizer = recognizer.with_finals("live")
    rng = random.Random(seed)
    size = seconds_to_samples(chunk_s, recognizer.sample_rate)
    whole = hear_whole(recognizer, samples)
    ways = {
        "chunks": hear_stream(recognizer, samples, [size] * (len(samples) // size + 1)),
        "ragged": hear_stream(recognizer, samples, list(_ragged(len(samples), recognizer.sample_rate, rng))),
    }
    parts = [samples, samples[: len(samples) // 2], samples[len(samples) // 3 :]]
    alone = [whole, *(hear_whole(recognizer, part) for part in parts[1:])]
    together = hear_sessions(recognizer, parts, rng)
    differences = {way: _difference(heard, whole) for way, heard in ways.items()}
    differences["sessions"] = max(_difference(x, y) for x, y in zip(together, alone, strict=True))
    pairs = [*((heard, whole) for heard in ways.values()), *zip(together, alone, strict=True)]
    same = all(_tokens(x.tokens) == _tokens(y.tokens) for x, y in pairs)
    live, live_latency_s = hear_live(recognizer, samples)
    same = same and _timed(live) == _timed(recognizer.transcript(whole.tokens, len(samples)))
    moved, latency_s = _disturbed(recognizer, samples, whole, rng)
    sizes = [size for heard in (*ways.values(), *together) for size in heard.state_bytes]
    return Parity(
        differences,
        same,
        len(whole.tokens),
        moved,
        recognizer.algorithmic_latency_s,
        latency_s,
        live_latency_s,
        (min(sizes), max(sizes)),
    )


@torch.inference_mode()
def hear_whole(recognizer: Recognizer, samples: Samples) -> Heard:
    """Features and encoder at once."""
    lengths = torch.tensor([len(samples)])
    features, feature_lengths, _ = recognizer.fbank(torch.from_numpy(samples)[None], lengths)
    encoded = recognizer.network.encode(features, feature_lengths)
    tokens = search_whole(recognizer.search, encoded).tokens[0]
    return Heard(encoded.y[0, : int(encoded.y_lengths[0])], tokens, (0, 0))


def hear_stream(recognizer: Recognizer, samples: Samples, pieces: Sequence[int]) -> Heard:
    """One stream, fed in pieces of so many samples."""
    stream, start = _Streams(recognizer, 1), 0
    for piece in pieces:
        stream.feed([0], [samples[start : start + piece]])
        start += piece
    return stream.finish(0)


def hear_sessions(recognizer: Recognizer, recordings: Sequence[Samples], rng: random.Random) -> list[Heard]:
    """Streams in one batch as long as they last; they start one after the other and feed what they like."""
    streams = _Streams(recognizer, len(recordings))
    positions, results = [0] * len(recordings), dict[int, Heard]()
    longest = seconds_to_samples(0.5, recognizer.sample_rate)
    tick = 0
    while len(results) < len(recordings):
        active = [i for i in range(len(recordings)) if i not in results and tick >= 3 * i]
        pieces = [recordings[i][positions[i] : positions[i] + rng.randint(0, longest)] for i in active]
        streams.feed(active, pieces)
        for i, piece in zip(active, pieces, strict=True):
            positions[i] += len(piece)
            if positions[i] == len(recordings[i]):
                results[i] = streams.finish(i)
        tick += 1
    return [results[i] for i in range(len(recordings))]


def hear_live(recognizer: Recognizer, samples: Samples) -> tuple[Transcript, float]:
    """What a session says, fed a millisecond at a time, and the seconds that its frames waited at worst."""
    session, rate = recognizer.stream(), recognizer.sample_rate
    size, frame_s = seconds_to_samples(LIVE_PIECE_S, rate), 1 / recognizer.network.encoder.frame_rate
    frames, waited_s = 0, 0.0
    for start in range(0, len(samples), size):
        session.feed(samples[start : start + size])
        if session.frames > frames:
            waited_s = max(waited_s, (start + size) / rate - frames * frame_s)
            frames = session.frames
    return session.finish()[-1].transcript, waited_s


class _Streams:
    """Live streams that are treated as one batch, whoever is active."""

    def __init__(self, recognizer: Recognizer, count: int) -> None:
        self._recognizer = recognizer
        self._states: list[StreamState] = states.split(recognizer.initial_state(count))
        self._encoded: list[list[Tensor]] = [[] for _ in range(count)]
        self._tokens: list[list[Token]] = [[] for _ in range(count)]
        self._sizes: list[list[int]] = [[states.bytes_per_stream(state)] for state in self._states]

    def feed(self, active: Sequence[int], pieces: Sequence[Samples]) -> None:
        """The next samples of some of the streams; none, too."""
        if not active:
            return
        lengths = torch.tensor([len(piece) for piece in pieces])
        batch = torch.zeros(len(pieces), int(lengths.max()))
        for row, piece in zip(batch, pieces, strict=True):
            row[: len(piece)] = torch.from_numpy(piece)
        step = self._recognizer.step(batch, lengths, states.stack([self._states[i] for i in active]))
        for i, state in zip(active, states.split(step.state), strict=True):
            self._states[i] = state
            self._sizes[i].append(states.bytes_per_stream(state))
        self._take(active, step.tokens, step.encoded)

    def finish(self, i: int) -> Heard:
        """End a stream."""
        flushed = self._recognizer.flush(self._states[i])
        self._take([i], flushed.tokens, flushed.encoded)
        sizes = min(self._sizes[i]), max(self._sizes[i])
        return Heard(torch.cat(self._encoded[i]), self._tokens[i], sizes)

    def _take(
        self, active: Sequence[int], tokens: list[list[Token]], encoded: Sequence[EncoderOutput]
    ) -> None:
        for row, i in enumerate(active):
            self._tokens[i] += tokens[row]
            self._encoded[i] += [part.y[row, : int(part.y_lengths[row])] for part in encoded]


def _ragged(samples: int, sample_rate: int, rng: random.Random) -> Iterator[int]:
    """Pieces from one sample to several seconds, short ones as often as long ones."""
    longest = np.log(LONGEST_PIECE_S * sample_rate)
    while samples > 0:
        piece = min(samples, max(1, round(float(np.exp(rng.uniform(0, longest))))))
        samples -= piece
        yield piece


def _difference(heard: Heard, whole: Heard) -> float:
    """Largest difference of the encoder outputs, relative to the largest of them."""
    if heard.encoded.shape != whole.encoded.shape:
        return float("inf")
    if whole.encoded.numel() == 0:
        return 0.0
    return float((heard.encoded - whole.encoded).abs().max() / whole.encoded.abs().max())


def _tokens(tokens: Sequence[Token]) -> list[tuple[int, int]]:
    return [(token.id, token.frame) for token in tokens]


def _timed(transcript: Transcript) -> list[tuple[str, float]]:
    return [(token.piece, token.start_s) for token in transcript.tokens]


def _disturbed(
    recognizer: Recognizer, samples: Samples, whole: Heard, rng: random.Random, places: int = 24
) -> tuple[float, float]:
    """Disturb single samples: the largest move of an output that was given before, and the latency.

    The latency is the longest that the start of an output's frame lies before a sample that moved it.
    """
    encoder, rate = recognizer.network.encoder, recognizer.sample_rate
    frame_s, stated_s = 1 / encoder.frame_rate, recognizer.algorithmic_latency_s
    size = float(whole.encoded.abs().max()) if whole.encoded.numel() else 1.0
    before, latency_s = 0.0, 0.0
    # The latency of chunks depends on the place in the chunk: samples next to where outputs become due too.
    period = encoder.chunk_frames * encoder.frame_shift_s
    due = [stated_s + k * period for k in range(1, int((len(samples) / rate - stated_s) / period))]
    chosen = [int(t * rate) - rng.randint(0, 30) for t in rng.sample(due, min(len(due), places // 2))]
    chosen += [rng.randrange(len(samples)) for _ in range(places - len(chosen))] if len(samples) else []
    for place in chosen:
        changed = samples.copy()
        changed[place] += 0.5
        moved = (hear_whole(recognizer, changed).encoded - whole.encoded).abs().amax(dim=1) / size
        # An output with frame start s has heard all it needs by s + latency.
        heard = torch.arange(len(moved)) * frame_s + stated_s <= place / rate
        before = max(before, float(moved[heard].max()) if bool(heard.any()) else 0.0)
        first = (moved > TOLERANCE).nonzero()
        if len(first) > 0:
            latency_s = max(latency_s, place / rate - float(first[0]) * frame_s)
    return before, latency_s
