"""What a fine-tuned model still knows: the word error rate on an old test set, before and after.

Both models decode as `asr decode` does, each with its own tokenizer: the model that the run begins with
before the first step, so that a test set that cannot be read is found out at once, and the result when it is
there, whether the run was interrupted or not. What was measured is in EXP/forgetting.yaml and in the card.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from asr.config import Config, load_config, save_config, write_atomically
from asr.data.parts import find_part, open_part
from asr.data.shards import SUFFIX
from asr.errors import ManifestError
from asr.evaluate import Options, evaluate, find_manifest
from asr.model_directory import CARD
from asr.train.card import with_fact
from asr.train.setup import RUN, RunInfo

FORGETTING = "forgetting.yaml"
FACT = "forgetting"


class Measured(Config):
    """What one model made of the test set."""

    model: str
    wer: float
    """In 0..1."""
    errors: int
    words: int
    summary: str
    """The line that `asr decode` prints."""


class Forgetting(Config):
    """EXP/forgetting.yaml."""

    data: str
    before: Measured
    after: Measured | None = None
    """None until the run has ended."""
    difference: float | None = None
    """WER after minus WER before, in 0..1."""


class ForgettingCheck:
    """Measures what a run's `initial.check` asks for, if anything: an `asr.train.loop.Comparison`."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device

    def before(self, exp: Path, say: Callable[[str], None]) -> None:
        """Decode with the model that the run begins with; raises ManifestError, ModelError, AudioError."""
        initial = load_config(exp / RUN, RunInfo).initial
        if initial is None or initial.check is None:
            return
        out = exp / "decode" / f"{_name(initial.check)}-before"
        before = self._measure(Path(initial.model), initial.check, out)
        save_config(Forgetting(data=initial.check, before=before), exp / FORGETTING)
        say(f"before: {before.summary}, {before.model}")

    def after(self, exp: Path, say: Callable[[str], None]) -> None:
        """Decode with the result, and say how they differ; nothing if that is done."""
        initial = load_config(exp / RUN, RunInfo).initial
        if initial is None or initial.check is None:
            return
        if not (exp / FORGETTING).is_file():  # another program has begun the run
            self.before(exp, say)
        found = load_config(exp / FORGETTING, Forgetting)
        if found.after is not None:
            return
        after = self._measure(exp, found.data, exp / "decode" / _name(found.data))
        found = found.model_copy(update={"after": after, "difference": after.wer - found.before.wer})
        card = (exp / CARD).read_text(encoding="utf-8")
        write_atomically(exp / CARD, with_fact(card, FACT, _change(found, after)).encode())
        save_config(found, exp / FORGETTING)  # last: it says that all is done
        say(f"before: {found.before.summary}, {found.before.model}")
        say(f"after:  {after.summary}, {after.model}")
        say(f"{FACT}: {_change(found, after)}")

    def _measure(self, model: Path, data: str, out: Path) -> Measured:
        evaluation = evaluate(model, data, out, Options(device=self._device))
        words = evaluation.report.overall
        if not words.reference_words:
            raise ManifestError(f"{data}: expected a test set with words, found none; give another --check")
        return Measured(
            model=str(model),
            wer=words.wer,
            errors=words.errors,
            words=words.reference_words,
            summary=evaluation.lines[0],
        )


def find_check(model: Path, check: str) -> Path:
    """The test set that `check` names: a corpus directory's `test`, or as `asr decode MODEL --data` has it.

    Raises ManifestError if it is not there or cannot be understood.
    """
    path = Path(check)
    if path.is_dir() and path.suffix != SUFFIX:
        found = find_part(path, "test")
        if found is None:
            raise ManifestError(
                f"--check {check}: expected a corpus directory with test.jsonl.gz or test.shar, found "
                "neither; name a part, e.g. DIR/dev.jsonl.gz"
            )
    else:
        found = find_manifest(model, check)[0]
    open_part(found)
    return found.absolute()


def _change(found: Forgetting, after: Measured) -> str:
    """For the terminal and the card."""
    before, points = 100 * found.before.wer, 100 * (after.wer - found.before.wer)
    wers = f"WER {before:.2f} % before, {100 * after.wer:.2f} % after ({points:+.2f} points)"
    return f"{wers} on {_name(found.data)}"


def _name(data: str) -> str:
    """What `asr decode` calls the results of a manifest."""
    return find_manifest(Path(), data)[1]
