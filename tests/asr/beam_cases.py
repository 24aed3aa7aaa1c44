"""Small models for tests of beam search, and what the definition finds in them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from asr.encoders import LstmEncoderConfig
from asr.joiner import JoinerConfig
from asr.losses import LossConfig, TransducerLossConfig
from asr.losses.topology import TopologyConfig
from asr.predictors import LstmPredictorConfig, StatelessPredictorConfig
from asr.search import BeamSearch, Token
from asr.search.fusion import Fusion, Weighted
from asr.transducer import Transducer, TransducerConfig
from tests.asr.bigram import Bigram

WIDTH, VOCAB = 10, 4
TOPOLOGIES = {
    "rnnt": TopologyConfig(),
    "monotonic": TopologyConfig(name="monotonic"),
    "ctc": TopologyConfig(name="ctc"),
    "tdt": TopologyConfig(name="tdt", durations=(0, 1, 2)),
    "tdt-taking": TopologyConfig(name="tdt", durations=(1, 3)),
    "multi_blank": TopologyConfig(name="multi_blank", durations=(2, 3)),
}
PREDICTORS = {
    "stateless": StatelessPredictorConfig(dim=8, context=2),
    "lstm": LstmPredictorConfig(dim=8, layers=1),
}


def make(topology: str = "rnnt", predictor: str = "lstm", bias: float = 0.0, sharp: float = 6) -> Transducer:
    torch.manual_seed(5)
    config = TransducerConfig(
        encoder=LstmEncoderConfig(hidden=WIDTH, layers=1),
        predictor=PREDICTORS[predictor],
        joiner=JoinerConfig(dim=8),
        loss=LossConfig(transducer=TransducerLossConfig(topology=TOPOLOGIES[topology])),
    )
    model = Transducer(config, 4, VOCAB).eval()
    with torch.no_grad():
        model.joiner.output.weight.mul_(sharp)
        model.joiner.output.bias[0] += bias
    return model


def n_best(search: BeamSearch, encoded: Tensor, length: int) -> dict[tuple[int, ...], tuple[float, float]]:
    state = search.initial_state(1)
    found = search(encoded[None], torch.tensor([length]), state)
    hypotheses = search.n_best(found.state)[0]
    given = tuple(token.id for token in found.tokens[0])
    labels = [given + tuple(token.id for token in h.tokens) for h in hypotheses]
    assert len(set(labels)) == len(labels)
    assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
    return {each: (h.log_prob, h.fused) for each, h in zip(labels, hypotheses, strict=True)}


def bounded_paths(model: Transducer, frames: Tensor, labels: tuple[int, ...], max_symbols: int) -> float:
    """log-probability of `labels`, summed over all paths by recursion, at most max_symbols staying labels
    on a frame; what the last symbol consumes may reach beyond the end.
    """
    topology, total_frames = model.topology, len(frames)

    def after(u: int) -> Tensor:
        history = torch.tensor([labels[:u]], dtype=torch.int64).reshape(1, -1)
        return model.predictor.whole(history)[:, -1]

    def paths(t: int, u: int, said: int, held: int) -> list[Tensor]:
        if t >= total_frames:
            return [torch.zeros(())] if u == len(labels) else []
        logits = model.joiner(frames[t][None, None], after(u)[:, None])[0, 0, 0]
        symbols = logits[: len(logits) - topology.durations].log_softmax(-1)
        lengths = logits[len(logits) - topology.durations :].log_softmax(-1)
        results = []
        for arc in topology.arcs:
            score = torch.zeros(()) if arc.duration is None else lengths[arc.duration - 2]
            if arc.kind == "blank":
                rest = paths(t + arc.frames, u, 0, 0)
                score = score + symbols[0]
            elif arc.kind == "big blank":
                rest = paths(t + arc.frames, u, 0, 0)
                score = score + symbols[VOCAB + arc.symbol - 2]
            elif arc.kind == "repeat":
                if not held:
                    continue
                rest = paths(t + 1, u, 0, held)
                score = score + symbols[held]
            else:
                if u == len(labels) or (held and labels[u] == held):
                    continue
                if arc.frames == 0 and said == max_symbols:
                    continue
                now_held = labels[u] if topology.repeats else 0
                rest = paths(t + arc.frames, u + 1, said + 1 if arc.frames == 0 else 0, now_held)
                score = score + symbols[labels[u]]
            results += [score + other for other in rest]
        return results

    found = paths(0, 0, 0, 0)
    return float(torch.stack(found).logsumexp(0)) if found else -torch.inf


def assert_same(found: list[Token], expected: list[Token]) -> None:
    assert [token[:3] for token in found] == [token[:3] for token in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.log_prob == pytest.approx(b.log_prob, abs=1e-4)


@torch.no_grad()
def assert_sums(topology: str, fused: bool, sizes: int, **settings: Any) -> None:
    """A search that drops nothing gives texts of fewer than `sizes` labels the sum over all their paths."""
    model = make(topology)
    count = 3 if topology in ("monotonic", "ctc", "tdt-taking") else 2
    frames = torch.randn(count, WIDTH)
    bigram = Bigram(torch.randn(VOCAB, VOCAB))
    scorer = Fusion(VOCAB, [Weighted(bigram, 0.5)], reward=0.3) if fused else None
    found = n_best(BeamSearch(model, margin=1e6, scorer=scorer, **settings), frames, count)
    checked = 0
    for size in range(sizes):
        for labels in itertools.product(range(1, VOCAB), repeat=size):
            expected = bounded_paths(model, frames, labels, settings["max_symbols"])
            if expected == -torch.inf:
                assert labels not in found
                continue
            log_prob, added = found[labels]
            assert log_prob == pytest.approx(expected, abs=2e-4), labels
            assert added == pytest.approx(0.5 * bigram.of(labels) + 0.3 * size if fused else 0, abs=1e-4)
            checked += 1
    assert checked > 10
