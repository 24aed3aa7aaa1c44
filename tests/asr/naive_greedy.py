"""Greedy transducer search as its definition reads: one stream, one frame, one symbol after the other.

The oracle of asr.search.greedy, and what tools/bench/search.py measures against. It knows the topologies by
name and asks the model for logits; it shares no code with the search.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from asr.search import Token
from asr.transducer import Transducer


class Naive(NamedTuple):
    tokens: list[Token]
    truncated: int


@torch.inference_mode()
def naive_greedy(model: Transducer, encoded: Tensor, max_symbols: int) -> Naive:
    """Search encoder frames (T, E) of one stream."""
    topology = model.config.loss.transducer.topology
    labels_take = 1 if topology.name in ("monotonic", "ctc") else 0
    big = (topology.durations or (2, 4)) if topology.name == "multi_blank" else ()
    durations = (topology.durations or (0, 1, 2, 3, 4)) if topology.name == "tdt" else ()
    frames = model.joiner.encoder(encoded)
    state = model.predictor.initial_state(1)
    y, state = model.predictor(torch.tensor([[0]]), state)
    said = model.joiner.predictor(y[:, 0])[0]
    tokens, truncated, t, symbols, last = list[Token](), 0, 0, 0, 0
    while t < len(frames):
        logits = model.joiner.combine(frames[t], said)
        choices = logits[: len(logits) - len(durations)]
        label = int(choices.argmax())
        taken = labels_take if label else 1
        if label >= model.vocab_size:
            label, taken = 0, big[label - model.vocab_size]
        if durations:
            taken = durations[int(logits[-len(durations) :].argmax())]
            taken = max(1, taken) if label == 0 else taken
        if label and taken == 0 and symbols == max_symbols:
            truncated, t, symbols = truncated + 1, t + 1, 0
            continue
        if label and not (topology.name == "ctc" and label == last):
            tokens.append(Token(label, t, t + max(1, taken), float(choices.log_softmax(-1)[label])))
            y, state = model.predictor(torch.tensor([[label]]), state)
            said = model.joiner.predictor(y[:, 0])[0]
        last, t, symbols = label, t + taken, symbols + 1 if taken == 0 else 0
    return Naive(tokens, truncated)
