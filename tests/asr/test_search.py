"""Searches against naive definitions, and streaming against whole."""

from __future__ import annotations

import random
from itertools import groupby

import pytest
import torch
from torch import Tensor

from asr.encoders import EncoderOutput, LstmEncoderConfig
from asr.errors import ConfigError
from asr.joiner import JoinerConfig
from asr.losses import CtcLossConfig, LossConfig
from asr.predictors import LstmPredictorConfig, StatelessPredictorConfig, TransformerPredictorConfig
from asr.search import CtcGreedySearch, GreedySearch, Search, SearchConfig, Token, build_search, search_whole
from asr.transducer import Transducer, TransducerConfig

WIDTH, VOCAB = 10, 6


def make(predictor: object, bias: float = 1.0, seed: int = 0) -> Transducer:
    torch.manual_seed(seed)
    config = TransducerConfig(
        encoder=LstmEncoderConfig(hidden=WIDTH, layers=1),
        predictor=predictor,
        joiner=JoinerConfig(dim=8),
        loss=LossConfig(ctc=CtcLossConfig(weight=0.3)),
    )
    model = Transducer(config, 4, VOCAB).eval()
    with torch.no_grad():
        model.joiner.output.weight.mul_(12)
        model.joiner.output.bias[0] += bias
        model.ctc.weight.mul_(8)
    return model


PREDICTORS = {
    "stateless": StatelessPredictorConfig(dim=8, context=2),
    "one-label": StatelessPredictorConfig(dim=8, context=1),
    "lstm": LstmPredictorConfig(dim=8, layers=2),
    "transformer": TransformerPredictorConfig(dim=8, heads=2, history=3),
}


@torch.no_grad()
def naive_greedy(model: Transducer, frames: Tensor, max_symbols: int) -> list[Token]:
    """Frame by frame, the whole label history through the predictor every time."""
    history: list[int] = []
    tokens = []
    for t, frame in enumerate(frames):
        for _ in range(max_symbols):
            y = model.predictor.whole(torch.tensor([history], dtype=torch.int64).reshape(1, -1))[:, -1]
            log_probs = model.joiner(frame[None, None], y[:, None])[0, 0, 0].log_softmax(-1)
            label = int(log_probs.argmax())
            if label == 0:
                break
            history.append(label)
            tokens.append(Token(label, t, t + 1, float(log_probs[label])))
    return tokens


def assert_same(found: list[Token], expected: list[Token]) -> None:
    assert [token[:3] for token in found] == [token[:3] for token in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.log_prob == pytest.approx(b.log_prob, abs=1e-4)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_batched_greedy_equals_the_naive_search(predictor: str) -> None:
    model = make(PREDICTORS[predictor])
    encoded, lengths = torch.randn(5, 17, WIDTH), torch.tensor([17, 0, 9, 1, 13])
    result = search_whole(GreedySearch(model, 4), EncoderOutput(encoded, lengths, None))
    assert sum(map(len, result.tokens)) > 10
    for b, length in enumerate(lengths.tolist()):
        assert_same(result.tokens[b], naive_greedy(model, encoded[b, :length], 4))


def naive_ctc(model: Transducer, frames: Tensor) -> list[Token]:
    best = model.ctc(frames).log_softmax(-1).max(-1)
    tokens, t = [], 0
    for label, run in groupby(best.indices.tolist()):
        size = len(list(run))
        if label:
            tokens.append(Token(label, t, t + size, float(best.values[t : t + size].max())))
        t += size
    return tokens


@torch.no_grad()
def test_ctc_greedy_equals_the_definition() -> None:
    model = make(PREDICTORS["stateless"])
    encoded, lengths = torch.randn(4, 30, WIDTH), torch.tensor([30, 0, 7, 1])
    result = search_whole(CtcGreedySearch(model), EncoderOutput(encoded, lengths, None))
    assert any(token.end_frame - token.frame > 1 for token in result.tokens[0])
    for b, length in enumerate(lengths.tolist()):
        assert_same(result.tokens[b], naive_ctc(model, encoded[b, :length]))


@pytest.mark.parametrize("head", ["transducer", "ctc"])
def test_any_chunking_finds_the_same_tokens(head: str) -> None:
    model = make(PREDICTORS["lstm"])
    search: Search = build_search(SearchConfig(head=head, max_symbols=3), model)
    encoded, lengths = torch.randn(3, 40, WIDTH), torch.tensor([40, 31, 12])
    whole = search_whole(search, EncoderOutput(encoded, lengths, None))
    rng = random.Random(1)
    for _ in range(3):
        state, tokens, truncated, position = search.initial_state(3), [[], [], []], [0, 0, 0], [0, 0, 0]
        while any(p < n for p, n in zip(position, lengths.tolist(), strict=True)):
            new = [
                min(rng.choice([0, 1, 2, 5]), n - p) for p, n in zip(position, lengths.tolist(), strict=True)
            ]
            chunk = torch.randn(3, max(new), WIDTH)
            for b, count in enumerate(new):
                chunk[b, :count] = encoded[b, position[b] : position[b] + count]
                position[b] += count
            found = search(chunk, torch.tensor(new), state)
            state = found.state
            for b in range(3):
                tokens[b] += found.tokens[b]
                truncated[b] += found.truncated[b]
        for b, last in enumerate(search.flush(state)):
            assert_same(tokens[b] + last, whole.tokens[b])
        assert truncated == whole.truncated


def test_an_endlessly_emitting_model_is_bounded_and_reported() -> None:
    model = make(PREDICTORS["stateless"], bias=-1000.0)
    encoded = torch.randn(2, 6, WIDTH)
    result = search_whole(GreedySearch(model, 3), EncoderOutput(encoded, torch.tensor([6, 4]), None))
    assert [len(tokens) for tokens in result.tokens] == [18, 12]
    assert result.truncated == [6, 4]


def test_an_all_blank_model_finds_nothing() -> None:
    model = make(PREDICTORS["stateless"], bias=1000.0)
    result = search_whole(
        GreedySearch(model, 3), EncoderOutput(torch.randn(2, 6, WIDTH), torch.tensor([6, 4]), None)
    )
    assert result.tokens == [[], []]
    assert result.truncated == [0, 0]


def test_a_missing_head_is_a_clear_error() -> None:
    config = TransducerConfig(
        encoder=LstmEncoderConfig(hidden=4, layers=1), loss=LossConfig(), predictor=PREDICTORS["stateless"]
    )
    with pytest.raises(ConfigError, match="has no CTC head"):
        build_search(SearchConfig(head="ctc"), Transducer(config, 4, VOCAB))
