"""How the corpora of egs/english are divided into train, dev and tests: SPLITTERS, one for each corpus.

What is divided by, and what is left out, is told in prepare.py. Every splitter gives the parts of its corpus,
each with something in it, and the names of what it leaves out; `keep_texts_apart` goes over all of them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lhotse import MonoCut, MultiCut, SupervisionSegment

from asr.data.importers import import_corpus
from asr.data.manifests import cut_speaker, cut_text
from asr.errors import DataError, ManifestError
from asr.text.lines import read_lines
from asr.text.normalize import normalize

Cut = MonoCut | MultiCut
LeftOut = dict[str, list[str]]
"""Names of what is left out, by reason."""

SO762_TESTS = ("test-so762-adults", "test-so762-children")
READERS = ("kathleen", "ljspeech")
ADULT_AGE = 18
DEV_SPEAKERS = 0.1
DEV_TEXTS = 0.03
TEST_TEXTS = 0.05
MAX_BROKEN = 0.01
"""Largest share of a corpus's recordings that may be missing or broken."""
SPOKEN = re.compile(r"[a-z']+( [a-z']+)*")
SHOWN_NAMES = 5


class Utterances(NamedTuple):
    """Utterances of a corpus, and what is left out of it."""

    cuts: list[Cut]
    left_out: LeftOut


class Split(NamedTuple):
    """A corpus by part, and what is left out of it."""

    parts: dict[str, list[Cut]]
    left_out: LeftOut


def words_of(text: str) -> str:
    """Words in lower-case letters and apostrophes; nothing if the text has digits or other letters."""
    words = normalize(text, "basic")
    return words if SPOKEN.fullmatch(words) else ""


def read_utterances(folder: Path, corpus: str, partial: bool = False) -> Utterances:
    """The utterances of a folder that have a recording and words; of recordings, headers are read.

    Raises DataError if too many recordings are broken or, unless the folder is `partial`, missing.
    """
    cuts, missing, broken = import_corpus(folder, skip_missing=True, skip_broken=True)
    lost = [*broken, *(() if partial else missing)]
    total = len(cuts) + len(lost)
    if len(lost) > MAX_BROKEN * total:
        why = next(iter(broken.values()), f"no audio file for {lost[0]}")
        raise DataError(
            f"{folder}: expected at most {MAX_BROKEN:.0%} of {total} recordings to be broken or missing, "
            f"found {len(lost)}, for example {why}"
        )
    spoken = [spoken_cut(cut, corpus) for cut in cuts]
    left_out = {
        f"{corpus}: recording cannot be read": list(broken),
        f"{corpus}: no recording": missing,
        f"{corpus}: text is not only letters": [cut.id for cut in spoken if not cut_text(cut)],
    }
    return Utterances([cut for cut in spoken if cut_text(cut)], left_out)


def spoken_cut(cut: Cut, corpus: str) -> Cut:
    """The cut with its words as text and a speaker's name that no other corpus has."""

    def rewrite(supervision: SupervisionSegment) -> SupervisionSegment:
        speaker = f"{corpus}-{supervision.speaker}" if supervision.speaker else corpus
        text = words_of(supervision.text or "")
        return dataclasses.replace(supervision, text=text, speaker=speaker, language="English")

    return cut.map_supervisions(rewrite)


def split_speechocean762(folder: Path, seed: int) -> Split:
    """Train, dev and two test sets; raises ManifestError if train and test share a speaker or ages lack."""
    train, test = (read_utterances(folder / side, "speechocean762") for side in ("train", "test"))
    ages = read_ages(folder / "train" / "spk2age") | read_ages(folder / "test" / "spk2age")
    learners, testers = ({cut_speaker(cut) for cut in side.cuts} for side in (train, test))
    for problem, speakers in (
        ("ages of all speakers, found none of", (learners | testers) - ages.keys()),
        ("speakers of train not to be in test, found", learners & testers),
    ):
        if speakers:
            raise ManifestError(f"{folder}: expected {problem} {', '.join(sorted(speakers)[:SHOWN_NAMES])}")
    dev = draw_speakers({speaker: ages[speaker] for speaker in learners}, seed)

    def part_of(cut: Cut) -> str:
        speaker = cut_speaker(cut)
        if speaker in learners:
            return "dev" if speaker in dev else "train"
        return SO762_TESTS[0] if ages[speaker] >= ADULT_AGE else SO762_TESTS[1]

    parts = group([*train.cuts, *test.cuts], part_of, ("train", "dev", *SO762_TESTS), folder)
    return Split(parts, merge(train.left_out, test.left_out))


