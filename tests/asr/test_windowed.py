"""Windows that overlap: exact where the context fits, by their definition elsewhere; one search over all."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

import asr
from asr import state as states
from asr.data.manifests import file_recording, make_cut, write_cuts
from asr.encoders import (
    ConformerEncoderConfig,
    Encoder,
    EncoderConfig,
    EncoderOutput,
    LstmEncoderConfig,
    RecurrentEncoderConfig,
    WhisperEncoderConfig,
    WindowConfig,
    WindowedEncoder,
    build_encoder,
)
from asr.errors import ConfigError
from asr.evaluate import windows_lines
from asr.layers.context import ContextConfig
from asr.layers.subsampling import SubsamplingConfig
from asr.recognizer import Recognizer, Transcript
from asr.search import SearchConfig, search_whole

BINS, RATE = 6, 8000
HALF = SubsamplingConfig(factor=2)


def conformer(**options: Any) -> ConformerEncoderConfig:
    sizes = {"dim": 16, "heads": 2, "layers": 2, "kernel": 5, "subsampling": HALF}
    return ConformerEncoderConfig(**{**sizes, **options})


REMEMBERS_ALL = (ContextConfig(chunk=4),)
WHOLE = {
    "conformer": conformer(),
    "conformer-funnel": conformer(pool_after=(1,), positions="relative"),
    "conformer-chunks": conformer(contexts=REMEMBERS_ALL),
    "lstm": LstmEncoderConfig(hidden=8, layers=2, bidirectional=True),
    "recurrent": RecurrentEncoderConfig(
        mixer={"kind": "min_gru"}, dim=16, layers=2, subsampling=HALF, bidirectional=True
    ),
    "whisper": WhisperEncoderConfig(contexts=(ContextConfig(),), dim=16, heads=2, layers=2),
}


def build(config: EncoderConfig) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(config, BINS, 0.01).eval()


def without_attention(encoder: Any) -> Any:
    """Its convolutions are left, which hear a few frames on either side."""
    for layer in encoder.layers:
        nn.init.zeros_(layer.attention.out.weight)
        nn.init.zeros_(layer.attention.out.bias)
    return encoder


def farthest(windowed: WindowedEncoder, whole: Encoder, seed: int = 0) -> float:
    """The largest difference between what both answer to some signals."""
    lengths = torch.tensor([500, 1, 0, 321, 77])
    x = torch.randn(5, 500, BINS, generator=torch.Generator().manual_seed(seed))
    found, expected = windowed(x, lengths), whole(x, lengths)
    assert found.y_lengths.tolist() == expected.y_lengths.tolist()
    rows = enumerate(expected.y_lengths.tolist())
    return max(float((found.y[b, :n] - expected.y[b, :n]).abs().max()) for b, n in rows if n)


@torch.no_grad()
@pytest.mark.parametrize("length_s", [0.5, 0.77, 2.0])
def test_where_the_context_fits_the_whole_is_found(length_s: float) -> None:
    """Two layers hear two outputs each on either side, the subsampling one: five outputs of 20 ms."""
    encoder = without_attention(build(conformer()))
    assert farthest(WindowedEncoder(encoder, WindowConfig(length_s=length_s, overlap_s=0.2)), encoder) < 1e-5
    too_short = WindowedEncoder(encoder, WindowConfig(length_s=length_s, overlap_s=0.16))
    assert too_short.side_outputs == 4
    assert farthest(too_short, encoder) > 1e-3


@torch.no_grad()
def test_windows_begin_on_whole_chunks() -> None:
    """Where a convolution keeps to its chunk: chunks of 4 outputs of 20 ms, and windows of anything."""
    encoder = without_attention(build(conformer(contexts=REMEMBERS_ALL)))
    for length_s in (0.5, 0.53, 0.61):
        windowed = WindowedEncoder(encoder, WindowConfig(length_s=length_s, overlap_s=0.3))
        assert windowed.side_outputs % 4 == windowed.step_outputs % 4 == 0
        assert farthest(windowed, encoder) < 1e-5


def by_definition(encoder: Encoder, x: Tensor, step: int, side: int) -> Tensor:
    """(T', E) of a signal (T, D): every window by itself, as the module's first lines have it."""
    parts, factor = [], encoder.subsampling
    outputs = math.ceil(len(x) / factor)
    for first in range(0, outputs, step):
        begin, last = max(0, first - side), first + step + side >= len(x) / factor
        heard = x[begin * factor : None if last else (first + step + side) * factor]
        y = encoder(heard[None], torch.tensor([len(heard)])).y[0]
        if last and first + step + side > len(x) / factor:
            return torch.cat([*parts, y[first - begin : outputs - begin]])
        parts.append(y[first - begin : first - begin + step])
    return torch.cat(parts) if parts else x.new_zeros(0, encoder.output_dim)


@torch.no_grad()
@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("overlap_s", [0.0, 0.16, 0.64])
def test_windows_are_what_they_are_said_to_be(name: str, overlap_s: float) -> None:
    """Of streams of any raggedness in a batch, in any chunking, and of signals that are given whole."""
    encoder = build(WHOLE[name])
    windowed = WindowedEncoder(encoder, WindowConfig(length_s=0.96, overlap_s=overlap_s))
    windowed.together = 2
    step, side, factor = windowed.step_outputs, windowed.side_outputs, windowed.subsampling
    assert (step + 2 * side) * factor == windowed.window_frames == 96
    lengths = [0, 1, 96, (2 * step + side) * factor, (2 * step + side) * factor - 1, 411]
    x = torch.randn(len(lengths), 411, BINS)
    expected = [by_definition(encoder, x[b, :n], step, side) for b, n in enumerate(lengths)]
    whole = windowed(x, torch.tensor(lengths))
    rng, state, position = random.Random(0), windowed.initial_state(len(lengths)), [0] * len(lengths)
    parts, sizes = [[] for _ in lengths], set()
    while position != lengths:
        new = [min(rng.choice([0, 1, 7, 96, 150]), n - p) for p, n in zip(position, lengths, strict=True)]
        chunk = torch.full((len(lengths), max(new), BINS), torch.nan)
        for b, count in enumerate(new):
            chunk[b, :count] = x[b, position[b] : position[b] + count]
            position[b] += count
        y, y_lengths, state = windowed(chunk, torch.tensor(new), state)
        sizes.add(states.bytes_per_stream(state))
        for b, n in enumerate(y_lengths.tolist()):
            parts[b].append(y[b, :n])
    y, y_lengths, _ = windowed.flush(state)
    assert len(sizes) == 1
    for b, n in enumerate(y_lengths.tolist()):
        live = torch.cat([*parts[b], y[b, :n]])
        torch.testing.assert_close(live, expected[b], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(whole.y[b, : whole.y_lengths[b]], expected[b], rtol=1e-4, atol=1e-4)
    for b, n in enumerate(lengths):
        alone = windowed(x[b : b + 1, :n], torch.tensor([n]))
        torch.testing.assert_close(alone.y[0, : alone.y_lengths[0]], expected[b], rtol=1e-4, atol=1e-4)
    assert windowed(x[:0], torch.zeros(0, dtype=torch.int64)).y_lengths.tolist() == []


@torch.no_grad()
def test_a_longer_overlap_comes_nearer() -> None:
    encoder = build(LstmEncoderConfig(hidden=8, layers=2, bidirectional=True))
    errors = [
        farthest(WindowedEncoder(encoder, WindowConfig(length_s=2.0, overlap_s=overlap_s)), encoder)
        for overlap_s in (0.0, 0.4, 0.8, 1.6)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] < errors[0] / 4


def tokens(transcript: Transcript) -> list[tuple[str, float, float, float]]:
    return [
        (t.piece, round(t.start_s, 6), round(t.end_s, 6), pytest.approx(t.confidence, abs=1e-4))
        for t in transcript.tokens
    ]


SEARCHES = {
    "greedy": ("transducer", SearchConfig()),
    "beam": ("transducer", SearchConfig(method="beam", beam=3)),
    "ctc": ("ctc", SearchConfig()),
    "ctc-beam": ("ctc", SearchConfig(method="beam", beam=3)),
}


@pytest.fixture(params=SEARCHES)
def recognizer(request: pytest.FixtureRequest, make_model) -> Recognizer:
    """A Conformer in full context whose frames hear five others on either side, of 40 ms."""
    kind, search = SEARCHES[request.param]
    config = ConformerEncoderConfig(dim=24, heads=2, layers=2, kernel=5)
    found = asr.load(make_model(kind=kind, encoder=config, seed=1), search=search)
    without_attention(found.network.encoder)
    if found.network.ctc is not None:
        found.network.ctc.bias.data[0] -= 12  # random weights would say nothing
    else:
        found.network.joiner.output.weight.data *= 0.5  # or alignments are equally certain but for rounding
    return found


def test_nothing_is_lost_or_doubled_between_windows(recognizer: Recognizer, speech_like) -> None:
    samples = speech_like(7.3)
    whole = recognizer.transcribe(samples, RATE)
    assert len(whole.tokens) > 10
    windowed = recognizer.with_windows(WindowConfig(length_s=1.2, overlap_s=0.4))
    assert tokens(windowed.transcribe(samples, RATE)) == tokens(whole)
    assert tokens(windowed.transcribe_batch([samples, samples[:100]])[0]) == tokens(whole)
    session = windowed.stream()
    for start in range(0, len(samples), 777):
        session.feed(samples[start : start + 777])
    assert tokens(session.finish()[-1].transcript) == tokens(whole)
    # Windows that are too short for its context are not.
    short = recognizer.with_windows(WindowConfig(length_s=0.4, overlap_s=0.0))
    assert tokens(short.transcribe(samples, RATE)) != tokens(whole)
    assert short.transcribe(samples, RATE).duration_s == pytest.approx(7.3)


@torch.inference_mode()
@pytest.mark.parametrize(
    "search", [SearchConfig(), SearchConfig(method="beam", beam=3)], ids=["greedy", "beam"]
)
def test_one_search_goes_over_the_frames_of_all_windows(
    make_model, speech_like, search: SearchConfig
) -> None:
    recognizer = asr.load(make_model(bidirectional=True), search=search)
    windowed = recognizer.with_windows(WindowConfig(length_s=1.0, overlap_s=0.4))
    samples = speech_like(5.0)
    features, lengths, _ = recognizer.fbank(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
    normalized = recognizer.network.norm(features)[0, : int(lengths)]
    y = by_definition(recognizer.network.encoder, normalized, 15, 5)
    assert y.shape == windowed.encode(samples).shape
    found = search_whole(recognizer.search, EncoderOutput(y[None], torch.tensor([len(y)]), None))
    assert tokens(windowed.transcribe(samples, RATE)) == tokens(
        recognizer.transcript(found.tokens[0], len(samples))
    )


def test_latency_stated_is_latency_met_live(make_model, speech_like) -> None:
    windowed = asr.load(make_model(bidirectional=True), windows=WindowConfig(length_s=1.0, overlap_s=0.4))
    session, samples = windowed.stream(), speech_like(3.0)
    # A step of 0.6 s and 0.2 s more, to the end of the last frame's window of 25 ms.
    assert windowed.algorithmic_latency_s == pytest.approx(0.79 + 0.0175)
    due = math.ceil(windowed.algorithmic_latency_s * RATE)
    session.feed(samples[: due - 1])
    assert session.frames == 0
    session.feed(samples[due - 1 : due])
    assert session.frames == 15
    assert session.state_bytes > 99 * 20 * 4


class OfASecond(WindowConfig):
    length_s: float = 1.0
    overlap_s: float = 0.4


@pytest.fixture
def hears_three_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr.encoders.base.LONGEST_WHOLE_S", 3.0)
    monkeypatch.setattr("asr.encoders.windowed.WindowConfig", OfASecond)


@pytest.mark.usefixtures("hears_three_seconds")
def test_what_is_too_long_to_be_heard_whole_goes_in_windows(make_model, speech_like, tmp_path: Path) -> None:
    recognizer = asr.load(make_model(bidirectional=True))
    long, short = speech_like(5.0, seed=1), speech_like(1.8, seed=2)
    windowed = recognizer.with_windows(WindowConfig(length_s=1.0, overlap_s=0.4))
    in_windows = tokens(windowed.transcribe(long, RATE))
    path = tmp_path / "talk.wav"
    soundfile.write(path, long, RATE, subtype="FLOAT")
    assert tokens(recognizer.transcribe(path)) == in_windows
    assert tokens(recognizer.transcribe(long, RATE)) == in_windows
    # Whoever fits is heard whole, in any company: four together would have 1.5 s each.
    whole = tokens(recognizer.transcribe(short, RATE))
    assert whole != tokens(windowed.transcribe(short, RATE))
    found = recognizer.transcribe_batch([short, long, short[:0], short])
    assert [tokens(each) for each in found] == [whole, in_windows, [], whole]
    assert len(recognizer.encode(long)) == 125
    torch.testing.assert_close(recognizer.encode(long), windowed.encode(long))


def test_positions_that_begin_anew_are_not_heard_whole(make_model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whisper's do after 30 s; a batch of shorter recordings is one batch all the same."""
    encoder = WhisperEncoderConfig(contexts=(ContextConfig(),), dim=16, heads=2, layers=1)
    recognizer, heard = asr.load(make_model(encoder=encoder)), list[int]()
    at_once = Recognizer.at_once

    def counted(self: Recognizer, samples: Tensor, *others: Any) -> Any:
        heard.append(len(samples))
        return at_once(self, samples, *others)

    monkeypatch.setattr(Recognizer, "at_once", counted)
    assert recognizer.longest_whole_s == 30
    silence = np.zeros(31 * RATE, np.float32)
    recognizer.transcribe_batch([silence[: 29 * RATE]] * 3)
    assert heard == [3]
    long, _ = recognizer.transcribe_batch([silence, silence[:RATE]])
    assert tokens(long) == tokens(recognizer.with_windows().transcribe(silence, RATE))
    assert recognizer.windows_for(30) is None
    recognizer.network.encoder.period_s = 24.0  # as of frames of 8 ms
    assert recognizer.windows_for(25) == WindowConfig(length_s=24.0, overlap_s=8.0)
    assert asr.load(make_model()).longest_whole_s == 1800


def test_windows_do_not_bound_what_a_search_hears_whole(make_model, speech_like) -> None:
    """By length of alignments: the frames of all windows are searched together."""
    settings = ["method=beam", "synchronous=alignment"]
    windows = WindowConfig(length_s=1.2, overlap_s=0.4)
    windowed = asr.load(make_model(bidirectional=True), settings=settings, windows=windows)
    assert windowed.transcribe(speech_like(2.0), RATE).tokens[-1].start_s > 1.2


def test_windows_are_no_longer_than_was_asked_for() -> None:
    """Where they are made of whole chunks: of 0.64 s, 30 s are 46 of them and a rest."""
    config = WhisperEncoderConfig(contexts=(ContextConfig(chunk=32),), dim=16, heads=2, layers=1)
    windowed = WindowedEncoder(build(config), WindowConfig())
    assert windowed.window_frames == 46 * 64


@pytest.mark.usefixtures("hears_three_seconds")
def test_the_command_says_so(call, make_model, speech_like, tmp_path: Path) -> None:
    model, long, short = make_model(bidirectional=True), tmp_path / "long.wav", tmp_path / "short.wav"
    soundfile.write(long, speech_like(4.0), RATE)
    soundfile.write(short, speech_like(1.0), RATE)
    code, out, err = call("transcribe", long, short, "--model", model)
    assert code == 0
    assert len(out.splitlines()) == 2
    notes = [line for line in err.splitlines() if "the bound on symbols" not in line]
    assert notes == [
        f"asr: {long}: more than the 3 s that this model hears in one piece: heard in windows of 1 s that "
        "overlap by 0.4 s"
    ]
    code, chosen, err = call("transcribe", long, short, "--model", model, "--window", 1, "--overlap", 0.4)
    assert "in one piece" not in err
    assert chosen.splitlines()[0] == out.splitlines()[0]
    _, chosen, _ = call("transcribe", long, "--model", model, "--window", 1.2)
    windowed = asr.load(model, windows=WindowConfig(length_s=1.2, overlap_s=0.4))
    assert chosen == windowed.transcribe(long).text + "\n"
    code, live, _ = call("transcribe", long, "--model", model, "--window", 1, "--overlap", 0.4, "--stream")
    assert live == out.splitlines(keepends=True)[0]


def test_decoding_says_how_many_recordings_went_in_windows(make_model) -> None:
    durations_s = (5.0, 1900.0, 2000.0)
    assert windows_lines(asr.load(make_model(bidirectional=True)), durations_s) == [
        "2 recordings of more than 1800 s heard in windows of 30 s that overlap by 10 s"
    ]
    assert windows_lines(asr.load(make_model()), durations_s) == []


@pytest.mark.usefixtures("hears_three_seconds")
def test_aligning_says_so_too(call, make_model, speech_like, tmp_path: Path) -> None:
    long, manifest = tmp_path / "long.wav", tmp_path / "talk.jsonl"
    soundfile.write(long, speech_like(4.0), RATE)
    write_cuts([make_cut(file_recording(long, "long"), "long", "one two")], manifest)
    model = make_model(bidirectional=True)
    code, out, err = call("align", "--data", manifest, "--out", tmp_path / "out", "--model", model)
    assert code == 0, err
    assert out.splitlines()[0].startswith("1 recordings of more than 3 s heard in windows of 1 s")


def test_other_windows_are_refused(call, make_model, tmp_path: Path) -> None:
    relative = ConformerEncoderConfig(dim=24, heads=2, layers=1, kernel=5, positions="relative")
    whole, streaming = make_model(encoder=relative), make_model()
    of_whisper = make_model(encoder=WHOLE["whisper"])
    cases = [
        (streaming, ("--window", 30), "found one that streams and has no need of windows; leave them out"),
        (whole, ("--window", 600), "windows: expected at most 463 s, which this model hears in one piece"),
        (whole, ("--overlap", 30), "expected an overlap of less than the 30 s of a window, found 30 s: 10"),
        (whole, ("--window", 0.01, "--overlap", 0), "windows: expected 0.04 s at least with this overlap"),
        (whole, ("--window", 0.05, "--overlap", 0.04), "windows: expected 0.12 s at least"),
        (of_whisper, ("--window", 31), "windows: expected at most 30 s, which this model hears in one piece"),
        (whole, ("--window", "nan"), "--window, --overlap: length_s"),
        (whole, ("--overlap", -1), "--window, --overlap: overlap_s"),
    ]
    for model, arguments, message in cases:
        code, _, err = call("transcribe", tmp_path / "a.wav", "--model", model, *arguments)
        assert (code, err.count("\n")) == (1, 1), err
        assert message in err
    with pytest.raises(ConfigError, match="found one that streams"):
        asr.load(whole).with_windows().with_latency(asr.Latency(0.08, 0.4))
    full = asr.load(whole, latency=asr.Latency(None), windows=WindowConfig())
    assert full.with_latency(asr.Latency(None)).algorithmic_latency_s == full.algorithmic_latency_s
    assert np.isfinite(full.algorithmic_latency_s)
