from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from asr.encoders import LstmEncoderConfig
from asr.joiner import JoinerConfig
from asr.layers.norm import FeatureNorm
from asr.losses import CtcLossConfig, LossConfig, TransducerLossConfig, ctc_frames_needed
from asr.predictors import (
    LstmPredictorConfig,
    StatelessPredictorConfig,
    TransformerPredictorConfig,
    build_predictor,
)
from asr.predictors.stateless import StatelessState
from asr.transducer import Transducer, TransducerConfig

ENCODER = LstmEncoderConfig(hidden=8, layers=1, dropout=0)


def make(**settings: object) -> Transducer:
    torch.manual_seed(0)
    return Transducer(TransducerConfig(encoder=ENCODER, joiner=JoinerConfig(dim=8), **settings), 4, 7)


def test_losses_equal_torchaudio_and_torch() -> None:
    torchaudio = pytest.importorskip("torchaudio")
    model = make(loss=LossConfig(ctc=CtcLossConfig(weight=0.5)))
    features, feature_lengths = torch.randn(3, 60, 4), torch.tensor([60, 41, 24])
    targets, target_lengths = (
        torch.tensor([[1, 2, 2, 6], [3, 3, 9999, -1], [5, 0, 0, 0]]),
        torch.tensor([4, 2, 1]),
    )
    encoded = model.encode(features, feature_lengths)
    losses = model.losses(encoded.y, encoded.y_lengths, targets, target_lengths)
    clean = targets.clamp(0, 6)
    logits = model.joiner(encoded.y[:, : int(encoded.y_lengths.max())], model.predictor.whole(clean))
    expected = torchaudio.functional.rnnt_loss(
        logits, clean.int(), encoded.y_lengths.int(), target_lengths.int(), blank=0, reduction="none"
    )
    torch.testing.assert_close(losses.transducer, expected, rtol=1e-4, atol=1e-4)
    log_probs = model.ctc(encoded.y).log_softmax(-1).transpose(0, 1)
    ctc = functional.ctc_loss(log_probs, clean, encoded.y_lengths, target_lengths, reduction="none")
    torch.testing.assert_close(losses.ctc, ctc)
    torch.testing.assert_close(losses.total, expected + 0.5 * ctc, rtol=1e-4, atol=1e-4)


def test_ctc_alone_has_no_predictor() -> None:
    loss = LossConfig(transducer=TransducerLossConfig(weight=0), ctc=CtcLossConfig(weight=1))
    model = make(predictor=None, loss=loss)
    assert not model.has_transducer
    assert not [name for name, _ in model.named_parameters() if "predictor" in name or "joiner" in name]


def test_too_short_for_ctc_is_infinite_without_gradient() -> None:
    loss = LossConfig(transducer=TransducerLossConfig(weight=0), ctc=CtcLossConfig(weight=1))
    model = make(predictor=None, loss=loss)
    encoded = model.encode(torch.randn(2, 8, 4), torch.tensor([8, 8]))
    losses = model.losses(
        encoded.y, encoded.y_lengths, torch.tensor([[1, 1, 1], [1, 0, 0]]), torch.tensor([3, 1])
    )
    assert torch.isinf(losses.total).tolist() == [True, False]
    assert model.frames_needed([1, 1, 1]) == 5
    losses.total[0].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_auxiliary_ctc_without_a_path_leaves_the_transducer_loss() -> None:
    model = make(loss=LossConfig(ctc=CtcLossConfig(weight=1)))
    encoded = model.encode(torch.randn(1, 8, 4), torch.tensor([8]))
    losses = model.losses(encoded.y, encoded.y_lengths, torch.tensor([[1, 1, 1]]), torch.tensor([3]))
    assert torch.isinf(losses.ctc).all()
    torch.testing.assert_close(losses.total, losses.transducer)
    assert model.frames_needed([1, 1, 1]) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"predictor": None}, "without a predictor"),
        ({"loss": LossConfig(transducer=TransducerLossConfig(weight=0))}, "nothing to train"),
    ],
)
def test_models_that_cannot_be_trained_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransducerConfig(**settings)


