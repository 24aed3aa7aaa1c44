"""The hypotheses that minimum word error rate training (asr.losses.mwer) learns from.

They are those of the beam search that decodes, from the network as it stands, in evaluation mode and without
gradients: what is drawn in training (dropout) has no influence on them. They hear the batch's own features,
masked as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from asr.encoders import EncoderOutput
from asr.losses import MwerConfig, NBest
from asr.score.wer import word_errors
from asr.search import BeamSearch
from asr.text.tokenizer import Tokenizer
from asr.transducer import Transducer

Labels = list[int]


def find_n_best(
    network: Transducer,
    features: Tensor,
    feature_lengths: Tensor,
    texts: Sequence[str],
    references: Sequence[Labels],
    tokenizer: Tokenizer,
    *,
    autocast: torch.autocast,
) -> NBest:
    """Hypotheses of features (B, T, D), with their word errors against the texts.

    `references` are the labels of the texts, which count as well if the network's configuration says so. The
    encoder runs under `autocast`, the search in float32. The network is left in the mode that it is in.
    """
    config = network.config.loss.mwer
    with evaluating(network), torch.no_grad():
        with autocast:
            encoded = network.encode(features, feature_lengths)
        found = _searched(network, encoded, config)
    lists = [
        _with_reference(row, reference) if config.include_reference else row
        for row, reference in zip(found, references, strict=True)
    ]
    return _n_best(lists, texts, tokenizer, features.device)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """In evaluation mode within, and every module as it was afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _searched(network: Transducer, encoded: EncoderOutput, config: MwerConfig) -> list[list[Labels]]:
    """The best hypotheses of each utterance, best first, from its first label on."""
    y = encoded.y.float() if encoded.y.dtype in (torch.bfloat16, torch.float16) else encoded.y
    search = BeamSearch(network, config.beam)
    found = search(y, encoded.y_lengths, search.initial_state(len(y), y.device))
    rows = zip(found.tokens, search.n_best(found.state), strict=True)
    return [
        [[token.id for token in (*given, *h.tokens)] for h in hypotheses[: config.nbest]]
        for given, hypotheses in rows
    ]


def _with_reference(hypotheses: list[Labels], reference: Labels) -> list[Labels]:
    return hypotheses if reference in hypotheses else [*hypotheses, reference]


def _n_best(
    lists: Sequence[Sequence[Labels]], texts: Sequence[str], tokenizer: Tokenizer, device: torch.device
) -> NBest:
    """Lists as tensors, with their errors."""
    flat = [(b, n, labels) for b, row in enumerate(lists) for n, labels in enumerate(row)]
    errors = word_errors([texts[b] for b, _, _ in flat], [tokenizer.decode(labels) for _, _, labels in flat])
    shape = len(lists), max((len(row) for row in lists), default=0)
    longest = max((len(labels) for _, _, labels in flat), default=0)
    targets = torch.zeros(*shape, longest, dtype=torch.int64)
    lengths = torch.zeros(shape, dtype=torch.int64)
    counted, present = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    for (b, n, labels), wrong in zip(flat, errors, strict=True):
        targets[b, n, : len(labels)] = torch.tensor(labels, dtype=torch.int64)
        lengths[b, n], counted[b, n], present[b, n] = len(labels), wrong.errors, True
    return NBest(*(x.to(device) for x in (targets, lengths, counted, present)))
