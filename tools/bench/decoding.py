"""Recordings through a recogniser, once each: what was heard is kept, and an interrupted run goes on.

    OUT/SYSTEM/system.json   what it was decoded with; another model in the same folder is an error
    OUT/SYSTEM/PART.jsonl    a line for each recording, as soon as it is heard

Which recordings are asked for does not matter to the files: a sample comes first, the rest may follow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from child import Answer, Child, Ready
from onset import speech_onset
from recognisers import CHUNK_S, command, versions
from rich.progress import Progress

from asr.config import write_atomically
from asr.data.manifests import read_json_lines
from asr.data.samples import load_samples
from asr.data.shards import file_sha256
from asr.errors import ConfigError, ManifestError
from asr.interrupt import Interrupt
from asr.progress import progress_bar

ABOUT = "system.json"
WEIGHTS = ("model.safetensors", "model.bin")


class System(NamedTuple):
    """A recogniser to compare, and what its results are called."""

    name: str
    kind: str
    model: str = ""

    def settings(self) -> dict[str, Any]:
        """What its results depend on."""
        files = [Path(self.model) / name for name in WEIGHTS]
        model = next((file_sha256(file)[:16] for file in files if self.model and file.is_file()), self.model)
        return {"kind": self.kind, "model": model, "chunk_s": CHUNK_S, **versions(self.kind)}


class Part(NamedTuple):
    """Recordings to decode, of those that a part of the corpus has."""

    name: str
    cuts: Sequence[Any]
    of: int


class Record(NamedTuple):
    """What is kept of a recording; times in seconds."""

    id: str
    text: str
    audio_s: float
    onset_s: float | None
    first_word_s: float | None
    cpu_s: float
    wall_s: float
    peak_mib: float
    state: str


class Listener(Protocol):
    """A recogniser that is ready."""

    ready: Ready

    def hear(self, samples: npt.NDArray[np.float32], state: str) -> Answer:
        """See `child.Child`."""


Start = Callable[[System], AbstractContextManager[Listener]]


def start_child(system: System) -> Child:
    """The system in a process of its own."""
    return Child(command(system.kind, system.model), system.name)


def decode(
    system: System, parts: Iterable[Part], out: Path, interrupt: Interrupt, start: Start = start_child
) -> None:
    """Decode what has not been decoded yet; `interrupt` lets it finish the recording in hand.

    Raises ConfigError if OUT/SYSTEM was decoded with something else, AsrError if the recogniser fails.
    """
    folder = out / system.name
    _check_about(system, folder)
    missing = [part._replace(cuts=_missing(part, folder)) for part in parts]
    if not any(part.cuts for part in missing):
        return
    with start(system) as listener:
        about = {"settings": system.settings(), **listener.ready._asdict()}
        write_atomically(folder / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
        for part in missing:
            if part.cuts and not interrupt.requested:
                _decode_part(part, folder, listener, interrupt, f"{system.name}, {part.name}")


def read_about(system: System, out: Path) -> dict[str, Any]:
    """OUT/SYSTEM/system.json: settings, streaming, sample_rate, load_s."""
    about: dict[str, Any] = json.loads((out / system.name / ABOUT).read_text())
    return about


def read_records(path: Path) -> list[Record]:
    """What was heard so far, in order; a line that was cut off is taken away from the file."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        write_atomically(path, content[: content.rfind(b"\n") + 1])
    records = []
    for number, item in read_json_lines(path):
        if set(item) != set(Record._fields):
            fields = ", ".join(Record._fields)
            raise ManifestError(f"{path}:{number}: expected {fields}; remove the file to decode again")
        records.append(Record(**item))
    return records


def _check_about(system: System, folder: Path) -> None:
    if not (folder / ABOUT).is_file():
        return
    found, expected = json.loads((folder / ABOUT).read_text())["settings"], system.settings()
    if found != expected:
        differ = ", ".join(f"{key} {found.get(key)!r}" for key in expected if found.get(key) != expected[key])
        raise ConfigError(
            f"{folder}: was decoded with other settings ({differ}); give another --out or remove it"
        )


def _missing(part: Part, folder: Path) -> list[Any]:
    done = {record.id for record in read_records(folder / f"{part.name}.jsonl")}
    return [cut for cut in part.cuts if cut.id not in done]


def _decode_part(part: Part, folder: Path, listener: Listener, interrupt: Interrupt, title: str) -> None:
    path = folder / f"{part.name}.jsonl"
    before = read_records(path)
    state = before[-1].state if before else ""
    with path.open("a", encoding="utf-8") as file, progress_bar(*Progress.get_default_columns()) as display:
        task = display.add_task(title, total=len(part.cuts))
        for cut in interrupt.until(part.cuts):
            state = _decode_cut(cut, listener, state, file).state
            display.advance(task)


def _decode_cut(cut: Any, listener: Listener, state: str, file: IO[str]) -> Record:
    rate = listener.ready.sample_rate
    samples = load_samples(cut, rate)
    answer = listener.hear(samples, state)
    onset_s = speech_onset(samples, rate)
    record = Record(id=cut.id, audio_s=len(samples) / rate, onset_s=onset_s, **answer._asdict())
    file.write(json.dumps(record._asdict(), ensure_ascii=False) + "\n")
    file.flush()
    return record
