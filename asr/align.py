"""Forced alignment of texts that are known: when each token and word of a text was said in a recording.

The text is encoded by the model's own tokenizer, the recording by its encoder, and asr.search.align finds the
most probable path of a head. What the text has to look like is the model's matter: "Twenty-one." is no text
for a model that writes `twenty one`; a normalisation of asr.text.normalize may help.

Memory grows with frames times labels. It is estimated beforehand, and an alignment that would take more than
`max_bytes` is refused: with the default of 2 GiB and a model of 25 frames and 15 labels a second, above 23
minutes with a CTC head and 3.7 with an RNN-T.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
from lhotse.supervision import AlignmentItem
from lhotse.utils import fastcopy

from asr.audio import read_audio
from asr.data.manifests import read_unique_cuts
from asr.data.samples import load_samples
from asr.data.shards import SUFFIX
from asr.errors import AsrError, DataError, ManifestError
from asr.recognizer import Recognizer, TimedToken, Transcript, Word
from asr.search.align import Head, align, bytes_needed, choose_head, frames_needed
from asr.text.normalize import normalizer
from asr.transcript import make_transcript

MAX_BYTES = 2 << 30
"""Memory that an alignment may take; the encoder's is not counted."""


class Options(NamedTuple):
    """How to align."""

    head: Head | None = None
    """Which head aligns; None is the transducer if there is one."""
    normalization: str = "none"
    """Of the text; see asr.text.normalize."""
    max_bytes: int = MAX_BYTES


@dataclass(frozen=True)
class TextAlignment:
    """Where a text is in a recording."""

    transcript: Transcript
    """The text with the times of its words and tokens, all inside the recording."""
    log_probs: tuple[float, ...]
    """Natural logarithm of each token's probability, as asr.search.align defines it."""
    log_prob: float
    """Of the whole path, blanks included."""


class AlignedCut(NamedTuple):
    """What became of a cut of a manifest."""

    cut: Any
    """With the words' times in its supervisions' `alignment["word"]`, counted from the start of the cut."""
    alignment: TextAlignment | None
    error: AsrError | None = None


def align_text(
    recognizer: Recognizer,
    samples: npt.NDArray[Any],
    text: str,
    name: str = "array",
    options: Options | None = None,
) -> TextAlignment:
    """Align samples (N,), float in -1..1 or int16 at the model's rate, with a text; `name` is for errors.

    An empty text has an empty alignment. Raises TokenError if the tokenizer lacks a symbol of the text,
    DataError if the recording is too short for the text or the alignment would take too much memory,
    ConfigError if the model lacks the head, AudioError for samples that are no sound.
    """
    options = options or Options()
    network, head = recognizer.network, choose_head(recognizer.network, options.head)
    text = normalizer(options.normalization)(text)
    labels = recognizer.tokenizer.encode(text, name)
    frame_s = 1.0 / network.encoder.frame_rate
    expected = math.ceil(len(samples) / recognizer.sample_rate / frame_s) + 1
    _check_memory(bytes_needed(network, head, expected, len(labels)), options, head, recognizer, name)
    encoded = recognizer.encode(samples, name)
    frames, needed = len(encoded), frames_needed(network, head, labels) if labels else 0
    if frames < needed:
        raise DataError(
            f"utterance {name}: expected at least {needed} encoder frames ({needed * frame_s:.2f} s) for the "
            f"{len(labels)} labels of the text, found {frames}; is it the text of another recording?"
        )
    lengths = encoded.new_tensor([frames]).long()
    (found,) = align(network, head, encoded[None], lengths, [labels])
    if found.log_prob == -math.inf or math.isnan(found.log_prob):
        raise DataError(f"utterance {name}: the model gives the text the probability {found.log_prob}")
    # Probabilities as they are: what the search's confidences are fitted to is not what is known.
    duration_s = len(samples) / recognizer.sample_rate
    transcript = make_transcript(found.tokens, recognizer.tokenizer, frame_s, duration_s)
    return TextAlignment(
        _inside(_with_words(transcript, text)), tuple(t.log_prob for t in found.tokens), found.log_prob
    )


