"""AWD-LSTM: stepwise as whole, torch's LSTM as oracle, and what each dropout drops."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from asr import state as states
from asr.config import validate
from asr.errors import ConfigError
from asr.layers.dropout import LockedDropout
from asr.lms import AwdLstm, AwdLstmConfig
from asr.lms.recurrent import DroppedCell

V = 7
CONFIG = AwdLstmConfig(dim=12, hidden=20, layers=3, ar=2.0, tar=1.0)


def lm(config: AwdLstmConfig = CONFIG, seed: int = 0) -> AwdLstm:
    torch.manual_seed(seed)
    model = AwdLstm(config, V).eval()
    for parameter in model.parameters():  # larger than at first, so that the state matters
        parameter.data.mul_(3)
    return model


def full(model: AwdLstm, state: object) -> torch.Tensor:
    """(N, V) log-probabilities of what a state has, that of the end in column 0."""
    scores = model.score(state).clone()
    assert (scores[:, 0] == 0).all()
    scores[:, 0] = model.end(state)
    return scores


@pytest.mark.parametrize("length", [0, 1, 11])
def test_stepwise_is_whole(length: int) -> None:
    model = lm()
    labels = torch.randint(1, V, (4, length))
    whole, state = model.whole(labels), model.initial_state(4)
    assert whole.shape == (4, length + 1, V)
    for u in range(length + 1):
        torch.testing.assert_close(full(model, state), whole[:, u], atol=1e-5, rtol=1e-5)
        if u < length:
            state = model.advance(state, labels[:, u])
    assert torch.allclose(whole.exp().sum(-1), torch.ones(4, length + 1), atol=1e-5)
    assert whole[:, 0].std(dim=0).max() < 1e-6
    if length > 1:
        assert whole[:, -1].std(dim=0).max() > 1e-3  # what was said counts


@torch.no_grad()
def test_it_is_the_lstm_of_torch() -> None:
    model = lm().double()
    labels = torch.randint(1, V, (3, 9))
    x = model.embedding(functional.pad(labels, (1, 0)))
    for projection, cell in ((layer.projection, layer.cell) for layer in model.layers):
        width = cell.width
        layer = torch.nn.LSTM(x.shape[2], width, batch_first=True).double()
        layer.weight_ih_l0.data, layer.bias_ih_l0.data = projection.weight.data, projection.bias.data
        layer.weight_hh_l0.data = cell.weight.data.view(width, 4 * width).t().contiguous()
        layer.bias_hh_l0.data.zero_()
        x = layer(x)[0]
    expected = (x @ model.embedding.weight.T + model.bias).log_softmax(-1)
    torch.testing.assert_close(model.whole(labels).double(), expected, atol=1e-6, rtol=1e-5)


def test_rows_do_not_depend_on_each_other_and_can_be_forked() -> None:
    model = lm()
    labels = torch.tensor([[1, 2, 3], [4, 5, 6]])
    state = model.initial_state(2)
    for u in range(3):
        state = model.advance(state, labels[:, u])
    forked = states.select(state, torch.tensor([1, 0, 1]))
    after = model.advance(forked, torch.tensor([2, 2, 5]))
    for row, history in enumerate(([4, 5, 6, 2], [1, 2, 3, 2], [4, 5, 6, 5])):
        alone = model.whole(torch.tensor([history]))[0, -1]
        torch.testing.assert_close(full(model, after)[row], alone, atol=1e-5, rtol=1e-5)
    assert states.batch_size(after) == 3


@torch.no_grad()
def test_losses_by_the_definition() -> None:
    model = lm()
    lengths = torch.tensor([5, 0, 2])
    labels = torch.randint(1, V, (3, 5)) * (torch.arange(5) < lengths[:, None])
    found = model.losses(labels, lengths)
    for row, length in enumerate(lengths.tolist()):
        own = labels[row : row + 1, :length]
        log_probs = model.whole(own)[0]
        nats = -sum(float(log_probs[u, label]) for u, label in enumerate([*own[0].tolist(), 0]))
        h = model.extend(functional.pad(own, (1, 0)), model.nothing(1)).h[0]
        penalty = 2 * h.square().mean(1).sum() + (h[1:] - h[:-1]).square().mean(1).sum()
        assert float(found.nats[row]) == pytest.approx(nats, rel=1e-5)
        assert float(found.penalty[row]) == pytest.approx(float(penalty), rel=1e-4)


@torch.no_grad()
def test_padding_may_be_anything_behind_the_end() -> None:
    model = lm()
    labels, lengths = torch.tensor([[1, 2, 0, 0]]), torch.tensor([2])
    assert float(model.losses(labels, lengths).nats) == pytest.approx(
        float(model.losses(labels[:, :2], lengths).nats), rel=1e-5
    )


def test_weight_drop_zeroes_recurrent_weights_once_in_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    cell = DroppedCell(100, 0.3).train()
    weight, original = cell.weights()["weight"], cell.get_parameter("weight").view(1, 100, 4, 100)
    share = (weight == 0).double().mean()
    assert float(share) == pytest.approx(0.3, abs=5 * math.sqrt(0.3 * 0.7 / weight.numel()))
    kept = weight != 0
    torch.testing.assert_close(weight[kept], original[kept] / 0.7, rtol=1e-4, atol=0)
    assert not torch.equal(cell.weights()["weight"], weight)  # another forward, another draw
    assert torch.equal(cell.eval().weights()["weight"], original)
    drawn = []
    weights = DroppedCell.weights
    monkeypatch.setattr(DroppedCell, "weights", lambda self: drawn.append(1) or weights(self))
    lm().train().losses(torch.randint(1, V, (2, 20)), torch.tensor([20, 20]))
    assert len(drawn) == CONFIG.layers


def test_gradients_reach_dropped_weights_where_they_were_kept() -> None:
    torch.manual_seed(0)
    model = AwdLstm(AwdLstmConfig(dim=8, hidden=8, layers=1, weight_drop=0.5), V).train()
    model.losses(torch.randint(1, V, (2, 6)), torch.tensor([6, 6])).nats.sum().backward()
    none = (model.layers[0].cell.weight.grad == 0).double().mean()
    assert 0.3 < float(none) < 0.7
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_locked_dropout_is_the_same_in_every_position() -> None:
    torch.manual_seed(0)
    y = LockedDropout(0.4).train()(torch.ones(50, 9, 40))
    assert torch.equal(y, y[:, :1].expand_as(y))
    assert float((y[:, 0] == 0).double().mean()) == pytest.approx(0.4, abs=0.06)
    assert float(y.max()) == pytest.approx(1 / 0.6, rel=1e-4)
    x = torch.randn(2, 3, 4)
    assert torch.equal(LockedDropout(0.4).eval()(x), x)


def test_embedding_dropout_takes_a_label_away_everywhere() -> None:
    torch.manual_seed(0)
    model = AwdLstm(AwdLstmConfig(dim=4, layers=1, embedding_dropout=0.5), 400).train()
    labels = torch.arange(400).repeat(2)[None]
    gone = (model._embed(labels)[0] == 0).all(dim=1).view(2, 400)
    assert torch.equal(gone[0], gone[1])
    assert float(gone[0].double().mean()) == pytest.approx(0.5, abs=0.12)


def test_tied_weights_are_one_tensor() -> None:
    assert lm().output is None
    loose = AwdLstm(CONFIG.model_copy(update={"tied": False}), V)
    assert {"output"} == set(dict(loose.named_parameters())) - set(dict(lm().named_parameters()))
    assert loose.whole(torch.zeros(1, 0, dtype=torch.int64)).shape == (1, 1, V)


def test_config_is_checked() -> None:
    with pytest.raises(ConfigError, match="weight_drop"):
        validate({"weight_drop": 1.0}, AwdLstmConfig, "x.yaml")
