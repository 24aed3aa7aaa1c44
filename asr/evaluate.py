"""Recognise a test set and score it: `hyp.jsonl`, `wer.txt`, one summary line.

Recordings are decoded in batches of similar length, or one by one as live audio, which also measures the
delays of the words and the real-time factor. Hypotheses are written as they come: an interrupt keeps them
in `hyp.jsonl.part`.
"""

from __future__ import annotations

import json
import re
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import torch
from rich.progress import Progress

from asr.audio import Samples
from asr.config import load_config
from asr.data.manifests import CARD, cut_speaker, cut_text, load_card
from asr.data.parts import find_part, open_part
from asr.data.shards import SUFFIX
from asr.errors import ManifestError
from asr.lengths import seconds_to_samples
from asr.live import ShownWords, feed, word_appearances
from asr.progress import progress_bar
from asr.recognizer import Latency, Recognizer, Transcript, load
from asr.score.biasing import score_phrases
from asr.score.confidence import confidence_lines, judge
from asr.score.latency import LatencyReport, StreamStats, UtteranceTiming, measure_latency, summarize
from asr.score.report import confusion_lines, summary_line, write_report
from asr.score.stability import Stability
from asr.score.times import measure_times
from asr.score.wer import WerReport, score_pairs
from asr.score.words import HeardWord
from asr.text.hotwords import list_hotwords
from asr.text.normalize import normalizer
from asr.train.setup import RUN, RunInfo
from asr.transcript import as_json, bound_note

SHOWN_CONFUSIONS = 8


class Options(NamedTuple):
    """How to decode and score."""

    normalization: str = "none"
    batch_s: float = 200.0
    """Padded seconds per batch."""
    live_chunk_s: float | None = None
    """Feed as live audio in chunks of this length; None decodes in batches."""
    threads: int = 0
    device: str = "cpu"
    latency: Latency | None = None
    """When the network answers, for those trained for several latencies."""
    head: Literal["transducer", "ctc"] | None = None
    search: tuple[str, ...] = ()
    """Settings of the search, see `asr.recognizer.load`."""
    cut_hotwords: bool = False
    """Listen for phrases of each cut, its custom field `hotwords`, too."""
    calibrate: bool = False
    """Fit the temperature of confidences to the data."""
    reliability: Path | None = None
    """PNG file into which to draw the share of right words over confidence."""

    @property
    def suffix(self) -> str:
        """What results of these options are called, behind the name of the data."""
        parts: list[str] = [self.head] if self.head else []
        # Of a setting its last name and, of a file, its name: fusion.lm=/tmp/en.arpa is lm=en.arpa.
        settings = [setting.partition("=") for setting in self.search]
        parts += [f"{key.split('.')[-1]}={_names_only(value)}" for key, _, value in settings]
        if self.latency is not None:
            seconds = [length_s for length_s in self.latency if length_s is not None]
            parts += [f"{1000 * length_s:g}ms" for length_s in seconds] or ["full"]
        parts += ["cut-hotwords"] if self.cut_hotwords else []
        parts += ["live"] if self.live_chunk_s is not None else []
        return "".join(f"-{part}" for part in parts)


class Decoded(NamedTuple):
    """One recognised recording."""

    cut: Any
    transcript: Transcript
    appeared_s: list[float]
    """Audio time at which each word appeared; empty if it was not fed live."""
    compute_s: float | None = None
    """Computing, in seconds, from the end of the audio to the final result; None if it was not fed live."""


class Recordings(NamedTuple):
    """What is to be recognised."""

    cuts: list[Any]
    load: Callable[[Any, int], Samples]
    """Samples of a cut at a rate."""


class Part(NamedTuple):
    """Recordings that were recognised together."""

    decoded: list[Decoded]
    stats: StreamStats
    stability: Stability = Stability()
    """How often shown words changed, of live audio."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and where it lies."""

    report: WerReport
    directory: Path
    stats: StreamStats
    """Computing, reading the files left out."""
    latency: LatencyReport | None
    """Delays of live use, where the manifest's alignments say when the words were spoken."""
    lines: list[str]
    """For the terminal."""