def read_ages(path: Path) -> dict[str, int]:
    """Ages in years by speaker."""
    ages = {}
    for number, line in read_lines(path):
        match = re.fullmatch(r"(\S+)\s+([0-9]{1,3})\s*", line)
        if match is None:
            raise ManifestError(f"{path}:{number}: expected SPEAKER AGE, found {line[:80]!r}")
        ages[f"speechocean762-{match[1]}"] = int(match[2])
    return ages


def draw_speakers(ages: Mapping[str, int], seed: int) -> set[str]:
    """A tenth of the children and a tenth of the adults, rounded up."""
    rng = np.random.default_rng(seed)
    drawn: set[str] = set()
    for adults in (False, True):
        names = sorted(name for name, age in ages.items() if (age >= ADULT_AGE) == adults)
        order = rng.permutation(len(names))[: math.ceil(DEV_SPEAKERS * len(names))]
        drawn.update(names[i] for i in order)
    return drawn


def split_kathleen(folder: Path, seed: int) -> Split:
    """Train, dev and test by prompt, in the prompts' order; nothing is drawn."""
    layout = folder if (folder / "metadata.csv").is_file() else folder / "data"
    utterances = read_utterances(layout, "kathleen")
    prompts = sorted({prompt_of(cut) for cut in utterances.cuts})
    test = last(prompts, TEST_TEXTS)
    dev = last(prompts[: -len(test)], DEV_TEXTS)
    part_of = dict.fromkeys(dev, "dev") | dict.fromkeys(test, "test-kathleen")
    parts = group(
        utterances.cuts,
        lambda cut: part_of.get(prompt_of(cut), "train"),
        ("train", "dev", "test-kathleen"),
        folder,
    )
    return Split(parts, utterances.left_out)


def prompt_of(cut: Cut) -> str:
    """The id without the time of recording: `arctic_a0001` of `arctic_a0001_1592748574`."""
    return re.sub(r"_[0-9]+$", "", cut.id)


def split_ljspeech(folder: Path, seed: int) -> Split:
    """Train and dev, in the books' order; nothing is drawn."""
    utterances = read_utterances(folder, "ljspeech", partial=True)
    dev = set(last(sorted(cut.id for cut in utterances.cuts), DEV_TEXTS))
    parts = group(utterances.cuts, lambda cut: "dev" if cut.id in dev else "train", ("train", "dev"), folder)
    return Split(parts, utterances.left_out)


SPLITTERS = {
    "speechocean762": split_speechocean762,
    "kathleen": split_kathleen,
    "ljspeech": split_ljspeech,
}


def last(names: Sequence[str], share: float) -> Sequence[str]:
    """The last `share` of the names, one at least."""
    return names[-max(1, round(share * len(names))) :]


def group(
    cuts: Iterable[Cut], part_of: Callable[[Cut], str], parts: Sequence[str], folder: Path
) -> dict[str, list[Cut]]:
    """The cuts of each part; raises ManifestError if one has none."""
    grouped: dict[str, list[Cut]] = {part: [] for part in parts}
    for cut in cuts:
        grouped[part_of(cut)].append(cut)
    for part, members in grouped.items():
        if not members:
            raise ManifestError(f"{folder}: expected utterances for {part}, found none")
    return grouped


def merge(*left_outs: LeftOut) -> LeftOut:
    """One dictionary of several, names of the same reason together; no reason without names."""
    merged: LeftOut = {}
    for left_out in left_outs:
        for reason, names in left_out.items():
            if names:
                merged.setdefault(reason, []).extend(names)
    return merged


def keep_texts_apart(splits: dict[str, dict[str, list[Cut]]]) -> LeftOut:
    """Take out of dev what the readers say in a test, and out of train what they say in dev or a test."""
    left_out: LeftOut = {}
    held_out: set[str] = set()
    for part in ("test-kathleen", "dev", "train"):
        for corpus, parts in splits.items():
            cuts = parts.get(part, [])
            repeated = [cut.id for cut in cuts if cut_text(cut) in held_out]
            left_out[f"{corpus}: in {part}, but its text is held out"] = repeated
            if repeated:
                parts[part] = [cut for cut in cuts if cut_text(cut) not in held_out]
        held_out |= {cut_text(cut) for corpus in READERS for cut in splits.get(corpus, {}).get(part, ())}
    return left_out
