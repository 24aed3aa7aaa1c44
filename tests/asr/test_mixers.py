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
    "min_lstm": {"kind": "min_lstm"},
    "min_lstm-wide": {"kind": "min_lstm", "expansion": 1.5},
    "hgrn": {"kind": "hgrn"},
    "hgrn-wide": {"kind": "hgrn", "expansion": 1.5},
    "hgrn-real": {"kind": "hgrn", "complex_valued": False},
    "hgrn-unbounded": {"kind": "hgrn", "lower_bound": False},
    "rg_lru": {"kind": "rg_lru"},
    "rg_lru-narrow": {"kind": "rg_lru", "expansion": 0.5},
    "rg_lru-kernel": {"kind": "rg_lru", "kernel": 7},
    "local_attention": {"kind": "local_attention"},
    "local_attention-short": {"kind": "local_attention", "window": 5},
    "local_attention-one": {"kind": "local_attention", "window": 1, "heads": 2},
    "local_attention-keys": {"kind": "local_attention", "window": 7, "key_heads": 2},
    "local_attention-all-keys": {"kind": "local_attention", "window": 7, "key_heads": 4},
    "gateloop": {"kind": "gateloop"},
    "gateloop-wide": {"kind": "gateloop", "expansion": 1.5},
    "aaren": {"kind": "aaren"},
    "aaren-heads": {"kind": "aaren", "heads": 2},
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


@torch.no_grad()
def test_min_lstm() -> None:
    mixer = mixer_config("min_lstm")().build(DIM)

    def step(x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        projected = mixer.project(x)
        f, i = torch.sigmoid(projected[:DIM]), torch.sigmoid(projected[DIM : 2 * DIM])
        h = (f * (torch.zeros(DIM) if h is None else h) + i * projected[2 * DIM :]) / (f + i)
        return mixer.out(h), h

    x = torch.randn(20, DIM)
    y = mixer(x[None], None, begun(mixer, 1)).y[0]
    torch.testing.assert_close(y, by_frames(mixer, x, step), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_min_lstm_with_gates_too_small_for_numbers() -> None:
    """Both are e^-200: their quotients are still halves, and the state the mean of both candidates."""
    mixer = mixer_config("min_lstm")().build(DIM)
    mixer.project.weight[: 2 * DIM], mixer.project.bias[: 2 * DIM] = 0.0, -200.0
    x = torch.randn(1, 1, DIM)
    state = mixer(x, None, torch.ones(1, DIM)).state
    candidate = mixer.project(x)[0, 0, 2 * DIM :]
    torch.testing.assert_close(state[0], (1 + candidate) / 2)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"lower_bound": False}, {"complex_valued": False}])
