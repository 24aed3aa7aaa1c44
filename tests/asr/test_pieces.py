"""Signals cut into pieces and put together; the encoder that trains in them, and layer by layer."""

from __future__ import annotations

import pytest
import torch

from asr.encoders import LstmEncoderConfig
from asr.encoders.lstm import LstmEncoder
from asr.errors import ConfigError
from asr.layers.pieces import cut, together

BINS = 8


@pytest.mark.parametrize("size", [1, 3, 4, 10, 12])
@pytest.mark.parametrize("context", [0, 1, 5])
def test_every_frame_is_answered_once_and_by_its_own_piece(size: int, context: int) -> None:
    lengths = torch.tensor([10, 1, 0, 7])
    x = torch.arange(1, 11).repeat(4, 1)[:, :, None] + 100 * torch.arange(4)[:, None, None]
    pieces = cut(x, lengths, size, context)
    count = -(-10 // size)
    for b, length in enumerate(lengths.tolist()):
        for n in range(count):
            begin, end = n * size, min(length, (n + 1) * size)
            heard = range(max(0, begin - context), min(length, end + context)) if begin < length else range(0)
            k = b * count + n
            assert pieces.lengths[k] == len(heard)
            assert pieces.frames[k, : len(heard), 0].tolist() == [100 * b + 1 + t for t in heard]
    assert torch.equal(together(pieces.frames, pieces.own, 4, 10), x)


def test_no_frames_at_all() -> None:
    pieces = cut(torch.zeros(2, 1, 3), torch.tensor([0, 0]), 4, 2)
    assert pieces.lengths.tolist() == [0, 0]


def bilstm(**options: object) -> LstmEncoder:
    torch.manual_seed(3)
    config = LstmEncoderConfig(hidden=6, layers=3, bidirectional=True, dropout=0.0, **options)
    return LstmEncoder(config, BINS, 0.01)


def test_training_hears_pieces_alone_and_decoding_the_whole() -> None:
    encoder, whole = bilstm(piece=5, piece_context=2), bilstm()
    encoder.load_state_dict(whole.state_dict())
    x, lengths = torch.randn(2, 80, BINS), torch.tensor([80, 47])
    x[1, 47:] = 0
    heard = []
    encoder.lstms[0].register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0].shape[1]))
    trained = encoder(x, lengths).y
    assert set(heard) == {5 + 2 * 2}
    # Each piece as a signal of its own, behind the same entrance.
    frames, frame_lengths, _ = whole.entrance(
        torch.nn.functional.pad(x, (0, 0, 0, whole.flush_frames)), lengths + whole.flush_frames, None
    )
    for b, length in enumerate(frame_lengths.tolist()):
        for begin in range(0, length, 5):
            first, last = max(0, begin - 2), min(length, begin + 5 + 2)
            alone = whole._stack(frames[b : b + 1, first:last], torch.tensor([last - first]))[0]
            own = alone[begin - first :][: min(5, length - begin)]
            torch.testing.assert_close(trained[b, begin : begin + len(own)], own)
    encoder.eval()
    torch.testing.assert_close(encoder(x, lengths).y[0], whole.eval()(x, lengths).y[0])


def test_layers_join_one_after_the_other_and_change_nothing_at_first() -> None:
    encoder = bilstm(layer_steps=10)
    x, lengths = torch.randn(2, 40, BINS), torch.tensor([40, 31])
    assert [encoder.at_step(step).depth for step in (0, 9, 10, 19, 20, 500, None)] == [1, 1, 2, 2, 3, 3, 3]
    y = encoder(x, lengths).y
    torch.testing.assert_close(encoder.at_step(0)(x, lengths).y, y)
    encoder.at_step(10)(x, lengths).y.square().sum().backward()
    gradients = [norm.weight.grad is not None for norm in encoder.norms]
    assert gradients == [True, True, False]
    for layer in (encoder.lstms[2], encoder.reversed_lstms[2]):
        assert all(weight.grad is None for weight in layer.parameters())
    assert float(encoder.norms[1].weight.grad.abs().sum()) > 0
    with torch.no_grad():
        encoder.norms[2].weight.fill_(1.0)
    assert not torch.allclose(encoder(x, lengths).y, y)


def test_a_training_that_ends_before_the_last_layer_has_joined_is_refused() -> None:
    encoder = bilstm(layer_steps=100)
    encoder.check_steps(201)
    with pytest.raises(ConfigError, match=r"last of 3 layers joins at step 200 .* 33 would do"):
        encoder.check_steps(200)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"piece": 10}, "for bidirectional"),
        ({"bidirectional": True, "piece_context": 10}, "needs pieces"),
        ({"layers": 1, "layer_steps": 10}, "needs layers to add"),
    ],
)
def test_options_without_effect_are_refused(options: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        LstmEncoderConfig(**options)
