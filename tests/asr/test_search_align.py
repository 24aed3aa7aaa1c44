"""Forced alignment of encoder frames against the enumeration of all paths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise, product

import pytest
import torch
from torch import Tensor

from asr.encoders import LstmEncoderConfig
from asr.errors import ConfigError
from asr.joiner import JoinerConfig
from asr.losses import CtcLossConfig, LossConfig, TopologyConfig, TransducerLossConfig
from asr.predictors import LstmPredictorConfig
from asr.search.align import align, bytes_needed, choose_head, frames_needed
from asr.transducer import Transducer, TransducerConfig

WIDTH, VOCAB = 6, 4
TOPOLOGIES = {
    "rnnt": TopologyConfig(),
    "monotonic": TopologyConfig(name="monotonic"),
    "ctc": TopologyConfig(name="ctc"),
    "tdt": TopologyConfig(name="tdt", durations=(0, 1, 2)),
    "multi_blank": TopologyConfig(name="multi_blank", durations=(2,)),
}


def make(topology: str = "rnnt", *, transducer: bool = True, ctc: bool = True) -> Transducer:
    torch.manual_seed(3)
    config = TransducerConfig(
        encoder=LstmEncoderConfig(hidden=WIDTH, layers=1),
        predictor=LstmPredictorConfig(dim=5) if transducer else None,
        joiner=JoinerConfig(dim=7),
        loss=LossConfig(
            transducer=TransducerLossConfig(weight=float(transducer), topology=TOPOLOGIES[topology]),
            ctc=CtcLossConfig(weight=float(ctc)),
        ),
    )
    model = Transducer(config, 4, VOCAB).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("ctc", "joiner.output")):
                parameter.mul_(6)
    return model


def ctc_path(log_probs: Tensor, labels: Sequence[int]) -> tuple[float, list[tuple[int, int, float]]]:
    """Of all strings of symbols that collapse to `labels`, the best: score, and (start, end, log-prob)."""
    best = (-math.inf, [])
    for path in product(range(VOCAB), repeat=len(log_probs)):
        if [label for label, _ in groupby(path) if label] != list(labels):
            continue
        score = sum(float(log_probs[t, label]) for t, label in enumerate(path))
        if score > best[0]:
            places, t = [], 0
            for label, run in groupby(path):
                size = len(list(run))
                if label:
                    places.append((t, t + size, float(log_probs[t : t + size, label].max())))
                t += size
            best = score, places
    return best


@torch.no_grad()
def test_a_ctc_head_against_all_paths() -> None:
    model = make()
    encoded, lengths = torch.randn(4, 6, WIDTH), torch.tensor([6, 4, 5, 3])
    with torch.no_grad():
        model.ctc.bias[0] -= 20  # labels are held rather than left
    labels = [[1, 2, 2], [], [3, 3, 1], [2]]
    found = align(model, "ctc", encoded, lengths, labels)
    log_probs = model.ctc(encoded).log_softmax(-1)
    assert any(token.end_frame - token.frame > 1 for row in found for token in row.tokens)
    for b, row in enumerate(found):
        score, places = ctc_path(log_probs[b, : lengths[b]], labels[b])
        assert row.log_prob == pytest.approx(score, abs=1e-4)
        assert [token.id for token in row.tokens] == labels[b]
        for token, place in zip(row.tokens, places, strict=True):
            assert token[1:3] == place[:2]
            assert token.log_prob == pytest.approx(place[2], abs=1e-4)


def transducer_paths(model: Transducer, frames: Tensor, labels: list[int], name: str) -> Iterator[tuple]:
    """(score, [(start, end, log-prob of the label)]) of every path, as the papers have it."""
    spoken = model.predictor.whole(torch.tensor([labels], dtype=torch.int64).reshape(1, -1))[0]
    logits = model.joiner(frames[None], spoken[None])[0].double()
    T, U = len(frames), len(labels)

    def walk(t: int, u: int, held: bool, score: float, places: list) -> Iterator[tuple]:
        if t == T:
            if u == U and not (name == "tdt" and held):
                yield score, places
            return
        row = logits[t, u]
        if name == "tdt":
            symbols, spans = row[:VOCAB].log_softmax(-1), row[VOCAB:].log_softmax(-1)
            for i, span in enumerate((0, 1, 2)):
                if t + span > T:
                    continue
                if span:
                    yield from walk(t + span, u, False, score + float(symbols[0] + spans[i]), places)
                if u < U:
                    said = float(symbols[labels[u]])
                    place = (t, t + max(1, span), said)
                    yield from walk(t + span, u + 1, True, score + said + float(spans[i]), [*places, place])
            return
        symbols = row.log_softmax(-1)
        yield from walk(t + 1, u, False, score + float(symbols[0]), places)
        if name == "multi_blank" and t + 2 <= T:
            yield from walk(t + 2, u, False, score + float(symbols[VOCAB]), places)
        taken = 1 if name in ("monotonic", "ctc") else 0
        if u < U and not (name == "ctc" and held and labels[u] == labels[u - 1]):
            said = float(symbols[labels[u]])
            yield from walk(t + taken, u + 1, True, score + said, [*places, (t, t + 1, said)])
        if name == "ctc" and held:
            *before, (start, end, said) = places
            again = float(symbols[labels[u - 1]])
            yield from walk(t + 1, u, True, score + again, [*before, (start, end + 1, said)])

    yield from walk(0, 0, False, 0.0, [])


@pytest.mark.parametrize("name", TOPOLOGIES)
@torch.no_grad()
def test_a_transducer_against_all_paths(name: str) -> None:
    model = make(name)
    encoded, lengths = torch.randn(3, 5, WIDTH), torch.tensor([5, 3, 4])
    labels = [[1, 2, 2], [], [3, 1]]
    found = align(model, "transducer", encoded, lengths, labels)
    for b, row in enumerate(found):
        frames = encoded[b, : lengths[b]]
        score, places = max(transducer_paths(model, frames, labels[b], name), key=lambda path: path[0])
        assert row.log_prob == pytest.approx(score, abs=1e-4)
        assert [token.id for token in row.tokens] == labels[b]
        for token, place in zip(row.tokens, places, strict=True):
            assert token[1:3] == place[:2]
            assert token.log_prob == pytest.approx(place[2], abs=1e-4)


@pytest.mark.parametrize("head", ["ctc", "transducer"])
def test_what_has_no_path(head: str) -> None:
    model = make("monotonic")
    found = align(model, head, torch.randn(3, 2, WIDTH), torch.tensor([2, 0, 0]), [[1, 1, 1], [], [1]])
    assert found == [([], -math.inf), ([], 0.0), ([], -math.inf)]
    assert align(model, head, torch.zeros(2, 0, WIDTH), torch.tensor([0, 0]), [[], [1]]) == found[1:]
    assert frames_needed(model, "ctc", [1, 1, 1]) == 5
    assert frames_needed(model, "transducer", [1, 1, 1]) == 3


def test_long_labels_and_frames_are_in_order() -> None:
    model = make()
    labels = torch.randint(1, VOCAB, (60,)).tolist()
    for head in ("ctc", "transducer"):
        (row,) = align(model, head, torch.randn(1, 200, WIDTH), torch.tensor([200]), [labels])
        assert len(row.tokens) == 60
        assert all(0 <= token.frame < token.end_frame <= 200 for token in row.tokens)
        assert all(a.frame <= b.frame for a, b in pairwise(row.tokens))


def test_heads() -> None:
    assert choose_head(make(), None) == "transducer"
    assert choose_head(make(transducer=False), None) == "ctc"
    with pytest.raises(ConfigError, match="only a CTC head"):
        choose_head(make(transducer=False), "transducer")
    with pytest.raises(ConfigError, match="no CTC head"):
        choose_head(make(ctc=False), "ctc")


def test_memory_is_estimated_in_proportion() -> None:
    small, large = make("rnnt"), make("tdt")
    # What `ru_maxrss` said of 1500 frames and 500 labels, durations 0 to 4 with TDT: 4, 64 and 303 MB.
    assert 4e6 / 2 < bytes_needed(small, "ctc", 1500, 500) - 1500 * 12 * VOCAB < 4e6 * 1.5
    assert 64e6 < bytes_needed(small, "transducer", 1500, 500) < 64e6 * 1.5
    arcs = len(large.topology.arcs)
    assert arcs == 5
    assert bytes_needed(large, "transducer", 1500, 500) == pytest.approx(303e6 * arcs / 9, rel=0.1)
