"""The neural cache against the formula of the paper, summed over all that was said, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from asr import state as states
from asr.lms import AwdLstm, AwdLstmConfig, TransformerLm, TransformerLmConfig
from asr.lms.cache import CacheConfig, NeuralCache
from asr.lms.neural import NeuralLm

V = 5


def models() -> list[NeuralLm]:
    torch.manual_seed(0)
    small = TransformerLmConfig(dim=8, heads=2, layers=1, history=4)
    return [AwdLstm(AwdLstmConfig(dim=8, hidden=8, layers=2), V).eval(), TransformerLm(small, V).eval()]


@torch.no_grad()
def by_definition(model: NeuralLm, labels: list[int], config: CacheConfig) -> list[float]:
    """Probability of every label, the end in place 0, after `labels`."""
    said = torch.tensor([labels], dtype=torch.int64)
    inputs = torch.nn.functional.pad(said, (1, 0))
    h = model.extend(inputs, model.nothing(1)).h[0].double()
    own = model.whole(said)[0, -1].double().exp().tolist()
    last = range(max(0, len(labels) - config.size), len(labels))
    weights = {i: math.exp(config.sharpness * float(h[-1] @ h[i])) for i in last}
    total = sum(weights.values())
    if not total:
        return own
    cached = [sum(w for i, w in weights.items() if labels[i] == v) / total for v in range(V)]
    return [(1 - config.weight) * p + config.weight * q for p, q in zip(own, cached, strict=True)]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("size", [1, 3, 50])
def test_cache_by_the_formula(number: int, size: int) -> None:
    model, config = models()[number], CacheConfig(size=size, weight=0.3, sharpness=0.7)
    scorer = NeuralCache(model, config)
    state = scorer.initial_state(2)
    rows = [[1, 2, 1, 3, 3, 4, 1], [4, 4, 4, 2, 1, 1, 2]]
    for u in range(8):
        for row, labels in enumerate(rows):
            expected = by_definition(model, labels[:u], config)
            found = [float(scorer.end(state)[row]), *scorer.score(state)[row, 1:].tolist()]
            assert [math.exp(x) for x in found] == pytest.approx(expected, rel=1e-4)
        assert scorer.score(state)[:, 0].tolist() == [0, 0]
        if u < 7:
            state = scorer.advance(state, torch.tensor([labels[u] for labels in rows]))
    assert state.filled.tolist() == [min(size, 7)] * 2
    assert states.batch_size(states.select(state, torch.tensor([1, 0, 0]))) == 3


def test_another_sentence_knows_the_words_of_the_one_before() -> None:
    model = models()[0]
    scorer = NeuralCache(model, CacheConfig(weight=0.5, sharpness=0.0))
    state = scorer.initial_state(1)
    for label in (2, 2, 2):
        state = scorer.advance(state, torch.tensor([label]))
    state = scorer.next_sentence(state)
    assert state.labels[0, -4:].tolist() == [2, 2, 2, 0]
    own = model.initial_state(1)
    # Three of the four labels that are remembered are 2, one is the end.
    assert math.exp(float(scorer.score(state)[0, 2])) == pytest.approx(
        0.5 * math.exp(float(own.scores[0, 2])) + 0.5 * 0.75, rel=1e-5
    )
    assert math.exp(float(scorer.end(state)[0])) == pytest.approx(
        0.5 * math.exp(float(own.ends[0])) + 0.5 * 0.25, rel=1e-5
    )
