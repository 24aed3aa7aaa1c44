"""Fixtures that several test files share: a tiny trained-shaped model and speech-like sounds."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from asr.encoders import EncoderConfig

# One thread: the tensors are tiny, and waiting for each other costs threads more than they give.
torch.set_num_threads(1)
# The same examples every time: a run that passed passes again. Let a local run draw new ones with
# `pytest --hypothesis-profile=default`.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def speech_like(seconds: float, sample_rate: int = 8000, seed: int = 0) -> np.ndarray:
    """Bursts of harmonics with moving pitch over low noise: float32 (N,) within -1..1."""
    rng = np.random.default_rng(seed)
    count = round(seconds * sample_rate)
    t = np.arange(count) / sample_rate
    pitch = 120 + 40 * np.sin(2 * np.pi * 0.7 * t + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    envelope = np.clip(np.sin(2 * np.pi * 1.5 * t + rng.uniform(0, 6)), 0, 1)
    return (0.1 * voice * envelope + 0.003 * rng.standard_normal(count)).astype(np.float32)


@pytest.fixture(name="speech_like")
def _speech_like():
    return speech_like


@pytest.fixture(scope="session")
def write_tones() -> Callable[..., Path]:
    """Writes a corpus of words that are tones: `counts` recordings of each word in each part, at 8 kHz."""
    import soundfile

    from asr.data.manifests import CorpusCard, file_recording, make_cut, save_card, write_cuts

    def write(
        directory: Path,
        words: dict[str, float],
        counts: dict[str, int],
        *,
        name: str = "tones",
        speakers: int = 1,
        synthetic: bool = False,
        rate: int = 8000,
    ) -> Path:
        rng = np.random.default_rng(0)
        directory.mkdir(exist_ok=True)
        for split, count in counts.items():
            cuts = []
            for word, hertz in words.items():
                for i in range(count):
                    cut_id = f"{word}-{split}-{i}"
                    t = np.arange(round(rng.uniform(0.2, 0.35) * rate)) / rate
                    tone = 0.3 * np.sin(2 * np.pi * hertz * rng.uniform(0.95, 1.05) * t) * np.hanning(len(t))
                    path = directory / f"{cut_id}.wav"
                    soundfile.write(path, tone + 0.002 * rng.standard_normal(len(t)), rate)
                    recording = file_recording(path, cut_id)
                    cuts.append(make_cut(recording, cut_id, word, speaker=f"s{i % speakers}"))
            write_cuts(cuts, directory / f"{split}.jsonl.gz")
        card = CorpusCard(name=name, source="test", licence="none", sample_rate=rate, synthetic=synthetic)
        save_card(card, directory)
        return directory

    return write


@pytest.fixture(scope="session")
def load_script() -> Callable[[Path], ModuleType]:
    """Gives a script as a module of its own; scripts in several folders share their names."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def with_neighbours(load_script) -> Callable[[Path], AbstractContextManager[ModuleType]]:
    """Gives a script that imports the files beside it, as long as the context lasts."""

    @contextmanager
    def load(path: Path) -> Iterator[ModuleType]:
        before = set(sys.modules)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(path.parent)
            yield load_script(path)
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).parent == path.parent:
                del sys.modules[name]

    return load


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command in this process: exit code, stdout, stderr."""
    from asr.cli.app import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["asr", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def make_model(tmp_path: Path):
    """Writes a model directory with random weights that do emit tokens; returns its path."""
    from asr.encoders import LstmEncoderConfig
    from asr.features.fbank import FbankConfig
    from asr.joiner import JoinerConfig
    from asr.losses import CtcLossConfig, LossConfig, TopologyConfig, TransducerLossConfig
    from asr.model_directory import ModelConfig, build_network, save_model
    from asr.predictors import LstmPredictorConfig, StatelessPredictorConfig
    from asr.search import SearchConfig
    from asr.text.tokenizer import TokenizerConfig, train_tokenizer
    from asr.transducer import TransducerConfig

    def make(
        *,
        kind: str = "transducer",
        bidirectional: bool = False,
        lookahead: int = 2,
        seed: int = 0,
        topology: Literal["ctc"] | None = None,
        encoder: EncoderConfig | None = None,
    ) -> Path:
        tokenizer = train_tokenizer(TokenizerConfig(kind="word"), ["zero one two three four"])
        transducer = kind != "ctc"
        network_config = TransducerConfig(
            encoder=encoder
            or LstmEncoderConfig(
                hidden=24, layers=2, bidirectional=bidirectional, lookahead=0 if bidirectional else lookahead
            ),
            predictor=LstmPredictorConfig(dim=12)
            if kind == "lstm-predictor"
            else StatelessPredictorConfig(dim=12, context=3)
            if transducer
            else None,
            joiner=JoinerConfig(dim=16),
            loss=LossConfig(
                transducer=TransducerLossConfig(
                    kind="full" if topology else "fused",
                    topology=TopologyConfig(name=topology or "rnnt"),
                    weight=1.0 if transducer else 0.0,
                ),
                ctc=CtcLossConfig(weight=0.5 if kind == "hybrid" else 0.0 if transducer else 1.0),
            ),
        )
        config = ModelConfig(
            features=FbankConfig(sample_rate=8000, num_mel_bins=20),
            network=network_config,
            search=SearchConfig(max_symbols=3),
            vocab_size=tokenizer.vocab_size,
        )
        torch.manual_seed(seed)
        network = build_network(config)
        network.norm.mean.fill_(10.0)
        network.norm.scale.fill_(0.3)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name == "joiner.encoder.weight":
                    parameter.mul_(8)  # what is heard must outweigh what was said
                if "output" in name or name.startswith("ctc"):
                    parameter.mul_(20)  # decided enough that 1e-6 of noise does not flip a label
                    if name.endswith("bias"):
                        parameter[0] += 1.0
        name = "lstm" if encoder is None else encoder.kind
        directory = tmp_path / f"model-{kind}-{name}-{bidirectional}-{seed}"
        save_model(directory, config, network, tokenizer, "# card\n")
        return directory

    return make
