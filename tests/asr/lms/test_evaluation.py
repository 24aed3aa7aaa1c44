"""Perplexity by hand, with a cache, and with weights that go on learning."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from asr.errors import ConfigError, DataError, TokenError
from asr.lms import AwdLstm, AwdLstmConfig, TransformerLmConfig, build_neural_lm, evaluation
from asr.lms.cache import CacheConfig
from asr.lms.dynamic import DynamicConfig, DynamicEvaluation, mean_square_gradients
from asr.lms.evaluation import Perplexity, neural_perplexity
from asr.text.tokenizer import TokenizerConfig, train_tokenizer

TEXTS = ["ab ba", "a", "bab bab b", "", "abba"]


@pytest.fixture(name="tokenizer")
def _tokenizer():
    return train_tokenizer(TokenizerConfig(), ["ab ba"])


def lm() -> AwdLstm:
    torch.manual_seed(0)
    return AwdLstm(AwdLstmConfig(dim=8, hidden=8, layers=2), 4).eval()


def rows(tokenizer: object) -> list[torch.Tensor]:
    return [torch.tensor(tokenizer.encode(text), dtype=torch.int64) for text in TEXTS]


@torch.no_grad()
def nats_of(model: AwdLstm, labels: torch.Tensor) -> float:
    log_probs = model.whole(labels[None])[0].double()
    return -float(sum(log_probs[u, label] for u, label in enumerate([*labels.tolist(), 0])))


@pytest.mark.parametrize("limit", [1, 12, 8192])
def test_perplexity_by_hand(tokenizer, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(evaluation, "BATCH_LABELS", limit)
    model = lm()
    found = neural_perplexity(model, tokenizer, iter(TEXTS))
    nats = sum(nats_of(model, row) for row in rows(tokenizer))
    assert (found.labels, found.words, found.sentences) == (19, 7, 5)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.per_word == pytest.approx(math.exp(nats / 12), rel=1e-5)
    assert found.per_label == pytest.approx(math.exp(nats / 24), rel=1e-5)
    assert found.bits_per_label == pytest.approx(nats / 24 / math.log(2), rel=1e-5)
    assert (found + found).per_word == pytest.approx(found.per_word)
    assert Perplexity(1e6, 1, 1, 1).per_word == math.inf
    assert "7 words" in str(found)


def test_cache_gains_on_text_that_repeats_itself(tokenizer) -> None:
    model, texts = lm(), ["aaaa aaaa"] * 4
    plain = neural_perplexity(model, tokenizer, texts)
    cached = neural_perplexity(model, tokenizer, texts, cache=CacheConfig(weight=0.3))
    assert cached.labels == plain.labels
    assert cached.per_label < 0.8 * plain.per_label


def test_sgd_learns_after_scoring(tokenizer) -> None:
    model = lm()
    before = copy.deepcopy(model.state_dict())
    learner, oracle = DynamicEvaluation(model, DynamicConfig(lr=0.3)), copy.deepcopy(model)
    for row in rows(tokenizer):
        expected = nats_of(oracle, row)
        assert learner.score(row) == pytest.approx(expected, rel=1e-5)
        oracle.zero_grad()
        log_probs = oracle.whole(row[None])[0]
        targets = torch.tensor([*row.tolist(), 0])
        torch.nn.functional.nll_loss(log_probs, targets).backward()
        for parameter in oracle.parameters():
            parameter.data.sub_(0.3 * parameter.grad)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), "the model itself must not learn"
    for ours, theirs in zip(learner.model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_rms_by_the_formula(tokenizer) -> None:
    model, decay, lr, epsilon = lm(), 0.4, 0.05, 1e-3
    squares = mean_square_gradients(model, rows(tokenizer))
    config = DynamicConfig(kind="rms", lr=lr, decay=decay, epsilon=epsilon)
    learner, first = DynamicEvaluation(model, config, squares), copy.deepcopy(model)
    root = [square.sqrt() for square in squares]
    mean = torch.cat([r.flatten() for r in root]).mean()
    weights = [p.detach().clone() for p in model.parameters()]
    for row in rows(tokenizer)[:2]:
        for parameter, weight in zip(first.parameters(), weights, strict=True):
            parameter.data.copy_(weight)
        first.zero_grad()
        log_probs = first.whole(row[None])[0]
        torch.nn.functional.nll_loss(log_probs, torch.tensor([*row.tolist(), 0])).backward()
        weights = [
            w - lr * p.grad / (r + epsilon) + decay * (r / mean).clamp(max=1 / decay) * (start - w)
            for w, p, r, start in zip(weights, first.parameters(), root, model.parameters(), strict=True)
        ]
        learner.score(row)
    for found, expected in zip(learner.model.parameters(), weights, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_mean_squares_are_means_over_sentences(tokenizer) -> None:
    model = lm()
    one, two = (mean_square_gradients(model, [row]) for row in rows(tokenizer)[:2])
    both = mean_square_gradients(model, rows(tokenizer)[:2])
    for a, b, mean in zip(one, two, both, strict=True):
        torch.testing.assert_close((a + b) / 2, mean)


def test_it_adapts(tokenizer) -> None:
    model, texts = lm(), ["aaaa aaaa"] * 30
    plain = neural_perplexity(model, tokenizer, texts)
    for config in (DynamicConfig(lr=2.0), DynamicConfig(kind="rms", lr=1e-2, decay=1e-3)):
        squares = mean_square_gradients(model, rows(tokenizer))
        found = neural_perplexity(model, tokenizer, texts, dynamic=config, mean_squares=squares)
        assert found.per_label < 0.8 * plain.per_label, config
    still = neural_perplexity(model, tokenizer, texts, dynamic=DynamicConfig(lr=0.0))
    assert still.nats == pytest.approx(plain.nats, rel=1e-5)


def test_what_cannot_be_measured(tokenizer) -> None:
    model = lm()
    with pytest.raises(DataError, match="at least one sentence"):
        neural_perplexity(model, tokenizer, [])
    with pytest.raises(TokenError, match="sentence 2: the tokenizer has no symbol 'x'"):
        neural_perplexity(model, tokenizer, ["a", "x"])
    with pytest.raises(ConfigError, match="needs the training text"):
        neural_perplexity(model, tokenizer, ["a"], dynamic=DynamicConfig(kind="rms"))
    with pytest.raises(ConfigError, match="choose one"):
        neural_perplexity(model, tokenizer, ["a"], dynamic=DynamicConfig(), cache=CacheConfig())
    with pytest.raises(DataError, match="found none"):
        mean_square_gradients(model, [])


@pytest.mark.parametrize(
    "config", [AwdLstmConfig(dim=16, hidden=16, layers=2), TransformerLmConfig(dim=16, heads=2, layers=2)]
)
def test_bfloat16_is_near(config: AwdLstmConfig | TransformerLmConfig) -> None:
    torch.manual_seed(0)
    model = build_neural_lm(config, 9).eval()
    labels, lengths = torch.randint(1, 9, (3, 12)), torch.tensor([12, 12, 12])
    expected = model.losses(labels, lengths).nats
    with torch.autocast("cpu", torch.bfloat16):
        found = model.losses(labels, lengths).nats
    found.sum().backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=0)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