def _names_only(value: str) -> str:
    """A setting without folders and, of a list, without what the names of files had better not have."""
    return re.sub(r"[^\s\"',]*/|[\s\"\[\]]", "", value.rstrip("/"))


def evaluate(exp: Path, data: str, out: Path | None = None, options: Options | None = None) -> Evaluation:
    """Decode `data` (a split of the run's corpus, or a manifest) with the model in `exp`, and score it."""
    options = options or Options()
    normalizer(options.normalization)  # a misspelt name must not be found out after an hour of decoding
    if options.threads:
        torch.set_num_threads(options.threads)
    recognizer = load(
        exp, options.device, latency=options.latency, head=options.head, settings=options.search
    )
    manifest, name = find_manifest(exp, data)
    synthetic = recognizer.config.synthetic or _is_synthetic(manifest)
    recordings = _read(manifest)
    out = out or exp / "decode" / f"{name}{options.suffix}"
    decoded, stats, stability = _decode(recognizer, recordings, out, options)
    report = score_pairs(
        {item.cut.id: cut_text(item.cut) for item in decoded},
        {item.cut.id: item.transcript.text for item in decoded},
        normalization=options.normalization,
        speakers={item.cut.id: cut_speaker(item.cut) for item in decoded},
    )
    latency = _latency(decoded) if options.live_chunk_s else None
    phrases = [phrase.text for phrase in recognizer.search_config.fusion.biasing.phrases()]
    own = {item.cut.id: _own_phrases(item.cut) for item in decoded} if options.cut_hotwords else {}
    measured = score_phrases(report, phrases, own).lines() if phrases or own else []
    measured += _words_measured(recognizer, decoded, report, options, f"{exp.name} on {name}")
    measured += [*_measured(recognizer, options, stats, latency), *_finals(recognizer, options, decoded)]
    measured += stability.lines()
    measured += [*windows_lines(recognizer, (cut.duration for cut in recordings.cuts)), *_bound(decoded)]
    source = [f"model {exp}", f"data {manifest}"]
    write_report(out / "wer.txt", report, f"{exp.name} on {name}", [*source, *measured], synthetic=synthetic)
    lines = [summary_line(report, synthetic), *confusion_lines(report, SHOWN_CONFUSIONS), *measured]
    return Evaluation(report, out, stats, latency, [*lines, f"results: {out}"])


def find_manifest(exp: Path, data: str) -> tuple[Path, str]:
    """`data` as a manifest or as a split of the corpus of `exp`; and a name for its results.

    Raises ManifestError if `exp` has no such split.
    """
    path = Path(data)
    if path.name.endswith((".jsonl", ".jsonl.gz", SUFFIX)):
        name = path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(SUFFIX)
        return path, f"{path.resolve().parent.name}-{name}"
    if not (exp / RUN).is_file():
        raise ManifestError(
            f"{data}: expected a cut manifest (.jsonl.gz): {exp} does not know its corpus (no {RUN})"
        )
    corpora = [Path(directory) for directory in load_config(exp / RUN, RunInfo).data]
    found = [part for directory in corpora if (part := find_part(directory, data)) is not None]
    if len(found) != 1:
        raise ManifestError(
            f"{corpora[0] / data}.jsonl.gz: expected one of {len(corpora)} corpora to have this split, found "
            f"{len(found)}; give a cut manifest (.jsonl.gz) or shards (.shar), or prepare the corpus again"
        )
    return found[0], data


def _read(manifest: Path) -> Recordings:
    """The cuts of a manifest or of shards, all of them in memory; raises ManifestError."""
    part = open_part(manifest)
    cuts = list(part.cuts())
    numbers = {cut.id: number for number, cut in enumerate(cuts)}
    return Recordings(cuts, lambda cut, rate: part.samples(numbers[cut.id], rate))


