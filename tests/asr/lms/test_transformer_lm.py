"""The Transformer language model: stepwise as whole, and no further back than its history."""

from __future__ import annotations

import pytest
import torch

from asr import state as states
from asr.lms import TransformerLm, TransformerLmConfig

V = 6


def lm(**settings: object) -> TransformerLm:
    torch.manual_seed(1)
    config = TransformerLmConfig(**{"dim": 16, "heads": 2, "layers": 2, "history": 3, **settings})
    return TransformerLm(config, V).eval()


@pytest.mark.parametrize("positions", ["rotary", "relative"])
@pytest.mark.parametrize(("length", "history"), [(0, 3), (1, 3), (12, 3), (5, 0), (4, 64)])
def test_stepwise_is_whole(length: int, history: int, positions: str) -> None:
    model = lm(history=history, positions=positions)
    labels = torch.randint(1, V, (3, length))
    whole, state = model.whole(labels), model.initial_state(3)
    size = states.bytes_per_stream(state)
    for u in range(length + 1):
        scores = model.score(state)
        torch.testing.assert_close(scores[:, 1:], whole[:, u, 1:], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.end(state), whole[:, u, 0], atol=1e-5, rtol=1e-5)
        assert (scores[:, 0] == 0).all()
        if u < length:
            state = model.advance(state, labels[:, u])
    assert states.bytes_per_stream(state) == size  # bounded, however long
    assert torch.allclose(whole.exp().sum(-1), torch.ones(3, length + 1), atol=1e-5)


def test_labels_beyond_the_history_of_all_layers_do_not_count() -> None:
    model = lm(history=2, layers=2)
    labels = torch.randint(1, V, (1, 9))
    other = labels.clone()
    other[0, 3] = labels[0, 3] % (V - 1) + 1
    a, b = model.whole(labels)[0], model.whole(other)[0]
    change = (a - b).abs().amax(dim=1)
    assert (change[:4] == 0).all()
    assert (change[4:9] > 1e-6).all()  # position u has read labels u - 5 .. u - 1
    assert change[9] < 1e-6


def test_forked_rows_go_their_own_ways() -> None:
    model = lm()
    state = model.advance(model.initial_state(2), torch.tensor([1, 2]))
    forked = model.advance(states.select(state, torch.tensor([1, 1, 0])), torch.tensor([3, 4, 3]))
    for row, history in enumerate(([2, 3], [2, 4], [1, 3])):
        alone = model.whole(torch.tensor([history]))[0, -1]
        torch.testing.assert_close(forked.scores[row, 1:], alone[1:], atol=1e-5, rtol=1e-5)


def test_its_first_guess_is_nearly_uniform_and_dropout_is_for_training() -> None:
    model = lm(dim=64)
    labels = torch.randint(1, V, (4, 8))
    nats = model.losses(labels, torch.full((4,), 8)).nats.sum() / (4 * 9)
    assert float(nats.detach()) < 2.2  # log 6 is 1.8
    assert torch.equal(model.whole(labels), model.whole(labels))
    model.train()
    assert not torch.equal(model.whole(labels), model.whole(labels))
