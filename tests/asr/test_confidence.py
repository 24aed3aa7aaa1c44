"""Confidences of every search against the distribution at the place of each token, and of words."""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
import pytest
import torch
from greedy_cases import MAX_SYMBOLS, TOPOLOGIES, VOCAB, Case, case, in_chunks, make
from torch import Tensor

import asr
from asr.encoders import EncoderOutput
from asr.errors import ConfigError
from asr.joiner import JoinerConfig
from asr.losses import CtcLossConfig, LossConfig, TransducerLossConfig
from asr.losses.topology import TopologyConfig
from asr.search import (
    BeamSearch,
    ConfidenceConfig,
    CtcBeamSearch,
    CtcGreedySearch,
    GreedySearch,
    SearchConfig,
    Token,
    search_whole,
)
from asr.search.fusion import Fusion, Weighted
from asr.transducer import Transducer
from tests.asr.bigram import Bigram

MEASURES = [
    ConfidenceConfig(),
    ConfidenceConfig(measure="gibbs"),
    ConfidenceConfig(measure="tsallis"),
    ConfidenceConfig(measure="tsallis", alpha=2.0),
]
ENTROPIES = MEASURES[1:3]


def by_definition(config: ConfidenceConfig, logits: Tensor, label: int) -> float:
    """Confidence in a label: the entropy over the greatest that it can be, one minus that."""
    p = logits.double().softmax(-1).numpy()
    if config.measure == "probability":
        return float(p[label])
    even = np.full(len(p), 1 / len(p))
    if config.measure == "gibbs":
        entropy, most = (-(q * np.log(q)).sum() for q in (p, even))
    else:
        entropy, most = ((1 - (q**config.alpha).sum()) / (config.alpha - 1) for q in (p, even))
    return float((1 - entropy / most) * p[label] / p.max())


@torch.no_grad()
def check_tokens(model: Transducer, encoded: Tensor, tokens: list[Token], config: ConfidenceConfig) -> int:
    """Each token of a transducer has the confidence of its place; how many were not the likeliest there."""
    ids, unlikely = [token.id for token in tokens], 0
    for u, token in enumerate(tokens):
        before = model.predictor.whole(torch.tensor([ids[:u]], dtype=torch.int64).reshape(1, -1))[:, -1]
        logits = model.joiner(encoded[token.frame][None, None], before[:, None])[0, 0, 0]
        symbols = logits[: len(logits) - model.topology.durations]
        expected = by_definition(config, symbols, token.id)
        assert math.exp(token.log_sure) == pytest.approx(expected, abs=2e-5)
        assert token.log_prob == pytest.approx(float(symbols.log_softmax(-1)[token.id]), abs=1e-4)
        unlikely += int(symbols.argmax()) != token.id
    return unlikely


@pytest.mark.parametrize("config", MEASURES, ids=lambda c: f"{c.measure}-{c.alpha:.2f}")
def test_one_certain_symbol_is_1_and_equal_ones_are_0(config: ConfidenceConfig) -> None:
    certain = torch.full((1, 7), -torch.inf)
    certain[0, 3] = 0
    assert config.log_confidences(certain)[0, 3] == pytest.approx(0, abs=1e-6)
    even = torch.full((1, 7), -math.log(7))
    expected = 1 / 7 if config.measure == "probability" else 0
    assert config.log_confidences(even)[0].exp().tolist() == pytest.approx([expected] * 7, abs=1e-6)
    logits = torch.tensor([0.3, -1.0, 2.0, 0.1])
    found = config.log_confidences(logits.log_softmax(-1)).exp()
    assert found.tolist() == pytest.approx([by_definition(config, logits, i) for i in range(4)], abs=1e-6)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [case(name, blank=1.5, seed=1) for name in ("rnnt", "ctc", "tdt", "multi_blank")]