def _decode(recognizer: Recognizer, recordings: Recordings, out: Path, options: Options) -> Part:
    """Recognise everything, with a progress display, into OUT/hyp.jsonl."""
    decoded, stats, stability = list[Decoded](), StreamStats(), Stability()
    out.mkdir(parents=True, exist_ok=True)
    (out / "wer.txt").unlink(missing_ok=True)  # a report must never stand beside other hypotheses
    unfinished = out / "hyp.jsonl.part"
    parts = _decode_live if options.live_chunk_s else _decode_batches
    with (
        unfinished.open("w", encoding="utf-8") as file,
        progress_bar(*Progress.get_default_columns()) as display,
    ):
        task = display.add_task("decoding", total=len(recordings.cuts))
        for part in parts(recognizer, recordings, options):
            for item in part.decoded:
                _write(file, item)
            decoded += part.decoded
            stats += part.stats
            stability += part.stability
            display.advance(task, len(part.decoded))
    unfinished.replace(out / "hyp.jsonl")
    return Part(decoded, stats, stability)


def _decode_batches(recognizer: Recognizer, recordings: Recordings, options: Options) -> Iterator[Part]:
    """Batches of recordings of similar length."""
    batch: list[Any] = []
    for cut in sorted(recordings.cuts, key=lambda cut: -cut.duration):
        if batch and batch[0].duration * (len(batch) + 1) > options.batch_s:
            yield _decode_batch(recognizer, recordings._replace(cuts=batch), options)
            batch = []
        batch.append(cut)
    if batch:
        yield _decode_batch(recognizer, recordings._replace(cuts=batch), options)


def _decode_batch(recognizer: Recognizer, recordings: Recordings, options: Options) -> Part:
    cuts = recordings.cuts
    samples = [recordings.load(cut, recognizer.sample_rate) for cut in cuts]
    start = time.perf_counter()
    hotwords = [_hotwords(cut) if options.cut_hotwords else () for cut in cuts]
    transcripts = recognizer.transcribe_batch(samples, [cut.id for cut in cuts], hotwords=hotwords)
    stats = StreamStats().chunk(sum(t.duration_s for t in transcripts), time.perf_counter() - start)
    return Part([Decoded(cut, t, []) for cut, t in zip(cuts, transcripts, strict=True)], stats)


def _decode_live(recognizer: Recognizer, recordings: Recordings, options: Options) -> Iterator[Part]:
    """One recording at a time, fed in chunks."""
    assert options.live_chunk_s is not None
    size = max(1, seconds_to_samples(options.live_chunk_s, recognizer.sample_rate))
    for cut in recordings.cuts:
        samples = recordings.load(cut, recognizer.sample_rate)
        chunks = (samples[i : i + size] for i in range(0, len(samples), size))
        hotwords = _hotwords(cut) if options.cut_hotwords else ()
        updates = list(feed(recognizer, chunks, recognizer.sample_rate, hotwords=hotwords))
        shown = ShownWords(recognizer.tokenizer)
        for update in updates:
            shown.see(update.event)
        last = updates[-1]
        compute_s = None if last.response is None else last.response.compute_s
        item = Decoded(cut, last.transcript, word_appearances(updates), compute_s)
        yield Part([item], last.stats, shown.stability)


def _hotwords(cut: Any) -> Sequence[str]:
    """What a cut's custom field lists. Raises ManifestError."""
    found = (getattr(cut, "custom", None) or {}).get("hotwords", ())
    if isinstance(found, list | tuple) and all(isinstance(phrase, str) for phrase in found):
        return found
    raise ManifestError(
        f"utterance {cut.id}: expected a list of phrases in custom.hotwords, found {found!r:.100}"
    )


def _own_phrases(cut: Any) -> list[str]:
    return [phrase.text for phrase in list_hotwords(_hotwords(cut))]


def _latency(decoded: list[Decoded]) -> LatencyReport | None:
    """Delays against the manifest's word alignments; None if there are none."""
    timings = []
    for item in decoded:
        if aligned := _aligned(item.cut):
            ends_s = sorted(word.end_s for word in aligned)
            timings.append(UtteranceTiming(ends_s, item.appeared_s, item.cut.id))
    return measure_latency(timings) if timings else None


