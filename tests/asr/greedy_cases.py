"""Models and streams for the checks of greedy search, on CPU (test_greedy.py) and GPU (gpu_greedy_checks)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from naive_greedy import naive_greedy
from torch import Tensor

from asr.encoders import LstmEncoderConfig
from asr.joiner import JoinerConfig
from asr.losses import LossConfig, TopologyConfig, TransducerLossConfig
from asr.predictors import LstmPredictorConfig, StatelessPredictorConfig, TransformerPredictorConfig
from asr.search import GreedySearch, SearchOutput, Token
from asr.transducer import Transducer, TransducerConfig

WIDTH, VOCAB, MAX_SYMBOLS = 10, 6, 2
TOPOLOGIES = {
    "rnnt": TopologyConfig(),
    "monotonic": TopologyConfig(name="monotonic"),
    "ctc": TopologyConfig(name="ctc"),
    "tdt": TopologyConfig(name="tdt"),
    "tdt, unordered": TopologyConfig(name="tdt", durations=(4, 0, 1)),
    "tdt, no zero": TopologyConfig(name="tdt", durations=(3, 1)),
    "multi_blank": TopologyConfig(name="multi_blank"),
    "multi_blank, unordered": TopologyConfig(name="multi_blank", durations=(3, 2, 7)),
}
PREDICTORS = {
    "stateless": StatelessPredictorConfig(dim=8, context=2),
    "lstm": LstmPredictorConfig(dim=8, layers=2),
    "transformer": TransformerPredictorConfig(dim=8, heads=2, history=3),
}


class Case(NamedTuple):
    """A batch of streams, and what the definition finds in it."""

    model: Transducer
    encoded: Tensor
    lengths: Tensor
    tokens: list[list[Token]]
    truncated: list[int]


def make(
    topology: TopologyConfig, predictor: str = "stateless", blank: float = 0.0, seed: int = 0
) -> Transducer:
    """A model with random weights, decided enough that rounding flips no label; `blank` favours blank."""
    torch.manual_seed(seed)
    config = TransducerConfig(
        encoder=LstmEncoderConfig(hidden=WIDTH, layers=1),
        predictor=PREDICTORS[predictor],
        joiner=JoinerConfig(dim=8),
        loss=LossConfig(transducer=TransducerLossConfig(kind="full", topology=topology)),
    )
    model = Transducer(config, 4, VOCAB).eval()
    with torch.no_grad():
        model.joiner.output.weight.mul_(12)
        model.joiner.output.bias[0] += blank
    return model


def case(topology: str, predictor: str = "stateless", blank: float = 0.0, seed: int = 0) -> Case:
    """Streams of many lengths, one frame and none among them."""
    model = make(TOPOLOGIES[topology], predictor, blank, seed)
    encoded, lengths = torch.randn(5, 37, WIDTH), torch.tensor([37, 0, 9, 1, 23])
    found = [naive_greedy(model, x[:n], MAX_SYMBOLS) for x, n in zip(encoded, lengths.tolist(), strict=True)]
    # What is not there must not be looked at.
    encoded[torch.arange(37) >= lengths[:, None]] = torch.nan
    return Case(model, encoded, lengths, [one.tokens for one in found], [one.truncated for one in found])


def check(found: SearchOutput, expected: Case) -> None:
    """Ids, frames and truncations are the same, log-probabilities to 1e-5."""
    assert [[token[:3] for token in each] for each in found.tokens] == [
        [token[:3] for token in each] for each in expected.tokens
    ]
    for ours, theirs in zip(found.tokens, expected.tokens, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert abs(a.log_prob - b.log_prob) < 1e-5
    assert found.truncated == expected.truncated


def in_chunks(search: GreedySearch, given: Case, chunks: list[int]) -> SearchOutput:
    """The search of chunks of so many frames at most, added up; the last chunk goes on to the end."""
    state = search.initial_state(len(given.lengths), given.encoded.device)
    tokens: list[list[Token]] = [[] for _ in given.lengths]
    truncated, start = [0] * len(tokens), 0
    for size in [*chunks, given.encoded.shape[1] - sum(chunks)]:
        lengths = (given.lengths - start).clamp(0, size)
        found = search(given.encoded[:, start : start + size], lengths, state)
        state, start = found.state, start + size
        tokens = [a + b for a, b in zip(tokens, found.tokens, strict=True)]
        truncated = [a + b for a, b in zip(truncated, found.truncated, strict=True)]
    assert search.frames(state).tolist() == given.lengths.tolist()
    return SearchOutput(tokens, state, truncated)
