"""An n-gram over the labels that a recogniser writes, as a Scorer.

The words of the model are the symbols of the tokenizer (characters with '▁' for the space, or pieces of
words), as a text of space-separated symbols gives when an n-gram is trained on it. Sentences begin with `<s>`
and `end` is `</s>`; a model without `</s>` says nothing of the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from asr.config import Config
from asr.errors import ConfigError
from asr.lms.ngram import END, NgramModel
from asr.lms.rows import Rows
from asr.text.tokenizer import Tokenizer

SHOWN_LABELS = 10
"""Labels that an error names."""


class TokenNgramConfig(Config):
    """How an n-gram over labels is read."""

    unknown: float | None = Field(default=None, le=0)
    """Natural logarithm of the probability of a label that the model does not have, in place of that of its
    `<unk>`. Without either, such labels are an error."""


@dataclass(frozen=True)
class TokenNgramState:
    """What was said, as far as the model looks back."""

    context: Tensor
    """(N,) int64."""


class TokenNgram:
    """Scores of labels by an n-gram over labels; a Scorer (asr.lms.base), on the device of the model."""

    def __init__(
        self, model: NgramModel, tokenizer: Tokenizer, config: TokenNgramConfig | None = None
    ) -> None:
        """Raises ConfigError, naming them, if labels are not in the model and nothing says what they cost."""
        config = config or TokenNgramConfig()
        if config.unknown is not None:
            model = model.with_unknown(config.unknown)
        labels = tokenizer.symbols[1:]
        missing = [label for label in labels if label not in model.ids]
        if missing and model.closed:
            shown = " ".join(missing[:SHOWN_LABELS]) + (" ..." if len(missing) > SHOWN_LABELS else "")
            raise ConfigError(
                f"the n-gram model lacks {len(missing)} of the {len(labels)} labels ({shown}) and <unk>; "
                "train it on text spelled by this tokenizer, or set unknown to their log-probability"
            )
        self.model, self.vocab_size = model, tokenizer.vocab_size
        words = [model.unknown, *(model.ids.get(label, model.unknown) for label in labels)]
        self._words = torch.tensor(words, device=model.keys.device)
        self._rows = Rows(model, self._words)
        self._end = model.ids.get(END)

    def initial_state(self, batch: int, device: torch.device | None = None) -> TokenNgramState:
        """State of `batch` hypotheses that have said nothing, behind `<s>`."""
        return TokenNgramState(torch.full((batch,), self.model.begin, device=device or self._words.device))

    def score(self, state: TokenNgramState) -> Tensor:
        """(N, V) natural logarithms of the probability of every label; 0 for blank."""
        scores = self._rows.log_prob(state.context)
        scores[:, 0] = 0
        return scores

    def advance(self, state: TokenNgramState, labels: Tensor) -> TokenNgramState:
        """State after labels (N,)."""
        edges = self.model.find(state.context, self._words.index_select(0, labels))
        return TokenNgramState(self.model.follow(edges))

    def end(self, state: TokenNgramState) -> Tensor:
        """(N,) natural logarithm of the probability of `</s>`."""
        if self._end is None:
            return torch.zeros(len(state.context), device=state.context.device)
        words = torch.full_like(state.context, self._end)
        return self.model.score(state.context, self.model.find(state.context, words))