@pytest.mark.parametrize("config", ENTROPIES, ids=lambda c: c.measure)
def test_greedy_search_whole_in_chunks_and_as_on_a_gpu(cases: list[Case], config: ConfidenceConfig) -> None:
    for given in cases:
        search = GreedySearch(given.model, MAX_SYMBOLS, 3, confidence=config)
        whole = search(given.encoded, given.lengths, search.initial_state(5)).tokens
        assert [[t[:3] for t in each] for each in whole] == [[t[:3] for t in each] for each in given.tokens]
        for encoded, tokens in zip(given.encoded, whole, strict=True):
            assert check_tokens(given.model, encoded, tokens, config) == 0
        chunked = in_chunks(search, given, [5, 0, 11])

        def recorded(chunk, streams, search=search, given=given):
            return search.graphs.run(given.model.joiner.encoder(given.encoded), chunk.lengths, streams)

        search.loop.run = recorded
        replayed = search(given.encoded, given.lengths, search.initial_state(5))
        for other in (chunked.tokens, replayed.tokens):
            for ours, theirs in zip(other, whole, strict=True):
                assert [t.log_sure for t in ours] == pytest.approx([t.log_sure for t in theirs], abs=1e-5)


@pytest.mark.parametrize("config", MEASURES[:3], ids=lambda c: c.measure)
@pytest.mark.parametrize("topology", ["rnnt", "ctc", "tdt", "multi_blank"])
def test_beam_search_whole_and_in_chunks(topology: str, config: ConfidenceConfig) -> None:
    """Bigrams make it say what the model would not: that it says with little confidence."""
    model = make(TOPOLOGIES[topology], seed=1)
    torch.manual_seed(3)
    encoded, lengths = torch.randn(2, 40, 10), torch.tensor([40, 23])
    scorer = Fusion(VOCAB, [Weighted(Bigram(3 * torch.randn(VOCAB, VOCAB)), 1.0)], reward=1.0)
    search = BeamSearch(model, 4, MAX_SYMBOLS, scorer=scorer, confidence=config)
    whole = search_whole(search, EncoderOutput(encoded, lengths, None)).tokens
    unlikely = [check_tokens(model, x, tokens, config) for x, tokens in zip(encoded, whole, strict=True)]
    assert sum(unlikely) > 0
    state, found = search.initial_state(2), [list[Token](), list[Token]()]
    for start in range(0, 40, 7):
        part = encoded[:, start : start + 7]
        output = search(part, (lengths - start).clamp(0, part.shape[1]), state)
        state = output.state
        found = [a + b for a, b in zip(found, output.tokens, strict=True)]
    found = [a + b for a, b in zip(found, search.flush(state), strict=True)]
    for ours, theirs in zip(found, whole, strict=True):
        assert [t[:3] for t in ours] == [t[:3] for t in theirs]
        assert [t.log_sure for t in ours] == pytest.approx([t.log_sure for t in theirs], abs=1e-5)


def ctc_model(sharp: float) -> Transducer:
    torch.manual_seed(2)
    config = make(TopologyConfig()).config.model_copy(
        update={
            "joiner": JoinerConfig(dim=8),
            "loss": LossConfig(transducer=TransducerLossConfig(kind="full"), ctc=CtcLossConfig(weight=0.5)),
        }
    )
    model = Transducer(config, 4, VOCAB).eval()
    assert model.ctc is not None
    with torch.no_grad():
        for parameter in model.ctc.parameters():
            parameter.mul_(sharp)
    return model


@pytest.mark.parametrize("config", MEASURES[:3], ids=lambda c: c.measure)
@torch.no_grad()
def test_ctc_searches(config: ConfidenceConfig) -> None:
    """A run has the confidence of its most certain frame; a beam that sees one path finds the same."""
    model = ctc_model(60.0)
    encoded = torch.randn(1, 50, 10).repeat_interleave(2, dim=1) + 0.02 * torch.randn(1, 100, 10)
    logits = model.ctc(encoded)[0]
    expected, t = [], 0
    for label, run in groupby(logits.argmax(-1).tolist()):
        size = len(list(run))
        if label:
            best = max(range(t, t + size), key=lambda i: float(logits[i].log_softmax(-1)[label]))
            expected.append((label, t, t + size, by_definition(config, logits[best], label)))
        t += size
    assert len(expected) > 20
    for search in (CtcGreedySearch(model, config), CtcBeamSearch(model, 3, confidence=config)):
        for sizes in ([100], [7] * 15):
            state, found, start = search.initial_state(1), list[Token](), 0
            for size in sizes:
                part = encoded[:, start : start + size]
                output = search(part, torch.tensor([part.shape[1]]), state)
                state, start = output.state, start + size
                found += output.tokens[0]
            found += search.flush(state)[0]
            assert [token[:3] for token in found] == [each[:3] for each in expected]
            ours = [math.exp(token.log_sure) for token in found]
            # Which of two frames is surer is a matter of rounding where both are nearly certain.
            assert ours == pytest.approx([each[3] for each in expected], abs=2e-4)


