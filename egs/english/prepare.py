"""English: read speech of learners, children and adults, and of two native readers, open vocabulary.

    python egs/english/prepare.py OUT_DIR [--data-dir DIR] [--only NAME,NAME,...] [--seed N]

Below DIR, as their publishers lay them out (audio as wav, flac, ogg, opus or mp3):

speechocean762  250 learners of English, half of them children: Kaldi directories `train/` and `test/` with
                `spk2age`, audio where their `wav.scp` says
kathleen        a US speaker reads CMU Arctic prompts, some of them several times: `data/ID.wav` and
                `data/ID.txt`, or `metadata.csv` and `wavs/`
ljspeech        a US speaker reads books: `metadata.csv`, `wavs/` for all or some of its sentences
noise, rir      recordings of noise and impulse responses to train with, if they are there

Without --data-dir the corpora are downloaded (sources.py); noise and rir only if --only names them.

train                everything else
dev                  a tenth of speechocean762's train speakers, of children and of adults, drawn by --seed;
                     the 3 % of kathleen's prompts before those of the test; the last 3 % of ljspeech
test-so762-adults    speakers of speechocean762's own test set who are 18 or older
test-so762-children  those who are younger; nobody is 16, 17 or 18, so any border there is the same
test-kathleen        the last 5 % of kathleen's prompts, all recordings of each

No speaker of speechocean762 is in two parts. The two readers are in several, so their texts are not: what
test-kathleen says is neither in dev nor in train, what they say in dev is not in train, under whatever id.
Few texts of speechocean762 recur; the table counts those that are in train, word for word.

OUT_DIR gets a manifest of each part, `corpus.yaml`, `noise.jsonl.gz` and `rir.jsonl.gz` (for
`augment.noise.source` and `augment.reverb.source`), `text/lm.txt` (the sentences of ljspeech, recorded or
not, that no dev or test utterance says: for language models), and `left-out.txt`, which names all that is
left out and why.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from sources import ACOUSTICS, SOURCES, SPEECH, find_folders
from splits import (
    SHOWN_NAMES,
    SO762_TESTS,
    SPLITTERS,
    Cut,
    LeftOut,
    keep_texts_apart,
    merge,
    words_of,
)

from asr.config import write_atomically
from asr.data.importers import AUDIO_SUFFIXES, read_metadata
from asr.data.manifests import (
    CARD,
    CorpusCard,
    cut_speaker,
    cut_text,
    file_recording,
    save_card,
    write_cuts,
)
from asr.errors import AsrError, ManifestError

PARTS = ("train", "dev", *SO762_TESTS, "test-kathleen")


class Sentences(NamedTuple):
    """Text for language models, and what is left out of it."""

    sentences: list[str]
    left_out: LeftOut


class Prepared(NamedTuple):
    """All that is written."""

    splits: dict[str, dict[str, list[Cut]]]
    """Cuts by corpus, then by part."""
    acoustics: dict[str, list[Cut]]
    """Noise and impulse responses."""
    sentences: list[str]
    """Text for language models."""
    left_out: LeftOut

    def part(self, part: str) -> list[Cut]:
        """The cuts of a part from all corpora."""
        return [cut for parts in self.splits.values() for cut in parts.get(part, ())]


def model_text(table: Path, held_out: Collection[str]) -> Sentences:
    """The sentences of a metadata.csv, recorded or not, but those that are held out."""
    said = [(name, words_of(text)) for _, name, text in read_metadata(table)]
    left_out = {
        "lm.txt: text is not only letters": [name for name, words in said if not words],
        "lm.txt: text is held out": [name for name, words in said if words in held_out],
    }
    return Sentences([words for _, words in said if words and words not in held_out], left_out)


def read_acoustics(folder: Path) -> list[Cut]:
    """Cuts without text of all recordings below a folder; raises AudioError for one that is broken."""
    folder = folder.absolute()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not paths:
        raise ManifestError(f"{folder}: expected recordings, found none")
    return [file_recording(path, path.relative_to(folder).as_posix()).to_cut() for path in paths]


def prepare(out_dir: Path, data_dir: Path | None = None, only: Sequence[str] = (), seed: int = 0) -> Prepared:
    """Write manifests, text and card into `out_dir`; raises AsrError before it changes anything there."""
    folders = find_folders(out_dir, data_dir, only)
    read = {corpus: SPLITTERS[corpus](folders[corpus], seed) for corpus in SPEECH if corpus in folders}
    splits = {corpus: split.parts for corpus, split in read.items()}
    repeated = keep_texts_apart(splits)
    text = Sentences([], {})
    if "ljspeech" in folders:
        asked = (cut for parts in splits.values() for part in PARTS[1:] for cut in parts.get(part, ()))
        text = model_text(folders["ljspeech"] / "metadata.csv", {cut_text(cut) for cut in asked})
    prepared = Prepared(
        splits=splits,
        acoustics={name: read_acoustics(folders[name]) for name in ACOUSTICS if name in folders},
        sentences=text.sentences,
        left_out=merge(*(split.left_out for split in read.values()), repeated, text.left_out),
    )
    _check_ids(prepared)
    write(prepared, out_dir, seed)
    return prepared


def write(prepared: Prepared, out_dir: Path, seed: int) -> None:
    """Replace what is in `out_dir`; the card, written last, stands for all the rest being there."""
    manifests = {part: prepared.part(part) for part in PARTS} | prepared.acoustics
    texts = {
        "text/lm.txt": prepared.sentences,
        "left-out.txt": [f"{name}\t{why}" for why, names in prepared.left_out.items() for name in names],
    }
    for name in (CARD, *texts, *(f"{manifest}.jsonl.gz" for manifest in (*PARTS, *ACOUSTICS))):
        (out_dir / name).unlink(missing_ok=True)
    for manifest, cuts in manifests.items():
        if cuts:
            write_cuts(cuts, out_dir / f"{manifest}.jsonl.gz")
    for name, lines in texts.items():
        if lines:
            (out_dir / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out_dir / name, "".join(f"{line}\n" for line in lines).encode())
    save_card(corpus_card(prepared, seed), out_dir)


def corpus_card(prepared: Prepared, seed: int) -> CorpusCard:
    """Sources and licences of what was used; the sample rate is the lowest among the speech."""
    used = [name for name in SOURCES if name in prepared.splits or name in prepared.acoustics]
    return CorpusCard(
        name="english",
        source="; ".join(f"{name}: {SOURCES[name].page}" for name in used),
        licence="; ".join(f"{name}: {SOURCES[name].licence}" for name in used),
        sample_rate=min(cut.sampling_rate for part in PARTS for cut in prepared.part(part)),
        note=f"seed {seed}; read speech; text in lower case without punctuation",
    )


def _check_ids(prepared: Prepared) -> None:
    ids = Counter(cut.id for part in PARTS for cut in prepared.part(part))
    repeated = [name for name, count in ids.items() if count > 1]
    if repeated:
        raise ManifestError(f"{repeated[0]}: expected each id once in all corpora, found {ids[repeated[0]]}")


def report(prepared: Prepared) -> str:
    """The size of each part by corpus, and what is left out."""
    train = {cut_text(cut) for cut in prepared.part("train")}
    lines = [f"{'':21} {'cuts':>6} {'words':>7} {'hours':>7} {'speakers':>9} {'text in train':>14}"]
    for part in PARTS:
        corpora = {corpus: parts[part] for corpus, parts in prepared.splits.items() if parts.get(part)}
        rows = {part: prepared.part(part)} if corpora else {}
        rows |= {f"  {corpus}": cuts for corpus, cuts in corpora.items()} if len(corpora) > 1 else {}
        lines += [_row(name, cuts, None if part == "train" else train) for name, cuts in rows.items()]
    tests = [cut_text(cut) for part in SO762_TESTS for cut in prepared.part(part)]
    if tests:
        common = [text for text in tests if text in train]
        lines.append(
            f"speechocean762's tests: {len(common)} of {len(tests)} utterances, {len(set(common))} of "
            f"{len(set(tests))} texts are in train, word for word"
        )
    for name, cuts in prepared.acoustics.items():
        lines.append(f"{name}: {len(cuts)} recordings, {sum(cut.duration for cut in cuts):.1f} s")
    if prepared.sentences:
        words = sum(len(sentence.split()) for sentence in prepared.sentences)
        lines.append(f"text/lm.txt: {len(prepared.sentences)} sentences, {words} words")
    for why, names in prepared.left_out.items():
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        lines.append(f"left out: {len(names):5} {why} ({', '.join(names[:SHOWN_NAMES])}{more})")
    return "\n".join(lines)


def _row(name: str, cuts: Sequence[Cut], train: Collection[str] | None) -> str:
    words = sum(len(cut_text(cut).split()) for cut in cuts)
    hours = sum(cut.duration for cut in cuts) / 3600
    speakers = len({cut_speaker(cut) for cut in cuts})
    common = "" if train is None else sum(cut_text(cut) in train for cut in cuts)
    return f"{name:21} {len(cuts):6} {words:7} {hours:7.3f} {speakers:9} {common:14}".rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, prepare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--data-dir", type=Path, help="folder with the corpora instead of a download")
    parser.add_argument("--only", default="", help=f"names with commas among {', '.join(SOURCES)}")
    parser.add_argument("--seed", type=int, default=0, help="draws the dev speakers of speechocean762")
    args = parser.parse_args(arguments)
    only = [name for name in args.only.split(",") if name]
    try:
        prepared = prepare(args.out_dir, args.data_dir, only, args.seed)
    except AsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report(prepared))
    print(f"manifests in {args.out_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
