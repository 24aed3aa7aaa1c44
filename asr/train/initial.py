"""The model that a run begins with, instead of fresh weights: fine-tuning.

Its weights and feature statistics are copied. Where the run has other labels than the model, so are the
rows of those symbols that both have, in every tensor that has a row for each label (embedding, output
layers, with the columns of a topology behind the labels); rows of new symbols stay as they are in a fresh
network.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from asr.config import Config
from asr.errors import TokenError
from asr.model_directory import LoadedModel, ModelConfig, build_network
from asr.text.tokenizer import (
    UNKNOWN_REMEDY,
    Tokenizer,
    TokenizerConfig,
    extend_tokenizer,
    train_tokenizer,
)
from asr.transducer import Transducer


class Initial(Config):
    """Where a run's first weights come from; in EXP/run.yaml."""

    model: str
    """The model directory, as an absolute path; not needed any more once training has begun."""
    new_tokens: bool = False
    """Whether the symbols of the new texts joined those of the model."""
    check: str | None = None
    """Manifest or shards on which the model before and the model after are compared (asr.forgetting)."""

    @property
    def described(self) -> str:
        """For people."""
        return Path(self.model).name + (", with new symbols" if self.new_tokens else "")

    def tokenizer(self, old: Tokenizer, config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
        """The model's own, or one with the symbols of `texts`; raises like `train_tokenizer`.

        Characters and words join the old ones, which keep their ids; SentencePiece models are made anew.
        """
        if not self.new_tokens:
            return old
        if config.kind == old.config.kind and config.kind not in {"bpe", "unigram"}:
            return extend_tokenizer(old, config, texts)
        return train_tokenizer(config, texts)

    def explain(self, error: TokenError) -> TokenError:
        """The error of a text that the run's tokenizer cannot write, with the remedy of fine-tuning."""
        if self.new_tokens:
            return error
        return TokenError(str(error).replace(UNKNOWN_REMEDY, "correct the text, or add --new-tokens"))


@torch.no_grad()
def copy_weights(model: LoadedModel, network: Transducer, tokenizer: Tokenizer) -> None:
    """Fill `network`, whose labels are those of `tokenizer`, from a model that is the same but for labels."""
    weights = model.network.state_dict()
    if tokenizer.symbols == model.tokenizer.symbols:
        network.load_state_dict(weights)
        return
    by_label = label_sized(model.config)
    old, new = _shared_rows(model.tokenizer, tokenizer)
    for name, tensor in network.state_dict().items():
        if name not in by_label:
            tensor.copy_(weights[name])
            continue
        # Behind the labels: a topology's columns, of which both have the same.
        columns = torch.arange(len(tensor) - tokenizer.vocab_size)
        to, source = torch.cat([new, tokenizer.vocab_size + columns]), weights[name]
        tensor[to] = source[torch.cat([old, model.tokenizer.vocab_size + columns])]


def label_sized(config: ModelConfig) -> set[str]:
    """Names of the tensors that have a row for each label: those that one more label makes longer by one."""
    more = tensor_shapes(config.model_copy(update={"vocab_size": config.vocab_size + 1}))
    shapes = tensor_shapes(config)
    names = {name for name, shape in shapes.items() if more[name] != shape}
    assert all(more[name] == (shapes[name][0] + 1, *shapes[name][1:]) for name in names)
    return names


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's tensors, by name."""
    return {name: tuple(tensor.shape) for name, tensor in build_network(config).state_dict().items()}


def _shared_rows(old: Tokenizer, new: Tokenizer) -> tuple[Tensor, Tensor]:
    """Ids of the symbols that both have, in either; of a symbol that is there twice the first."""
    places = {symbol: id for id, symbol in reversed(list(enumerate(old.symbols)))}
    ids = [(places[symbol], id) for id, symbol in enumerate(new.symbols) if symbol in places]
    rows = torch.tensor(ids, dtype=torch.int64)
    return rows[:, 0], rows[:, 1]