def test_hgrn(settings: dict[str, Any]) -> None:
    mixer = mixer_config("hgrn")(**settings).build(DIM)
    gamma = 0.0 if mixer.gamma is None else torch.sigmoid(mixer.gamma)
    angle = torch.zeros(DIM) if mixer.theta is None else mixer.theta

    def step(x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        decay = gamma + (1 - gamma) * torch.sigmoid(mixer.forget(x))
        c = torch.nn.functional.silu(mixer.input(x))
        c = c + 0j if mixer.theta is None else torch.complex(c[:DIM], c[DIM:])
        h = decay * torch.exp(1j * angle) * (0j if h is None else h) + (1 - decay) * c
        parts = h.real if mixer.theta is None else torch.cat((h.real, h.imag))
        return mixer.out(torch.sigmoid(mixer.gate(x)) * mixer.norm(parts)), h

    x = torch.randn(20, DIM)
    y = mixer(x[None], None, begun(mixer, 1)).y[0]
    torch.testing.assert_close(y, by_frames(mixer, x, step), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_rg_lru() -> None:
    mixer = mixer_config("rg_lru")().build(DIM)
    a, width = torch.sigmoid(-mixer.decay), round(4 / 3 * DIM)
    assert bool((a**8 < 0.9991).all() & (a**8 > 0.8999).all())
    weight, bias = mixer.convolution.convolution.weight[:, 0], mixer.convolution.convolution.bias

    def step(x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        heard, h = (torch.zeros(width, 3), torch.zeros(width)) if state is None else state
        beside, u = mixer.branches(x).chunk(2)
        heard = torch.cat((heard, u[:, None]), dim=1)
        u = (heard * weight).sum(1) + bias
        r, i = torch.sigmoid(mixer.gates(u)).chunk(2)
        decay = a ** (8 * r)
        h = decay * h + (1 - decay**2).sqrt() * (i * u)
        return mixer.out(torch.nn.functional.gelu(beside) * h), (heard[:, 1:], h)

    x = torch.randn(20, DIM)
    y = mixer(x[None], None, begun(mixer, 1)).y[0]
    torch.testing.assert_close(y, by_frames(mixer, x, step), rtol=1e-4, atol=1e-5)


def test_rg_lru_with_shut_gates_has_gradients() -> None:
    """r is nothing and a_t one, where the root of 1 - a_t^2 has no slope."""
    mixer = mixer_config("rg_lru")().build(DIM)
    with torch.no_grad():
        mixer.gates.bias.fill_(-200.0)
    mixer(torch.randn(1, 9, DIM), None, begun(mixer, 1)).y.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in mixer.parameters() if p.grad is not None)


@torch.no_grad()
@pytest.mark.parametrize(("window", "heads", "key_heads"), [(64, 4, 1), (5, 4, 2), (6, 2, 2), (1, 1, 1)])
def test_local_attention(window: int, heads: int, key_heads: int) -> None:
    """Frame by frame, with rotations as complex numbers, by positions counted from the first frame."""
    settings = {"window": window, "heads": heads, "key_heads": key_heads}
    mixer, width = mixer_config("local_attention")(**settings).build(DIM), DIM // heads
    x = torch.randn(20, DIM)

    def turned(z: Tensor, t: int) -> Tensor:
        frequency = 10000.0 ** (-torch.arange(width // 2) / (width // 2))
        return torch.complex(*z.chunk(2)) * torch.exp(1j * t * frequency)

    def head(t: int, h: int) -> Tensor:
        part = slice(h * key_heads // heads * width, (h * key_heads // heads + 1) * width)
        past = range(max(0, t - window), t + 1)
        keys, values = zip(*(mixer.key_value(x[s]).chunk(2) for s in past), strict=True)
        q = turned(mixer.query(x[t])[h * width : (h + 1) * width], t)
        scores = [(q * turned(k[part], s).conj()).sum().real for s, k in zip(past, keys, strict=True)]
        weights = torch.softmax(torch.stack(scores) / width**0.5, dim=0)
        return weights @ torch.stack([v[part] for v in values])

    expected = torch.stack([mixer.out(torch.cat([head(t, h) for h in range(heads)])) for t in range(20)])
    y = mixer(x[None], None, begun(mixer, 1)).y[0]
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_local_attention_forgets_what_its_window_has_left() -> None:
    mixer = mixer_config("local_attention")(window=8).build(DIM)
    x = torch.randn(1, 50, DIM)
    changed = x.clone()
    changed[:, 20] += 5
    y, other = (mixer(z, None, begun(mixer, 1)).y[0] for z in (x, changed))
    moved = (y - other).abs().amax(1) > 0
    assert moved.nonzero()[:, 0].tolist() == list(range(20, 29))


@torch.no_grad()
def test_gateloop() -> None:
    mixer = mixer_config("gateloop")().build(DIM)

    def step(x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v, gate = mixer.project(x).chunk(4)
        size, phase = mixer.transition(x).chunk(2)
        h = torch.sigmoid(size) * torch.exp(1j * phase) * (0j if h is None else h) + k * v
        return mixer.out(torch.nn.functional.silu(gate) * mixer.norm((q * h).real)), h

    x = torch.randn(20, DIM)
    y = mixer(x[None], None, begun(mixer, 1)).y[0]
    torch.testing.assert_close(y, by_frames(mixer, x, step), rtol=1e-4, atol=1e-5)


def attended(mixer: Mixer, x: Tensor, heads: int) -> Tensor:
    """What an Aaren says of one signal (T, DIM), by a softmax over the past of every frame."""
    scores, values = mixer.score(x), mixer.value(x).view(len(x), heads, -1)
    weights = (torch.softmax(scores[: t + 1], dim=0) for t in range(len(x)))
    return mixer.out(
        torch.stack([torch.einsum("th,thd->hd", w, values[: len(w)]).flatten() for w in weights])
    )


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 1e4])
def test_aaren(size: float) -> None:
    """Scores of any size, negative ones too, as the highest so far comes off them."""
    mixer, x = mixer_config("aaren")(heads=4).build(DIM), torch.randn(20, DIM)
    mixer.score.weight *= size
    y = mixer(x[None], None, begun(mixer, 1)).y[0]
    torch.testing.assert_close(y, attended(mixer, x, 4), rtol=1e-4, atol=1e-5)


def test_gradients_of_aaren() -> None:
    """Those of softmax, also through the state between two pieces: none is missed through the maximum."""
    mixer = mixer_config("aaren")(heads=4).build(DIM).double()
    x, wanted = torch.randn(1, 20, DIM, dtype=torch.float64), torch.randn(20, DIM, dtype=torch.float64)
    first, state = mixer(x[:, :8], None, begun(mixer, 1, torch.float64))
    y = torch.cat((first, mixer(x[:, 8:], None, state).y), dim=1)[0]
    ours = torch.autograd.grad((y * wanted).sum(), list(mixer.parameters()))
    theirs = torch.autograd.grad((attended(mixer, x[0], 4) * wanted).sum(), list(mixer.parameters()))
    torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_aaren_is_exact_after_two_hours() -> None:
    """200,000 frames of 40 ms: the means over all of them, in single as in double precision."""
    torch.manual_seed(0)
    mixer = mixer_config("aaren")(heads=4).build(DIM)
    x = torch.randn(1, 200_000, DIM) + 0.5
    y = mixer(x, None, begun(mixer, 1)).y[:, -1000:]
    exact = mixer.double()(x.double(), None, begun(mixer, 1, torch.float64)).y[:, -1000:]
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-5)


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


def test_layers_take_mixers_in_turn() -> None:
    others = ({"kind": "rg_lru"}, {"kind": "local_attention", "heads": 2})
    config = RecurrentEncoderConfig(mixer={"kind": "rg_lru"}, others=others, dim=16, layers=5)
    encoder = build_encoder(config, 6, 0.01)
    kinds = [type(layer.mixer).__name__ for layer in encoder.layers]
    assert kinds == ["RgLru", "RgLru", "LocalAttention", "RgLru", "RgLru"]
    assert RecurrentEncoderConfig.model_validate(config.model_dump(mode="json")) == config


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
    with pytest.raises(ValueError, match="expected a layer for each of 3 mixers, found 2: set layers"):
        RecurrentEncoderConfig(layers=2, others=({"kind": "lru"}, {"kind": "min_gru"}))
    with pytest.raises(ValueError, match="expected heads a multiple of key_heads, found 4 and 3"):
        mixer_config("local_attention")(key_heads=3)
    with pytest.raises(ValueError, match="dim 16 is not an even multiple of heads 16"):
        mixer_config("local_attention")(heads=16).build(DIM)
    with pytest.raises(ValueError, match="dim 16 is not a multiple of heads 5"):
        mixer_config("aaren")(heads=5).build(DIM)
    with pytest.raises(ValueError, match="a state of 16 is not a multiple of heads 5: 4 would do"):
        mixer_config("gru")(heads=5).build(16)
