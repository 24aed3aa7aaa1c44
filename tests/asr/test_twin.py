"""Twin networks: the criterion is the paper's, the twin reads backwards, and nothing but training has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import asr
from asr.encoders import LstmEncoderConfig
from asr.errors import ConfigError
from asr.joiner import JoinerConfig
from asr.losses import CtcLossConfig, LossConfig, TransducerLossConfig, TwinConfig, twin_loss
from asr.model_directory import load_model, save_model
from asr.predictors import LstmPredictorConfig, PredictorConfig, StatelessPredictorConfig, build_predictor
from asr.predictors.twin import Twin
from asr.train.finetune import finetune_recipe
from asr.transducer import Transducer, TransducerConfig

VOCAB, BINS = 7, 4
LSTM = LstmPredictorConfig(dim=8, dropout=0.0)
TARGETS, LENGTHS = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [0, 0, 0, 0]]), torch.tensor([4, 2, 0])


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_criterion_is_the_definition_and_the_twin_is_moved_by_its_own_labels_alone() -> None:
    forward, backward, logits = (random(3, 4, n, seed=s) for s, n in enumerate((5, 5, VOCAB)))
    for b, length in enumerate(LENGTHS.tolist()):
        for tensor in (forward, backward, logits):
            tensor[b, length:] = torch.nan
    tensors = [tensor.requires_grad_() for tensor in (forward, backward, logits)]
    found = twin_loss(TwinConfig(weight=0.7), *tensors, TARGETS, LENGTHS)
    a, z, p = forward.detach(), backward.detach(), logits.detach().softmax(-1)
    for b, length in enumerate(LENGTHS.tolist()):
        expected = 0.0
        for u in range(length):
            expected -= float(p[b, u, TARGETS[b, u]].log())
            expected += 0.7 * float(((a[b, u] - z[b, u]) ** 2).sum().sqrt())
        assert found[b].item() == pytest.approx(expected)
    found.sum().backward()
    assert forward.grad is not None
    assert logits.grad is not None
    assert backward.grad is None
    for b, length in enumerate(LENGTHS.tolist()):
        difference = (a - z)[b, :length]
        expected_gradient = 0.7 * difference / difference.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(forward.grad[b, :length], expected_gradient)
        assert not forward.grad[b, length:].any()
        assert not logits.grad[b, length:].any()


def test_where_both_say_the_same_the_gradient_is_finite() -> None:
    same = random(1, 2, 3, seed=0).float().requires_grad_()
    transcripts = torch.tensor([[1, 2]]), torch.tensor([2])
    loss = twin_loss(TwinConfig(weight=1), same, same.detach(), torch.zeros(1, 2, VOCAB), *transcripts)
    loss.sum().backward()
    assert same.grad is not None
    assert bool(same.grad.isfinite().all())
    assert loss.item() == pytest.approx(2 * torch.log(torch.tensor(float(VOCAB))).item())
    half = twin_loss(
        TwinConfig(weight=1),
        *(random(1, 2, 3, seed=n).bfloat16() for n in range(2)),
        torch.zeros(1, 2, VOCAB, dtype=torch.bfloat16),
        *transcripts,
    )
    assert half.dtype == torch.float32


@pytest.mark.parametrize(
    "config", [LSTM, StatelessPredictorConfig(dim=8, context=2)], ids=["lstm", "stateless"]
)
@torch.no_grad()
def test_the_twin_reads_from_the_end(config: PredictorConfig) -> None:
    """What it says of a label is what a predictor says that was given the labels behind it, last first."""
    torch.manual_seed(0)
    twin = Twin(build_predictor(config, VOCAB, 0), VOCAB).eval()
    predicted = torch.randn(3, 5, 8)
    found = twin(predicted, TARGETS, LENGTHS)
    torch.testing.assert_close(found.forward, twin.map(predicted[:, :-1]))
    for b, length in enumerate(LENGTHS.tolist()):
        for u in range(length):
            behind = TARGETS[b, u + 1 : length].flip(0)[None]
            expected = twin.predictor.whole(behind)[0, -1]
            torch.testing.assert_close(found.backward[b, u], expected)
            torch.testing.assert_close(found.logits[b, u], twin.output(expected))


def network(weight: float, predictor: PredictorConfig = LSTM, kind: str = "fused") -> Transducer:
    torch.manual_seed(0)
    loss = LossConfig(
        transducer=TransducerLossConfig(kind=kind),
        ctc=CtcLossConfig(weight=0.5),
        twin=TwinConfig(weight=weight),
    )
    encoder = LstmEncoderConfig(hidden=8, layers=1, dropout=0.0)
    config = TransducerConfig(encoder=encoder, predictor=predictor, joiner=JoinerConfig(dim=8), loss=loss)
    return Transducer(config, BINS, VOCAB).train()


@pytest.mark.parametrize("kind", ["full", "fused", "pruned"])
def test_it_is_added_to_the_other_criteria(kind: str) -> None:
    """Padding may be anything; the twin's own gradients do not depend on the weight of the distance."""
    gradients = []
    for weight in (0.5, 2.0):
        model = network(weight, kind=kind)
        encoded = torch.randn(3, 9, model.encoder.output_dim, generator=torch.Generator().manual_seed(1))
        frames, padded = torch.tensor([9, 7, 3]), TARGETS.clone()
        padded[1, 2:], padded[2] = 3, 6
        losses = model.losses(encoded, frames, padded, LENGTHS)
        assert losses.twin is not None
        assert losses.transducer is not None
        assert losses.ctc is not None
        torch.testing.assert_close(losses.total, losses.transducer + 0.5 * losses.ctc + losses.twin)
        assert losses.twin[2].item() == 0
        losses.total.sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if name.startswith("twin.")})
        assert all(gradient is not None for gradient in gradients[-1].values())
        embedding = model.predictor.embedding.weight.grad
        assert embedding is not None
    for name, gradient in gradients[0].items():
        equal = torch.allclose(gradient, gradients[1][name], atol=1e-6)
        assert equal == (not name.startswith("twin.map")), name


