"""CR-CTC: the term is the paper's, a step has every utterance in two views, and is the old one without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from asr.data.batch import Batch
from asr.encoders import AnyEncoderConfig, ConformerEncoderConfig, LstmEncoderConfig
from asr.features.specaugment import SpecAugmentConfig
from asr.joiner import JoinerConfig
from asr.layers.context import ContextConfig
from asr.losses import CtcLossConfig, LossConfig, TransducerLossConfig, consistency_loss
from asr.predictors import StatelessPredictorConfig
from asr.train.metrics import Stopwatch
from asr.train.recipe import Recipe
from asr.train.step import BatchResult, train_batch
from asr.transducer import Transducer, TransducerConfig

VOCAB, BINS = 7, 4


def divergence(target: Tensor, own: Tensor) -> Tensor:
    """KL(target || own) of probabilities (V,), the definition."""
    return sum((p * (p / q).log() for p, q in zip(target, own, strict=True)), torch.zeros(()).double())


def by_hand(logits: Tensor, lengths: list[int]) -> Tensor:
    """(B,) halves of the sums over frames of KL(sg(b) || a) + KL(sg(a) || b)."""
    a, b = logits.softmax(-1).chunk(2)
    losses = []
    for i, frames in enumerate(lengths):
        terms = [
            divergence(b[i, t].detach(), a[i, t]) + divergence(a[i, t].detach(), b[i, t])
            for t in range(frames)
        ]
        losses.append(sum(terms, torch.zeros(()).double()) / 2)
    return torch.stack(losses)


def test_the_term_is_the_papers_and_its_targets_get_no_gradient() -> None:
    lengths = [5, 2]
    logits = torch.randn(4, 5, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[1::2, 2:] = torch.nan  # padding
    logits.requires_grad_()
    value = consistency_loss(logits, torch.tensor(lengths * 2))
    found = value.view(2, 2).mean(dim=0)
    expected = by_hand(logits, lengths)
    torch.testing.assert_close(found, expected)
    weights = torch.tensor([1.0, 3.0])
    gradients = [torch.autograd.grad((weights * loss).sum(), logits)[0] for loss in (found, expected)]
    assert not gradients[0][1::2, 2:].any()
    torch.testing.assert_close(gradients[0], gradients[1].nan_to_num())
    # Only one side: the first row learns from its own loss alone, by p - target.
    alone = torch.autograd.grad(consistency_loss(logits, torch.tensor(lengths * 2))[0], logits)[0]
    torch.testing.assert_close(alone[0], (logits[0].softmax(-1) - logits[2].softmax(-1)).detach())
    assert not alone[1:].any()


def test_equal_views_agree_and_bfloat16_is_summed_in_float32() -> None:
    logits = torch.randn(2, 9, VOCAB).bfloat16()
    lengths = torch.full((4,), 9)
    assert consistency_loss(logits.repeat(2, 1, 1), lengths).tolist() == [0.0] * 4
    assert consistency_loss(torch.cat([logits, logits.flip(0)]), lengths).dtype == torch.float32


DROPS = LstmEncoderConfig(hidden=8, layers=1, dropout=0.2)


def network(transducer: bool = True, encoder: AnyEncoderConfig = DROPS, **ctc: Any) -> Transducer:
    torch.manual_seed(0)
    loss = LossConfig(
        transducer=TransducerLossConfig(weight=transducer), ctc=CtcLossConfig(**{"weight": 0.5, **ctc})
    )
    predictor = StatelessPredictorConfig(dim=8, context=1) if transducer else None
    config = TransducerConfig(encoder=encoder, predictor=predictor, joiner=JoinerConfig(dim=8), loss=loss)
    return Transducer(config, BINS, VOCAB).train()


def batch(views: int = 1) -> Batch:
    """Two utterances; the second of four equal labels, which CTC needs seven frames for, has six."""
    generator = torch.Generator().manual_seed(0)
    return Batch(
        ids=("long", "short"),
        features=torch.randn(views * 2, 40, BINS, generator=generator),
        feature_lengths=torch.tensor([40, 21] * views),
        texts=("", ""),
        targets=torch.tensor([[1, 2, 3, 4], [5, 5, 5, 5]]),
        target_lengths=torch.tensor([4, 4]),
        duration_s=0.61,
        seed=7,
    )


def go_through(model: Transducer, heard: Batch, **options: Any) -> tuple[BatchResult, list[Tensor]]:
    """What a batch gave, and the gradients."""
    model.zero_grad()
    result = train_batch(model, heard, precision="float32", clock=Stopwatch(), **options)
    return result, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def seeded(model: Transducer, heard: Batch, views: int) -> Tensor:
    """Total losses of the rows, with the dropout that training draws."""
    from asr.train.step import _seed

    _seed(torch.device("cpu"), 0, heard.seed)
    encoded = model.encode_views(heard.features, heard.feature_lengths, views)
    rows = heard.targets.repeat(views, 1), heard.target_lengths.repeat(views)
    return model.losses(encoded.y, encoded.y_lengths, *rows, None, views).total


def test_without_it_a_step_is_what_it_was() -> None:
    """To the last bit: one row per utterance, the sum of their losses."""
    model = network()
    result, gradients = go_through(model, batch())
    model.zero_grad()
    total = seeded(model, batch(), 1).sum()
    total.backward()
    assert result.loss == float(total.detach())
    for found, parameter in zip(gradients, model.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.equal(found, parameter.grad)


def test_an_utterance_is_the_mean_of_its_views() -> None:
    model, twice = network(consistency=0.3), batch(views=2)
    result, gradients = go_through(model, twice)
    assert (result.labels, result.duration_s, result.utterances) == (8, 0.61, 2)
    model.zero_grad()
    encoded = model.eval().encode(twice.features, twice.feature_lengths)
    rows = twice.targets.repeat(2, 1), twice.target_lengths.repeat(2)
    losses = model.losses(encoded.y, encoded.y_lengths, *rows, None, 2)
    single = model.losses(encoded.y, encoded.y_lengths, *rows)
    assert losses.consistency is not None
    assert (losses.consistency > 0).all()
    torch.testing.assert_close(losses.total, single.total + 0.3 * losses.consistency)
    assert single.consistency is None
    total = seeded(model.train(), twice, 2).sum() / 2
    total.backward()
    assert result.loss == pytest.approx(float(total.detach()))
    for found, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad)


def test_an_utterance_with_an_infinite_loss_in_one_view_gives_no_gradient() -> None:
    """Only the second view of `short` has no path; its first one is left out as well."""
    model = network(transducer=False, consistency=0.3)
    twice = batch(views=2)
    of_one = replace(twice, feature_lengths=torch.tensor([40, 40, 40, 21]))
    result, gradients = go_through(model, of_one)
    assert (result.non_finite, result.labels) == (("short",), 4)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    other = replace(of_one, features=of_one.features.clone())
    other.features[1] += 1.0
    assert all(map(torch.equal, gradients, go_through(model, other)[1]))
    borrowed, nothing = go_through(model, replace(twice, borrowed=True), in_step=True)
    assert (borrowed.labels, borrowed.loss) == (0, 0.0)
    assert not any(gradient.any() for gradient in nothing)


def test_it_needs_a_head_and_masks() -> None:
    with pytest.raises(ValueError, match=r"consistency 0\.2 needs a CTC head: set ctc\.weight above 0"):
        CtcLossConfig(consistency=0.2)
    loss = LossConfig(ctc=CtcLossConfig(weight=1, consistency=0.2))
    config = TransducerConfig(loss=loss)
    assert Recipe(network=config).network.loss.ctc.views == 2
    for nothing in ({"probability": 0}, {"freq_masks": 0, "time_masks": 0}):
        with pytest.raises(ValueError, match=r"nothing is masked: set specaugment\.probability above 0"):
            Recipe(network=config, specaugment=SpecAugmentConfig(**nothing))


@torch.no_grad()
def test_each_view_goes_through_a_context_of_its_own() -> None:
    contexts = ContextConfig(chunk=2, left_chunks=1), ContextConfig(chunk=4, left_chunks=1), ContextConfig()
    encoder = ConformerEncoderConfig(
        dim=8, heads=2, layers=1, dropout=0.0, contexts=contexts, context_warmup_steps=3
    )
    model = network(encoder=encoder).train()
    drawn = {
        tuple(contexts.index(model.encoder.at_step(step, v).context) for v in (0, 1)) for step in range(3, 60)
    }
    assert drawn == {(a, b) for a in range(3) for b in range(3)}
    assert model.encoder.at_step(2, 1).context == contexts[0]
    twice = batch(views=2)
    halves = [half.chunk(2) for half in (twice.features, twice.feature_lengths)]
    for step in (1, 7, 8):
        found = model.encode_views(twice.features, twice.feature_lengths, 2, step)
        for view, (features, lengths) in enumerate(zip(*halves, strict=True)):
            mode = model.with_encoder(model.encoder.at_step(step, view)).eval()
            expected = mode.encode(features, lengths)
            for row, length in enumerate(expected.y_lengths.tolist()):
                y = found.y[2 * view + row, :length]
                torch.testing.assert_close(y, expected.y[row, :length])
        assert (
            found.y_lengths.tolist()
            == model.eval().encode(twice.features, twice.feature_lengths).y_lengths.tolist()
        )
        model.train()