def test_the_most_certain_frame_decides_for_the_entropy_too() -> None:
    """Two frames of one run: the label is likelier on the first, the entropy is less on the second."""
    model = ctc_model(1.0)
    first, second = torch.tensor([0.02, 0.62, 0.12, 0.12, 0.12]), torch.tensor([0.39, 0.6, 0.01, 1e-9, 1e-9])
    assert VOCAB == 6
    rows = [torch.cat([each, torch.tensor([1e-9])]).log() for each in (first, second)]
    config = ConfidenceConfig(measure="gibbs")
    expected = [by_definition(config, row, 1) for row in rows]
    assert expected[0] < expected[1]

    class Told(torch.nn.Module):
        def forward(self, encoded: Tensor) -> Tensor:
            return torch.stack(rows)[None]

    model.ctc = Told()  # type: ignore[assignment]
    for search in (CtcGreedySearch(model, config), CtcBeamSearch(model, 1, confidence=config)):
        output = search(torch.zeros(1, 2, 10), torch.tensor([2]), search.initial_state(1))
        (token,) = output.tokens[0] + search.flush(output.state)[0]
        assert math.exp(token.log_sure) == pytest.approx(expected[0], abs=1e-6)


def test_words_and_temperatures() -> None:
    tokens = [Token(1, 0, 1, -9.0, math.log(0.9)), Token(2, 1, 2, -9.0, math.log(0.4))]
    expected = {"geometric": 0.6, "mean": 0.65, "min": 0.4, "product": 0.36}
    for aggregate, value in expected.items():
        config = ConfidenceConfig(aggregate=aggregate)  # type: ignore[arg-type]
        assert config.of_word(tokens) == pytest.approx(value)
        halved = config.model_copy(update={"temperature": 0.5})
        assert halved.of_word(tokens) == pytest.approx(value**2)
        assert halved.of_token(tokens[0]) == pytest.approx(0.81)
    assert ConfidenceConfig().of_word([Token(1, 0, 1, math.log(0.5))]) == pytest.approx(0.5)


def test_live_and_whole_say_the_same(make_model, speech_like) -> None:
    confidence = ConfidenceConfig(measure="tsallis", aggregate="min", temperature=0.5)
    for search in (SearchConfig(max_symbols=3), SearchConfig(method="beam", max_symbols=3)):
        recognizer = asr.load(make_model(), search=search.model_copy(update={"confidence": confidence}))
        samples = speech_like(2.0)
        whole = recognizer.transcribe_batch([samples])[0]
        session = recognizer.stream()
        for start in range(0, len(samples), 1000):
            session.feed(samples[start : start + 1000])
        live = session.finish()[-1].transcript
        assert len(whole.words) > 3
        assert live.text == whole.text
        ours, theirs = ([word.confidence for word in text.words] for text in (live, whole))
        assert ours == pytest.approx(theirs, abs=1e-3)
        plain = asr.load(make_model(), search=search).transcribe_batch([samples])[0]
        assert [word.confidence for word in plain.words] != pytest.approx(theirs, abs=1e-2)


def test_settings_that_make_no_sense(make_model) -> None:
    with pytest.raises(ConfigError, match="alpha"):
        asr.load(make_model(), settings=["confidence.alpha=1.0"])
    with pytest.raises(ConfigError, match="temperature"):
        asr.load(make_model(), settings=["confidence.temperature=0"])