def align_file(
    recognizer: Recognizer, path: Path | str, text: str, options: Options | None = None
) -> TextAlignment:
    """Align a recording with a text; raises as `align_text` does, and AudioError naming the file."""
    samples = read_audio(path, recognizer.sample_rate).samples
    return align_text(recognizer, samples, text, str(path), options)


def align_manifest(
    recognizer: Recognizer, manifest: Path, options: Options | None = None
) -> Iterator[AlignedCut]:
    """Align every cut of a manifest with the texts of its supervisions, one after the other.

    A cut that cannot be aligned comes back as it was, with the error. Raises ManifestError if the manifest
    cannot be read, and ConfigError for a head or a normalisation that there is not.
    """
    options = options or Options()
    choose_head(recognizer.network, options.head)
    normalizer(options.normalization)
    if manifest.suffix == SUFFIX:
        raise ManifestError(f"{manifest}: expected a cut manifest, found shards; align what they are made of")
    # With an absolute path, so that what is written elsewhere finds the recordings again.
    for cut in read_unique_cuts(manifest.resolve()):
        try:
            yield _align_cut(recognizer, cut, options)
        except AsrError as error:
            yield AlignedCut(cut, None, error)


def _align_cut(recognizer: Recognizer, cut: Any, options: Options) -> AlignedCut:
    if not hasattr(cut, "recording"):
        raise DataError(f"utterance {cut.id}: expected a cut of one recording, found {type(cut).__name__}")
    spoken = sorted(cut.supervisions, key=lambda supervision: supervision.start)
    texts = [normalizer(options.normalization)(supervision.text or "") for supervision in spoken]
    samples = load_samples(cut, recognizer.sample_rate)
    found = align_text(
        recognizer, samples, " ".join(filter(None, texts)), cut.id, options._replace(normalization="none")
    )
    counts = [len(text.split()) for text in texts]
    words = found.transcript.words
    if len(words) != sum(counts):
        raise DataError(
            f"utterance {cut.id}: expected the {sum(counts)} words of the text, "
            f"the tokenizer makes {len(words)}; correct the text"
        )
    places = iter(words)
    aligned = [
        _with_alignment(supervision, [next(places) for _ in range(count)])
        for supervision, count in zip(spoken, counts, strict=True)
    ]
    return AlignedCut(fastcopy(cut, supervisions=aligned), found)


def _with_alignment(supervision: Any, words: Sequence[Word]) -> Any:
    items = [
        AlignmentItem(w.text, round(w.start_s, 4), round(w.end_s - w.start_s, 4), round(w.confidence, 4))
        for w in words
    ]
    return fastcopy(supervision, alignment={**(supervision.alignment or {}), "word": items})


def _check_memory(needed: int, options: Options, head: Head, recognizer: Recognizer, name: str) -> None:
    if needed <= options.max_bytes:
        return
    other = " use the CTC head," if head == "transducer" and recognizer.network.ctc is not None else ""
    raise DataError(
        f"utterance {name}: expected an alignment in at most {options.max_bytes >> 20} MiB, this recording "
        f"and text would take about {needed >> 20} MiB; align shorter pieces,{other} or raise the limit"
    )


def _with_words(transcript: Transcript, text: str) -> Transcript:
    """The words as the text has them, where the tokenizer wrote `<unk>`."""
    words = text.split()
    if len(words) != len(transcript.words):
        return transcript
    named = tuple(word._replace(text=own) for word, own in zip(transcript.words, words, strict=True))
    return replace(transcript, text=" ".join(words), words=named)


def _inside(transcript: Transcript) -> Transcript:
    """The same with no time behind the end of the recording, where its last frame may reach."""
    end_s = transcript.duration_s

    def cut_off(item: Any) -> Any:
        return item._replace(start_s=min(item.start_s, end_s), end_s=min(item.end_s, end_s))

    words: tuple[Word, ...] = tuple(map(cut_off, transcript.words))
    tokens: tuple[TimedToken, ...] = tuple(map(cut_off, transcript.tokens))
    return replace(transcript, words=words, tokens=tokens)
