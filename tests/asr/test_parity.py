"""`asr parity`: every encoder hears live what it hears in files, and one that does not is found out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor

import asr
from asr.encoders import (
    ConformerEncoderConfig,
    LstmEncoderConfig,
    RecurrentEncoderConfig,
    TransformerEncoderConfig,
)
from asr.errors import StreamingError
from asr.layers.context import ContextConfig
from asr.layers.subsampling import SubsamplingConfig
from asr.parity import check
from asr.session import Session

SIZE: dict[str, Any] = {"dim": 24, "heads": 2, "layers": 2}
CONTEXTS = (ContextConfig(chunk=4, left_chunks=2), ContextConfig(), ContextConfig(chunk=8, left_chunks=1))
ENCODERS = {
    "lstm": LstmEncoderConfig(hidden=24, layers=2, lookahead=2),
    "conformer": ConformerEncoderConfig(contexts=CONTEXTS, kernel=5, **SIZE),
    "conformer-causal": ConformerEncoderConfig(
        contexts=(ContextConfig(chunk=1, left_chunks=6),), convolution="causal", lookahead=1, **SIZE
    ),
    "conformer-funnel": ConformerEncoderConfig(
        contexts=CONTEXTS[:1], pool_after=(1,), positions="relative", **SIZE
    ),
    "fast-conformer": ConformerEncoderConfig(
        contexts=(ContextConfig(chunk=2, left_chunks=3),),
        kernel=9,
        subsampling=SubsamplingConfig(kind="separable", factor=8, channels=6),
        **SIZE,
    ),
    "transformer": TransformerEncoderConfig(left=6, right=1, **SIZE),
    "recurrent": RecurrentEncoderConfig(dim=24, layers=2, lookahead=1, kernel=3),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_hears_live_what_it_hears_in_files(name: str, make_model, speech_like) -> None:
    recognizer = asr.load(make_model(encoder=ENCODERS[name]))
    samples = speech_like(4.0)
    found = check(recognizer, samples)
    assert found.faults == []
    assert found.tokens > 3
    assert set(found.differences) == {"chunks", "ragged", "sessions"}
    # The last samples of a window hardly count; nothing else keeps the measured latency from the stated one.
    assert found.stated_latency_s - 0.004 < found.measured_latency_s <= found.stated_latency_s
    assert found.stated_latency_s <= found.live_latency_s <= found.stated_latency_s + 0.001


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.03, 0.4])
def test_short_recordings(seconds: float, make_model, speech_like) -> None:
    recognizer = asr.load(make_model(encoder=ENCODERS["conformer"]))
    assert check(recognizer, speech_like(seconds)).faults == []


def test_one_model_for_several_latencies(make_model, speech_like) -> None:
    recognizer = asr.load(make_model(encoder=ENCODERS["conformer"]))
    samples, latencies = speech_like(3.0), []
    for chunk_s, left_s in ((0.04, 0.4), (0.16, None), (0.32, 0.32), (0.64, 0.0)):
        view = recognizer.with_latency(asr.Latency(chunk_s, left_s))
        found = check(view, samples)
        assert found.faults == []
        latencies.append(found.stated_latency_s)
    assert latencies == pytest.approx([0.0475, 0.1675, 0.3275, 0.6475])
    full = recognizer.with_latency(asr.Latency(None))
    assert not full.streaming
    with pytest.raises(StreamingError, match="its context is the whole utterance"):
        full.stream()
    assert recognizer.algorithmic_latency_s == pytest.approx(0.1675)  # as it was


def test_a_fault_is_found_out(make_model, speech_like, monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer = asr.load(make_model(encoder=ENCODERS["conformer"]))
    layer = recognizer.network.encoder.layers[0]
    step = layer.convolution.depthwise.step

    def forgetful(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return step(x, torch.zeros_like(state))

    monkeypatch.setattr(layer.convolution.depthwise, "step", forgetful)
    faults = check(recognizer, speech_like(2.0)).faults
    assert any(fault.startswith("chunks differ from the whole by") for fault in faults)
    monkeypatch.undo()

    class Curious(torch.nn.Module):
        """Sees the whole future, whatever the encoder says."""

        def forward(self, x: Tensor) -> Tensor:
            return x + x.mean(dim=1, keepdim=True)

    recognizer.network.norm = torch.nn.Sequential(recognizer.network.norm, Curious())
    faults = check(recognizer, speech_like(2.0)).faults
    assert any("moves outputs" in fault for fault in faults)
    assert any("outputs wait for" in fault for fault in faults)


def test_a_session_that_dawdles_is_found_out(
    make_model, speech_like, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer = asr.load(make_model())
    monkeypatch.setattr(Session, "_due", property(lambda session: (session._heard // 800 + 1) * 800))
    (fault,) = check(recognizer, speech_like(2.0)).faults
    assert re.fullmatch(r"live, outputs come after 220.0 ms, stated are .*", fault)


def test_the_command(make_model, speech_like, tmp_path: Path, call) -> None:
    recording = tmp_path / "talk.wav"
    soundfile.write(recording, speech_like(2.0), 8000)
    model = make_model(encoder=ENCODERS["conformer"])
    for options, latency in (([], "167.5"), (["--latency", "80"], "87.5")):
        code, out, err = call("parity", model, recording, *options)
        assert code == 0, err
        assert re.search(rf"tokens equal \(\d+\)  latency [\d.]+ of {latency} ms, live [\d.]+ ms  state", out)
        assert "1 of 1 recordings are heard alike" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--latency", "100"], "expected chunks of whole frames of 40 ms, found 100 ms: 80 or 120 would do"),
        (["--latency", "soon"], "--latency soon: expected milliseconds"),
        (["--latency", "full"], "cannot stream: its context is the whole utterance"),
        (["--latency", "nan"], "expected chunks of up to 60 s, found nan ms"),
        (["--latency", "160:-1"], "expected a history of 0 to 300000 ms, found -1 ms"),
        (["--latency", "160:"], "--latency 160:: expected milliseconds"),
        (["--head", "ctc"], "this model has no CTC head"),
    ],
)
def test_refusals(options: list[str], message: str, make_model, speech_like, tmp_path, call) -> None:
    recording = tmp_path / "talk.wav"
    soundfile.write(recording, speech_like(0.5), 8000)
    model = make_model(encoder=ENCODERS["conformer"])
    code, _, err = call("parity", model, recording, *options)
    assert code == 1
    assert message in err


def test_an_unreadable_file_does_not_lose_the_others(make_model, speech_like, tmp_path, call) -> None:
    good, bad = tmp_path / "good.wav", tmp_path / "bad.wav"
    soundfile.write(good, speech_like(1.0), 8000)
    bad.write_bytes(b"RIFF")
    code, out, err = call("parity", make_model(), bad, good)
    assert code == 1
    assert f"{bad}: " in err
    assert "tokens equal" in out
    assert "1 of 2 recordings are heard alike" in out


@pytest.mark.parametrize("name", ["lstm", "transformer", "recurrent"])
def test_a_causal_encoder_may_hear_more_at_once(name: str, make_model, speech_like) -> None:
    """It says the same, later and in fewer steps."""
    recognizer, samples = asr.load(make_model(encoder=ENCODERS[name])), speech_like(3.0)
    view = recognizer.with_latency(asr.Latency(0.16))
    assert view.algorithmic_latency_s == pytest.approx(recognizer.algorithmic_latency_s + 0.12)
    found = check(view, samples)
    assert found.faults == []
    assert found.live_latency_s == pytest.approx(found.stated_latency_s, abs=1.1e-3)
    assert view.transcribe(samples, 8000).tokens == recognizer.transcribe(samples, 8000).tokens
    with pytest.raises(
        asr.AsrError, match="expected chunks of whole frames of 40 ms, found 100 ms: 80 or 120"
    ):
        recognizer.with_latency(asr.Latency(0.1))
