"""N-grams over labels in files that only KenLM reads: its binary formats, hashed, quantised or packed.

KenLM (Heafield 2011) is asked through its Python package, if that is installed. It answers word by word, and
its states are its own; here the state of a hypothesis is its last labels, from which KenLM's is made again.
Rows of the same last labels are remembered, as far as `memory_bytes` go: hypotheses of a beam share most of
theirs.

An ARPA file is better read by `asr.lms.tokens`, which needs no package and asks by the batch.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from asr.config import Config
from asr.errors import ConfigError, MissingExtraError, ModelError
from asr.lms.ngram import END
from asr.text.tokenizer import Tokenizer

MAGIC = b"mmap lm http://kheafield.com/code"
"""What KenLM's binary files begin with."""
ABSENT = -99.0
"""log10 of the probability of words that KenLM has added itself."""
BEFORE = -1
"""Stands in a history where nothing was said yet."""

_LN10 = 2.302585092994046


class KenlmConfig(Config):
    """How KenLM is asked."""

    memory_bytes: int = Field(default=1 << 26, ge=0)
    """Memory for rows that have been asked for."""


@dataclass(frozen=True)
class KenlmState:
    """What was said, as far as the model looks back."""

    history: Tensor
    """(N, order - 1) int64 labels, the latest last."""


class KenlmTokens:
    """Scores of labels by an n-gram over labels that KenLM reads; a Scorer (asr.lms.base)."""

    def __init__(self, path: Path | str, tokenizer: Tokenizer, config: KenlmConfig | None = None) -> None:
        """Raises MissingExtraError without the package, ModelError if KenLM cannot read the file, and
        ConfigError, naming them, if labels are not in the model.
        """
        self._kenlm, self._model = _open(Path(path))
        labels = tokenizer.symbols[1:]
        missing = [label for label in labels if label not in self._model]
        if missing and self._word(self._null(), missing[0]) <= ABSENT:
            shown = " ".join(missing[:10]) + (" ..." if len(missing) > 10 else "")
            raise ConfigError(
                f"{path}: the n-gram model lacks {len(missing)} of the {len(labels)} labels ({shown}) and "
                "<unk>; train it on text spelled by this tokenizer"
            )
        self.vocab_size = tokenizer.vocab_size
        # In the place of blank, which is never said, a row holds the end.
        self._words = [END if END in self._model else None, *labels]
        self._rows: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._most = (config or KenlmConfig()).memory_bytes // (4 * self.vocab_size)

    def initial_state(self, batch: int, device: torch.device | None = None) -> KenlmState:
        """State of `batch` hypotheses that have said nothing, behind `<s>`."""
        return KenlmState(torch.full((batch, self._model.order - 1), BEFORE, device=device))

    def score(self, state: KenlmState) -> Tensor:
        """(N, V) natural logarithms of the probability of every label; 0 for blank."""
        scores = self._scores(state)
        scores[:, 0] = 0
        return scores

    def advance(self, state: KenlmState, labels: Tensor) -> KenlmState:
        """State after labels (N,)."""
        said = torch.cat([state.history, labels[:, None]], 1)
        return KenlmState(said[:, said.shape[1] - state.history.shape[1] :])

    def end(self, state: KenlmState) -> Tensor:
        """(N,) natural logarithm of the probability of `</s>`."""
        return self._scores(state)[:, 0]

    def _scores(self, state: KenlmState) -> Tensor:
        if not len(state.history):
            return torch.zeros(0, self.vocab_size, device=state.history.device)
        rows = [self._row(tuple(history)) for history in state.history.tolist()]
        return torch.stack(rows).to(state.history.device)

    def _row(self, history: tuple[int, ...]) -> Tensor:
        row = self._rows.get(history)
        if row is None:
            context = self._context(history)
            log10 = [0.0 if word is None else self._word(context, word) for word in self._words]
            row = torch.tensor(log10) * _LN10
        else:
            del self._rows[history]
        self._rows[history] = row  # the latest last
        if len(self._rows) > self._most:
            self._rows.popitem(last=False)
        return row

    def _context(self, history: tuple[int, ...]) -> Any:
        """KenLM's state behind a history."""
        state = self._null()
        if BEFORE in history or not history:
            self._model.BeginSentenceWrite(state)
        for label in history:
            if label != BEFORE:
                after = self._kenlm.State()
                self._model.BaseScore(state, self._words[label], after)
                state = after
        return state

    def _null(self) -> Any:
        state = self._kenlm.State()
        self._model.NullContextWrite(state)
        return state

    def _word(self, context: Any, word: str) -> float:
        return float(self._model.BaseScore(context, word, self._kenlm.State()))


def is_kenlm(path: Path | str) -> bool:
    """Whether a file is in one of KenLM's binary formats."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def _open(path: Path) -> tuple[Any, Any]:
    """The package and the model."""
    if not path.is_file():
        raise ModelError(f"{path}: expected a language model, found no file there")
    try:
        import kenlm
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{path}: reading a KenLM file", "kenlm") from error
    except ImportError as error:
        raise ModelError(f"{path}: the package kenlm does not load ({error}); install it again") from error
    config = kenlm.Config()
    config.show_progress = False
    try:
        return kenlm, kenlm.Model(str(path), config)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{path}: expected a model that KenLM can read, found otherwise ({reason})"
        ) from error