def _aligned(cut: Any) -> list[HeardWord]:
    """Words with their times, from the manifest's alignments."""
    words = [word for s in cut.supervisions for word in (s.alignment or {}).get("word", [])]
    return [HeardWord(word.symbol, word.start, word.end) for word in sorted(words, key=lambda w: w.start)]


def _words_measured(
    recognizer: Recognizer, decoded: list[Decoded], report: WerReport, options: Options, title: str
) -> list[str]:
    """Quality of confidences, and of times where the manifest's alignments say when words were spoken."""
    heard = {item.cut.id: [HeardWord(*word) for word in item.transcript.words] for item in decoded}
    temperature = recognizer.search_config.confidence.temperature
    lines = confidence_lines(judge(report, heard), title, options.calibrate, options.reliability, temperature)
    truth = {item.cut.id: aligned for item in decoded if (aligned := _aligned(item.cut))}
    return lines + (measure_times(report, heard, truth).lines() if truth else [])


def _measured(
    recognizer: Recognizer, options: Options, stats: StreamStats, latency: LatencyReport | None
) -> list[str]:
    """Speed, memory and delays, for people."""
    threads = torch.get_num_threads()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines = [f"real-time factor {stats.real_time_factor:.4f} ({threads} threads), memory {peak:.0f} MiB"]
    if options.live_chunk_s:
        latency_ms = 1000 * recognizer.algorithmic_latency_s
        lines += [
            f"live in chunks of {1000 * options.live_chunk_s:.0f} ms; "
            f"algorithmic latency {latency_ms:.1f} ms; "
            f"state {stats.state_bytes:,} bytes per stream; slowest chunk {1000 * stats.worst_chunk_s:.0f} ms"
        ]
    return lines + (latency.lines() if latency else [])


def _finals(recognizer: Recognizer, options: Options, decoded: list[Decoded]) -> list[str]:
    """Where they come from, if not from a stream alone, and how long they took, for people."""
    lines = []
    if recognizer.finals is not None:
        live = "final results are of a second hearing, of whole utterances"
        lines = [live if options.live_chunk_s else "heard whole, as final results are (search.finals)"]
    computed_s = [item.compute_s for item in decoded if item.compute_s is not None]
    return lines + ([f"computing at the end  {summarize(computed_s)}"] if computed_s else [])


def _bound(decoded: list[Decoded]) -> list[str]:
    """Frames where the search was stopped, if there are any, for people."""
    found = [frames for item in decoded if (frames := item.transcript.truncated_frames)]
    return [f"in {len(found)} recordings {bound_note(sum(found))}"] if found else []


def windows_lines(recognizer: Recognizer, durations_s: Iterable[float]) -> list[str]:
    """How many recordings were too long to be heard whole, for people."""
    found = [w for duration_s in durations_s if (w := recognizer.windows_for(duration_s)) is not None]
    if not found:
        return []
    return [
        f"{len(found)} recordings of more than {recognizer.longest_whole_s:.0f} s heard in windows of "
        f"{found[0].length_s:g} s that overlap by {found[0].overlap_s:g} s"
    ]


def _write(file: IO[str], item: Decoded) -> None:
    words = [
        {
            "text": w.text,
            "start_s": round(w.start_s, 3),
            "end_s": round(w.end_s, 3),
            "confidence": round(w.confidence, 4),
        }
        for w in item.transcript.words
    ]
    record: dict[str, Any] = {
        "id": item.cut.id,
        "text": item.transcript.text,
        "speaker": cut_speaker(item.cut),
        "words": words,
    }
    if item.transcript.alternatives:
        record["nbest"] = [as_json(alternative) for alternative in item.transcript.alternatives]
    file.write(json.dumps(record, ensure_ascii=False) + "\n")
    file.flush()


def _is_synthetic(manifest: Path) -> bool:
    return (manifest.parent / CARD).is_file() and load_card(manifest.parent).synthetic
