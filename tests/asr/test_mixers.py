"""Every mixer streams, has gradients everywhere, and is what its equations say; what is refused."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from asr import state as states
from asr.config import override
from asr.encoders import RecurrentEncoder, RecurrentEncoderConfig, build_encoder
from asr.encoders.mixers import Mixer, mixer_config, mixers
from asr.errors import ConfigError, StreamingError
from asr.transducer import TransducerConfig

DIM = 16
# A line for every mixer, and one for each of its options that changes what is computed.
MIXERS: dict[str, dict[str, Any]] = {
    "min_gru": {"kind": "min_gru"},
    "min_gru-wide": {"kind": "min_gru", "expansion": 1.5},
    "lru": {"kind": "lru"},
    "lstm": {"kind": "lstm"},
    "lstm-heads-peepholes": {"kind": "lstm", "heads": 2, "peepholes": True, "expansion": 1.5},
    "lstm-coupled": {"kind": "lstm", "coupled": True},
    "lstm-gate-recurrence": {"kind": "lstm", "gate_recurrence": True},
    "lstm-no-gates": {"kind": "lstm", "input_gate": False, "output_gate": False},
    "gru": {"kind": "gru"},
    "gru-heads": {"kind": "gru", "heads": 4},
    "slstm": {"kind": "slstm"},
    "slstm-exponential": {"kind": "slstm", "exponential_forget": True, "heads": 2, "kernel": 1},
}


@pytest.fixture(params=MIXERS)
def mixer(request: pytest.FixtureRequest) -> Mixer:
    torch.manual_seed(0)
    settings = MIXERS[request.param]
    return mixer_config(settings["kind"]).model_validate(settings).build(DIM).eval()


def begun(mixer: Mixer, batch: int, dtype: torch.dtype = torch.float32) -> Any:
    return mixer.initial_state(batch, torch.device("cpu"), dtype)


def test_no_mixer_is_missing() -> None:
    assert {settings["kind"] for settings in MIXERS.values()} == set(mixers())


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_pieces_give_the_whole(mixer: Mixer, seed: int) -> None:
    """A batch of streams, each fed as much as it likes, at times nothing."""
    rng, lengths = random.Random(seed), [23, 7, 40]
    x = torch.randn(3, 40, DIM, generator=torch.Generator().manual_seed(seed))
    whole = mixer(x, None, begun(mixer, 3)).y
    state, at, parts = begun(mixer, 3), [0, 0, 0], [[], [], []]
    sizes = {states.bytes_per_stream(state)}
    while at != lengths:
        fed = [
            min(rng.choice([0, 1, 2, 9]), length - start) for start, length in zip(at, lengths, strict=True)
        ]
        piece = torch.zeros(3, max(fed), DIM)
        for row, (start, count) in enumerate(zip(at, fed, strict=True)):
            piece[row, :count] = x[row, start : start + count]
        y, state = mixer(piece, torch.tensor(fed), state)
        assert y.shape == piece.shape
        sizes.add(states.bytes_per_stream(state))
        for row, count in enumerate(fed):
            parts[row].append(y[row, :count])
            at[row] += count
    for row, length in enumerate(lengths):
        torch.testing.assert_close(torch.cat(parts[row]), whole[row, :length], rtol=1e-4, atol=1e-5)
    assert len(sizes) == 1


def test_gradients_reach_every_parameter(mixer: Mixer) -> None:
    x = torch.randn(2, 12, DIM, requires_grad=True)
    mixer(x, None, begun(mixer, 2)).y.square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name
    assert bool((x.grad.abs().sum(dim=(0, 2)) > 0).all())


@torch.no_grad()
def test_double_precision_stays_double(mixer: Mixer) -> None:
    mixer = mixer.double()
    y, state = mixer(torch.randn(1, 9, DIM, dtype=torch.float64), None, begun(mixer, 1, torch.float64))
    assert y.dtype == torch.float64
    assert all(leaf.dtype != torch.float32 for leaf in states.leaves(state))


@torch.no_grad()
def test_half_precision_is_near(mixer: Mixer) -> None:
    x = torch.randn(2, 60, DIM)
    exact = mixer(x, None, begun(mixer, 2)).y
    with torch.autocast("cpu", torch.bfloat16):
        near = mixer(x, None, begun(mixer, 2)).y
    assert float((near.float() - exact).abs().max()) < 0.05 * float(exact.abs().max()) + 0.02


@torch.no_grad()
def test_hours_of_audio_do_not_drift(mixer: Mixer) -> None:
    """Nothing grows without bound over 20,000 frames, in the state or in the output."""
    x = torch.randn(1, 20_000, DIM, generator=torch.Generator().manual_seed(0))
    y, state = mixer(x, None, begun(mixer, 1))
    early, late = (part.abs().max() for part in (y[:, 100:1000], y[:, -1000:]))
    assert float(late) < 3 * float(early)
    assert all(bool(leaf.isfinite().all()) for leaf in states.leaves(state))


# -- The equations, frame by frame -------------------------------------------------------------------------


def by_frames(mixer: Mixer, x: Tensor, step: Any) -> Tensor:
    """y of one stream (T, DIM) from `step(x_t, state) -> (y_t, state)`."""
    state, out = None, []
    for frame in x:
        y, state = step(frame, state)
        out.append(y)
    return torch.stack(out)


@torch.no_grad()
def test_min_gru() -> None:
    mixer = mixer_config("min_gru")().build(DIM)
    weight, bias = mixer.project.weight, mixer.project.bias

    def step(x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        z = torch.sigmoid(weight[:DIM] @ x + bias[:DIM])
        h = (1 - z) * (torch.zeros(DIM) if h is None else h) + z * (weight[DIM:] @ x + bias[DIM:])
        return mixer.out(h), h

    x = torch.randn(20, DIM)
    torch.testing.assert_close(mixer(x[None], None, begun(mixer, 1)).y[0], by_frames(mixer, x, step))


@torch.no_grad()
def test_lru() -> None:
    mixer = mixer_config("lru")().build(DIM)
    decay = torch.exp(torch.complex(-mixer.nu.exp(), mixer.theta.exp()))
    assert bool((decay.abs() < 0.9991).all() & (decay.abs() > 0.8999).all())
    B = torch.complex(*mixer.input.weight.chunk(2))
    C = torch.complex(mixer.read.weight[:, :DIM], -mixer.read.weight[:, DIM:])

    def step(x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        h = decay * (torch.zeros(DIM, dtype=torch.complex64) if h is None else h)
        h = h + (1 - decay.abs().square()).sqrt() * (B @ x.to(torch.complex64))
        y = (C @ h).real + mixer.skip * x
        return mixer.out(torch.nn.functional.silu(mixer.gate(x)) * y), h

    x = torch.randn(20, DIM)
    torch.testing.assert_close(
        mixer(x[None], None, begun(mixer, 1)).y[0], by_frames(mixer, x, step), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@torch.no_grad()
def test_lstm_and_gru_are_those_of_torch(kind: str) -> None:
    mixer = mixer_config(kind)().build(DIM)
    oracle = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind](DIM, DIM, batch_first=True)
    oracle.weight_ih_l0.copy_(mixer.project.weight)
    oracle.bias_ih_l0.copy_(mixer.project.bias)
    oracle.weight_hh_l0.copy_(mixer.cell.weight[0].flatten(1).T)
    oracle.bias_hh_l0.zero_() if kind == "lstm" else oracle.bias_hh_l0.copy_(mixer.cell.bias.flatten())
    x = torch.randn(2, 20, DIM)
    torch.testing.assert_close(mixer(x, None, begun(mixer, 2)).y, mixer.out(oracle(x)[0]))


@torch.no_grad()
def test_slstm() -> None:
    """Without the stabiliser, which changes nothing but what can be represented; one head."""
    mixer = mixer_config("slstm")(heads=1, kernel=2).build(DIM)
    weight, taps = mixer.cell.weight[0], mixer.convolution.convolution

    def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        before, h, c, n = (torch.zeros(DIM),) * 4 if state is None else state
        u = torch.nn.functional.silu(taps.weight[:, 0, 0] * before + taps.weight[:, 0, 1] * x + taps.bias)
        i, f = mixer.gates(u).chunk(2)
        z, o = mixer.values(x).chunk(2)
        i, f, z, o = (part + h @ weight[:, gate] for gate, part in enumerate((i, f, z, o)))
        c = torch.sigmoid(f) * c + i.exp() * z.tanh()
        n = torch.sigmoid(f) * n + i.exp()
        h = torch.sigmoid(o) * c / n
        return mixer.out(mixer.norm(h[None])[0]), (x, h, c, n)

    x = torch.randn(20, DIM)
    torch.testing.assert_close(
        mixer(x[None], None, begun(mixer, 1)).y[0], by_frames(mixer, x, step), rtol=1e-4, atol=1e-5
    )


# -- The encoder around them -------------------------------------------------------------------------------


@torch.no_grad()
def test_bidirectional_hears_both_sides_and_refuses_to_stream() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(RecurrentEncoderConfig(dim=16, layers=2, bidirectional=True), 6, 0.01).eval()
    x = torch.randn(2, 40, 6)
    y = encoder(x, torch.tensor([40, 20])).y
    changed = x.clone()
    changed[0, 39] += 5
    assert float((encoder(changed, torch.tensor([40, 20])).y[0, 0] - y[0, 0]).abs().max()) > 1e-6
    alone = encoder(x[1:, :20], torch.tensor([20])).y[0]
    torch.testing.assert_close(y[1, :5], alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(StreamingError, match="bidirectional and needs the whole utterance"):
        encoder.initial_state(1)


def test_checkpointing_changes_no_gradient() -> None:
    x, lengths, found = torch.randn(2, 40, 6), torch.tensor([40, 25]), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = RecurrentEncoderConfig(dim=16, layers=2, kernel=3, checkpointing=checkpointing, dropout=0.2)
        encoder = build_encoder(config, 6, 0.01).train()
        torch.manual_seed(1)
        encoder(x, lengths).y[:, :6].square().sum().backward()
        found.append([parameter.grad for parameter in encoder.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


def test_configurations_travel_as_plain_values() -> None:
    """Into YAML and back, with the settings of the mixer; another kind begins with its defaults."""
    config = TransducerConfig(encoder=RecurrentEncoderConfig(mixer={"kind": "lru", "largest": 0.99}))
    assert TransducerConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.model_dump(mode="json")["encoder"]["mixer"]["largest"] == 0.99
    other = override(config, ["encoder.mixer.kind=min_gru", "encoder.mixer.expansion=2"])
    assert isinstance(other.encoder, RecurrentEncoderConfig)
    assert other.encoder.mixer == mixer_config("min_gru")(expansion=2)
    assert isinstance(build_encoder(other.encoder, 6, 0.01), RecurrentEncoder)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("encoder.mixer.kind=mamba9", "expected a mixer among .*min_gru.*found 'mamba9'"),
        ("encoder.mixer.kind=base", "expected a mixer among"),
        ("encoder.mixer.kind=../lstm", "expected a mixer among"),
        ("encoder.mixer.expansion=-1", "expansion: Input should be greater than 0, found -1"),
        (
            "encoder.mixer={kind: lstm, coupled: true, forget_gate: false}",
            "coupled=True needs the input gate",
        ),
        ("encoder.mixer.speed=1", "speed: Extra inputs are not permitted"),
    ],
)
def test_refused_settings(assignment: str, message: str) -> None:
    config = TransducerConfig(encoder=RecurrentEncoderConfig())
    with pytest.raises(ConfigError, match=message) as caught:
        override(config, [assignment])
    assert "\n" not in str(caught.value)


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="set lookahead to 0"):
        RecurrentEncoderConfig(bidirectional=True, lookahead=2)
    with pytest.raises(ValueError, match=r"expected smallest < largest, found 0\.9 and 0\.5"):
        mixer_config("lru")(largest=0.5)
    with pytest.raises(ValueError, match="a state of 16 is not a multiple of heads 5: 4 would do"):
        mixer_config("gru")(heads=5).build(16)