def test_dev_knows_nothing_of_it() -> None:
    """What is measured chooses the weights that are kept, which will be used without it."""
    model, without = network(1.0).eval(), network(0.0).eval()
    without.load_state_dict(model.state_dict(), strict=False)
    assert not hasattr(without, "twin")
    measured = torch.randn(3, 9, 8), torch.tensor([9, 7, 3]), TARGETS, LENGTHS
    losses = model.losses(*measured)
    assert losses.twin is None
    torch.testing.assert_close(losses.total, without.losses(*measured).total)


def test_it_teaches_what_comes_next() -> None:
    """Steps on the distance alone bring the predictor's outputs nearer to the twin's, which stay."""
    model = network(1.0)
    parameters = [*model.predictor.parameters(), *model.twin.map.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    encoded, frames = torch.randn(3, 9, 8), torch.tensor([9, 7, 3])
    values = []
    for _ in range(40):
        twin = model.losses(encoded, frames, TARGETS, LENGTHS).twin
        assert twin is not None
        values.append(twin.sum().item())
        optimizer.zero_grad()
        twin.sum().backward()
        optimizer.step()
    backward = model.twin(model.predictor.whole(TARGETS), TARGETS, LENGTHS).logits.log_softmax(-1)
    nats = -sum(backward[b, u, TARGETS[b, u]].item() for b in range(2) for u in range(int(LENGTHS[b])))
    assert values[-1] - nats < 0.3 * (values[0] - nats)


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match=r"twin\.weight 1 is for the predictor of a transducer"):
        LossConfig(
            transducer=TransducerLossConfig(weight=0), ctc=CtcLossConfig(weight=1), twin=TwinConfig(weight=1)
        )
    with pytest.raises(ValueError, match="weight"):
        TwinConfig(weight=-1)


def test_a_model_that_is_used_has_none(make_model, call, speech_like, tmp_path: Path) -> None:
    """`asr export` leaves it out; a model that was trained without cannot be given one."""
    path, samples = make_model(kind="lstm-predictor"), speech_like(1.0)
    with pytest.raises(ConfigError, match=r"--set network\.loss\.twin\.weight: expected what the model has"):
        finetune_recipe(path, ["network.loss.twin.weight=1"])
    model = load_model(path)
    loss = model.config.network.loss.model_copy(update={"twin": TwinConfig(weight=1)})
    config = model.config.model_copy(
        update={"network": model.config.network.model_copy(update={"loss": loss})}
    )
    with_twin = Transducer(config.network, model.network.norm.mean.shape[-1], config.vocab_size)
    with_twin.load_state_dict(model.network.state_dict(), strict=False)
    save_model(tmp_path / "trained", config, with_twin, model.tokenizer, "# a model\n")
    text = asr.load(path).transcribe(samples).text
    assert text
    assert asr.load(tmp_path / "trained").transcribe(samples).text == text
    assert finetune_recipe(tmp_path / "trained").network.loss.twin.weight == 1
    assert call("export", tmp_path / "trained", tmp_path / "small", "--weights", "float32")[0] == 0
    small = load_model(tmp_path / "small")
    assert small.config == model.config
    assert not hasattr(small.network, "twin")
    assert asr.load(tmp_path / "small").transcribe(samples).text == text
