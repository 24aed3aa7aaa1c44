"""How well a neural language model predicts texts, in the numbers of `asr.lms.perplexity`.

Tokens are the labels of the model's own tokenizer, of which none is unknown: a line that it cannot write is
left out and counted. A cache and dynamic evaluation begin anew with each text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from asr.config import Config
from asr.errors import ConfigError
from asr.lms.cache import CacheConfig
from asr.lms.dynamic import DynamicConfig, mean_square_gradients
from asr.lms.evaluation import neural_perplexity
from asr.lms.neural import NeuralLm
from asr.lms.perplexity import Prediction, TextPrediction
from asr.lms.sentences import Sentence, Sentences
from asr.text.tokenizer import Tokenizer

GRADIENTS_OF = 1000
"""Sentences of the training text at most, of which rms takes the mean square of the gradients."""


class Adaptation(Config):
    """What a model learns from the text before the sentence that it predicts: nothing, or one of these."""

    cache: CacheConfig | None = None
    dynamic: DynamicConfig | None = None


def neural_text_perplexities(
    model: NeuralLm,
    tokenizer: Tokenizer,
    texts: Sequence[Path],
    normalization: str = "basic",
    *,
    adaptation: Adaptation | None = None,
    training_text: Path | None = None,
) -> list[TextPrediction]:
    """Predict every text, a sentence a line; `training_text` is what dynamic evaluation of kind rms needs.

    Raises ConfigError, ManifestError for what cannot be read, and DataError for a text without sentences.
    """
    adaptation = adaptation or Adaptation()
    squares = _mean_squares(model, tokenizer, training_text, normalization, adaptation)
    found = []
    for path in texts:
        sentences, characters = Sentences([path], normalization, tokenizer), list[int]()
        measured = neural_perplexity(
            model,
            tokenizer,
            _lines(sentences, characters),
            cache=adaptation.cache,
            dynamic=adaptation.dynamic,
            mean_squares=squares,
        )
        prediction = Prediction(
            sentences=measured.sentences,
            tokens=measured.labels,
            ends=measured.sentences,
            characters=sum(characters),
            log_prob=-measured.nats,
            log_prob_known=-measured.nats,
        )
        found.append(TextPrediction(path, prediction, sentences.left_out, sentences.first_left_out))
    return found


def _lines(sentences: Sentences, characters: list[int]) -> Iterator[str]:
    """The sentences; the characters of each, and of its end, are appended as it comes."""
    for sentence in sentences.at_least_one():
        characters.append(len(sentence.text) + 1)
        yield sentence.text


def _mean_squares(
    model: NeuralLm,
    tokenizer: Tokenizer,
    training_text: Path | None,
    normalization: str,
    adaptation: Adaptation,
) -> list[Tensor] | None:
    wanted = adaptation.dynamic is not None and adaptation.dynamic.kind == "rms"
    if training_text is None:
        return None
    if not wanted:
        raise ConfigError(
            f"the training text {training_text} is for dynamic evaluation of kind rms; leave it out, or set "
            "dynamic.kind=rms"
        )

    def encoded(sentence: Sentence) -> Tensor:
        return torch.tensor(tokenizer.encode(sentence.text), dtype=torch.int64, device=model.bias.device)

    sentences = Sentences([training_text], normalization, tokenizer).at_least_one()
    return mean_square_gradients(model, map(encoded, islice(sentences, GRADIENTS_OF)))