def test_ctc_frames_needed_counts_repetitions() -> None:
    assert [ctc_frames_needed(t) for t in ([], [1], [1, 2], [1, 1], [2, 2, 2, 1])] == [1, 1, 2, 3, 6]


@pytest.mark.parametrize(
    "config",
    [
        StatelessPredictorConfig(dim=8, context=1),
        StatelessPredictorConfig(dim=8, context=4),
        LstmPredictorConfig(dim=8, layers=2, dropout=0),
        TransformerPredictorConfig(dim=8, heads=2, history=3),
        TransformerPredictorConfig(dim=8, heads=2, history=2, positions="relative"),
        TransformerPredictorConfig(dim=8, heads=1, history=0),
        TransformerPredictorConfig(dim=8, heads=1, history=20),
    ],
)
def test_predictor_step_by_step_equals_the_whole(config: object) -> None:
    torch.manual_seed(0)
    predictor = build_predictor(config, 9, 0).eval()
    targets = torch.randint(1, 9, (3, 6))
    whole = predictor.whole(targets)
    for step in (predictor, predictor.stepper()):
        state, steps = predictor.initial_state(3), []
        for labels in torch.cat([torch.zeros(3, 1, dtype=torch.int64), targets], 1).split(1, dim=1):
            y, state = step(labels, state)
            steps.append(y)
        torch.testing.assert_close(torch.cat(steps, 1), whole)
    changed = targets.clone()
    changed[:, 4] = changed[:, 4] % 8 + 1
    assert torch.equal(predictor.whole(changed)[:, :5], whole[:, :5])  # labels do not look ahead


def test_a_stateless_predictor_is_a_table_for_a_search_that_begins() -> None:
    predictor = build_predictor(StatelessPredictorConfig(dim=6, context=3), 9, 0).eval()
    label, state = torch.tensor([[4], [0]]), StatelessState(torch.tensor([[2, 8], [0, 0]]))
    before = predictor.stepper()
    assert before is not predictor
    with torch.no_grad():
        predictor.embedding.weight += 1
    after, (expected, history) = predictor.stepper()(label, state), predictor(label, state)
    torch.testing.assert_close(after.y, expected)
    assert torch.equal(after.state.labels, history.labels)
    assert not torch.allclose(before(label, state).y, expected)  # of the weights that were
    assert predictor.train().stepper() is predictor
    large = build_predictor(StatelessPredictorConfig(dim=128, context=4), 520, 0).eval()
    assert large.stepper() is large


def test_the_history_of_a_transformer_predictor_is_bounded() -> None:
    """A label counts for `layers` times `history` labels behind it and no more."""
    torch.manual_seed(0)
    predictor = build_predictor(TransformerPredictorConfig(dim=8, heads=2, layers=2, history=2), 9, 0).eval()
    targets = torch.randint(1, 9, (1, 12))
    changed = targets.clone()
    changed[:, 3] = changed[:, 3] % 8 + 1
    moved = (predictor.whole(changed) - predictor.whole(targets)).abs().amax(-1)[0] > 1e-6
    # The label is what the output behind it has heard.
    assert moved.nonzero()[:, 0].tolist() == [4, 5, 6, 7, 8]


def test_feature_norm_measures_valid_frames_only() -> None:
    norm = FeatureNorm(3)
    x = torch.randn(4, 50, 3) * torch.tensor([1.0, 5.0, 0.0]) + torch.tensor([2.0, -3.0, 7.0])
    lengths = torch.tensor([50, 20, 1, 33])
    for b, length in enumerate(lengths.tolist()):
        x[b, length:] = 1e6
    norm.measure([(x[:2], lengths[:2]), (x[2:], lengths[2:])])
    valid = torch.cat([x[b, :n] for b, n in enumerate(lengths.tolist())])
    torch.testing.assert_close(norm.mean, valid.mean(0), rtol=1e-4, atol=1e-4)
    y = norm(valid)
    torch.testing.assert_close(y.std(0, correction=0)[:2], torch.ones(2), rtol=1e-3, atol=1e-3)
    assert torch.isfinite(y).all()
