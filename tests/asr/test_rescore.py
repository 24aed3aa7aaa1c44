"""Rescoring by the other head against the enumeration of CTC paths and the model's own losses."""

from __future__ import annotations

import itertools
import math
from itertools import groupby

import pytest
import torch
from pydantic import ValidationError

from asr.encoders import EncoderOutput, LstmEncoderConfig
from asr.errors import ConfigError
from asr.joiner import JoinerConfig
from asr.losses import CtcLossConfig, LossConfig, TransducerLossConfig
from asr.losses.topology import TopologyConfig
from asr.predictors import StatelessPredictorConfig
from asr.search import BeamSearch, Hypothesis, Token
from asr.search.ctc_beam import CtcBeamSearch
from asr.search.rescore import ROWS, RescoreWeights, log_probs, rescore
from asr.transducer import Transducer, TransducerConfig

WIDTH, VOCAB = 6, 4


def make(topology: str = "rnnt", *, transducer: bool = True, ctc: bool = True) -> Transducer:
    torch.manual_seed(2)
    config = TransducerConfig(
        encoder=LstmEncoderConfig(hidden=WIDTH, layers=1),
        predictor=StatelessPredictorConfig(dim=5, context=2) if transducer else None,
        joiner=JoinerConfig(dim=7),
        loss=LossConfig(
            transducer=TransducerLossConfig(
                kind="full", weight=float(transducer), topology=TopologyConfig(name=topology)
            ),
            ctc=CtcLossConfig(weight=float(ctc)),
        ),
    )
    return Transducer(config, 4, VOCAB).eval()


def said(*labels: int, log_prob: float = -1.0, fused: float = 0.0) -> Hypothesis:
    return Hypothesis([Token(label, 0, 1, -0.1) for label in labels], log_prob, fused)


@torch.no_grad()
def test_ctc_is_the_sum_of_all_paths() -> None:
    model, frames = make(), torch.randn(4, WIDTH)
    each = model.ctc(frames).log_softmax(-1)
    labels = [[], [1], [2, 2], [3, 1, 2], [1, 1, 1], *[[2]] * ROWS]
    found = log_probs(model, "ctc", frames, labels)
    for row, score in zip(labels, found.tolist(), strict=True):
        paths = [
            sum(float(each[t, label]) for t, label in enumerate(path))
            for path in itertools.product(range(VOCAB), repeat=4)
            if [label for label, _ in groupby(path) if label] == row
        ]
        assert score == pytest.approx(math.log(sum(map(math.exp, paths))) if paths else -math.inf, abs=1e-4)


@pytest.mark.parametrize("topology", ["rnnt", "monotonic", "tdt"])
@torch.no_grad()
def test_a_transducer_is_what_its_loss_says(topology: str) -> None:
    model, frames = make(topology), torch.randn(5, WIDTH)
    labels = [[1, 2], [], [3, 3, 1]]
    found = log_probs(model, "transducer", frames, labels)
    for row, score in zip(labels, found.tolist(), strict=True):
        targets = torch.tensor([row], dtype=torch.int64).reshape(1, -1)
        loss = model.losses(frames[None], torch.tensor([5]), targets, torch.tensor([len(row)])).transducer
        assert score == pytest.approx(-float(loss), abs=1e-4)


def test_the_order_is_that_of_the_weighted_sum() -> None:
    model = make()
    encoded = EncoderOutput(torch.randn(2, 6, WIDTH), torch.tensor([6, 4]), None)
    lists = [[said(1, log_prob=-9.0), said(2, 3, fused=0.7), said()], [said(1, 1, 1, 1)]]
    weights = RescoreWeights(own=0.3, ctc=0.5, transducer=0.2)
    found = rescore(model, encoded, lists, weights)
    assert [len(row) for row in found] == [3, 1]
    assert [each.score for each in found[0]] == sorted((each.score for each in found[0]), reverse=True)
    for each in found[0]:
        labels = [[token.id for token in each.hypothesis.tokens]]
        ctc, transducer = (
            float(log_probs(model, head, encoded.y[0], labels)) for head in ("ctc", "transducer")
        )
        assert each.ctc == pytest.approx(ctc)
        assert each.transducer == pytest.approx(transducer)
        total = 0.3 * each.hypothesis.log_prob + 0.5 * ctc + 0.2 * transducer + each.hypothesis.fused
        assert each.score == pytest.approx(total)
    # Four equal labels take seven frames of a CTC head.
    assert found[1][0].score == -math.inf
    assert rescore(model, encoded, lists, RescoreWeights(own=1, ctc=0))[1][0].ctc is None


def test_each_head_rescores_what_the_other_found() -> None:
    model = make()
    with torch.no_grad():
        model.ctc.weight.mul_(5)
        model.joiner.output.weight.mul_(5)
    encoded = EncoderOutput(torch.randn(1, 12, WIDTH), torch.tensor([12]), None)
    for search, weights in (
        (BeamSearch(model, 4), RescoreWeights(own=0.0, ctc=1.0)),
        (CtcBeamSearch(model, 4), RescoreWeights(own=0.0, ctc=0.0, transducer=1.0)),
    ):
        found = search(encoded.y, encoded.y_lengths, search.initial_state(1))
        given = found.tokens[0]
        whole = [h._replace(tokens=given + h.tokens) for h in search.n_best(found.state)[0]]
        (rescored,) = rescore(model, encoded, [whole], weights)
        assert sorted(map(id, whole)) == sorted(id(each.hypothesis) for each in rescored)
        assert all(each.score > -math.inf for each in rescored)


def test_nothing_to_hear_and_nothing_to_score() -> None:
    model = make()
    silent = EncoderOutput(torch.zeros(1, 0, WIDTH), torch.tensor([0]), None)
    best, other = rescore(model, silent, [[said(1), said()]])[0]
    assert (best.ctc, other.ctc) == (0.0, -math.inf)
    assert rescore(model, EncoderOutput(torch.zeros(1, 3, WIDTH), torch.tensor([3]), None), [[]]) == [[]]


def test_missing_heads_and_weights() -> None:
    silent = EncoderOutput(torch.zeros(1, 0, WIDTH), torch.tensor([0]), None)
    with pytest.raises(ConfigError, match="no CTC head"):
        rescore(make(ctc=False), silent, [[]])
    with pytest.raises(ConfigError, match="only a CTC head"):
        rescore(make(transducer=False), silent, [[]], RescoreWeights(transducer=1.0))
    with pytest.raises(ValidationError, match="found none"):
        RescoreWeights(own=0, ctc=0)
