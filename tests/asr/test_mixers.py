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
    "retention": {"kind": "retention"},
    "retention-wide": {"kind": "retention", "expansion": 2},
    "retention-memories": {"kind": "retention", "shortest": 2, "longest": 4000},
    "hgrn2": {"kind": "hgrn2"},
    "hgrn2-unbounded": {"kind": "hgrn2", "heads": 2, "lower_bound": 0},
    "rwkv": {"kind": "rwkv"},
    "rwkv-ranks": {"kind": "rwkv", "heads": 2, "rank": 3, "decay_rank": 5},
    "mamba2": {"kind": "mamba2"},
    "mamba2-small": {"kind": "mamba2", "heads": 2, "expansion": 1, "states": 5, "kernel": 1},
    "delta_product": {"kind": "delta_product"},
    "delta_product-one": {"kind": "delta_product", "steps": 1},
    "delta_product-positive": {"kind": "delta_product", "steps": 3, "negative_eigenvalues": False},
    "delta_product-no_decay": {"kind": "delta_product", "decay": False},
    "delta_product-no_kernel": {"kind": "delta_product", "kernel": 0},
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
        piece = torch.randn(3, max(fed), DIM)
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
    state = begun(mixer, 2)
    with torch.autocast("cpu", torch.bfloat16):
        near, after = mixer(x, None, state)
    dtypes = [[leaf.dtype for leaf in states.leaves(one)] for one in (state, after)]
    assert dtypes[0] == dtypes[1], "sessions that have begun could not be batched with new ones"
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


def double(kind: str, **settings: Any) -> Mixer:
    torch.manual_seed(1)
    return mixer_config(kind)(**settings).build(DIM).double()


def signal(frames: int = 20) -> Tensor:
    return torch.randn(frames, DIM, dtype=torch.float64)


def whole(mixer: Mixer, x: Tensor) -> Tensor:
    y: Tensor = mixer(x[None], None, begun(mixer, 1, torch.float64)).y[0]
    return y


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(heads, width)."""
    return x.view(heads, -1)


def normed(x: Tensor, norm: torch.nn.Module, eps: float = 1e-5) -> Tensor:
    """(heads, width) by the root of its mean square, as (heads * width)."""
    return (x / (x.square().mean(dim=1, keepdim=True) + eps).sqrt()).flatten() * norm.weight


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def convolved(frames: Tensor, convolution: torch.nn.Module) -> Tensor:
    """Every frame and those before it, zeros before the first, by the weights of each channel."""
    weight, bias = convolution.convolution.weight[:, 0], convolution.convolution.bias
    padded = torch.cat((frames.new_zeros(weight.shape[1] - 1, frames.shape[1]), frames))
    return torch.stack(
        [(padded[t : t + weight.shape[1]].T * weight).sum(dim=1) + bias for t in range(len(frames))]
    )


def retained(mixer: Mixer, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, memory: Tensor) -> Tensor:
    """The parallel form of the paper at the last frame: q, gate of it, k, v (T, heads, width) of all."""
    width = q.shape[-1] // 2
    theta = 10000.0 ** (-torch.arange(width, dtype=torch.float64) / width)
    distance = torch.arange(len(k) - 1, -1, -1, dtype=torch.float64)
    decay = (1 - 1 / memory) ** distance[:, None]
    turn = torch.polar(torch.ones_like(theta), -distance[:, None] * theta)[:, None]
    keys, query = torch.complex(*k.chunk(2, dim=-1)) * turn, torch.complex(*q.chunk(2, dim=-1))
    scores = (query.conj() * keys).real.sum(dim=-1) * decay / (2 * width) ** 0.5
    o = (scores[:, :, None] * v).sum(dim=0)
    return mixer.out(silu(gate) * normed(o, mixer.norm))


@pytest.mark.parametrize("settings", [{}, {"expansion": 2, "heads": 2}, {"shortest": 2, "longest": 4000}])
@torch.no_grad()
def test_retention(settings: dict[str, Any]) -> None:
    mixer, x = double("retention", **settings), signal()
    heads, wide = settings.get("heads", 4), settings.get("expansion", 1)
    low, high = settings.get("shortest", 32.0), settings.get("longest", 512.0)
    memory = torch.tensor([low * (high / low) ** (h / (heads - 1)) for h in range(heads)]).double()
    parts = (x @ mixer.project.weight.T).split([DIM, DIM, wide * DIM, wide * DIM], dim=1)
    q, k, v = (part.view(len(x), heads, -1) for part in parts[:3])
    expected = [retained(mixer, q[t], k[: t + 1], v[: t + 1], parts[3][t], memory) for t in range(len(x))]
    # The decays are buffers of float32.
    torch.testing.assert_close(whole(mixer, x), torch.stack(expected), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_retention_after_hours() -> None:
    """What was heard 100,000 frames ago has turned as far as it should, in pieces of all sizes."""
    torch.manual_seed(0)
    mixer, frames, rng = mixer_config("retention")().build(DIM), 100_000, random.Random(0)
    mixer.log_decay.zero_()
    x = torch.zeros(1, frames + 1, DIM)
    x[0, 0], x[0, -1] = torch.randn(2, DIM)
    state, at = begun(mixer, 1), 0
    while at <= frames:
        piece = x[:, at : at + rng.randint(1, 400)]
        y, state = mixer(piece, None, state)
        at += piece.shape[1]
    mixer = mixer.double()
    parts = (x[0].double() @ mixer.project.weight.T).view(frames + 1, 4, 4, -1).unbind(1)
    memory = torch.full((4,), torch.inf, dtype=torch.float64)
    exact = retained(mixer, parts[0][-1], parts[1], parts[2], parts[3][-1].flatten(), memory)
    torch.testing.assert_close(y[0, -1].double(), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bound", [0.0, 0.5])
@torch.no_grad()
def test_hgrn2(bound: float) -> None:
    mixer = double("hgrn2", lower_bound=bound)

    def step(x: Tensor, S: Tensor | None) -> tuple[Tensor, Tensor]:
        q, z, v = (heads_of(part, 4) for part in (mixer.project.weight @ x).chunk(3))
        f = bound + (1 - bound) / (1 + torch.exp(-z))
        before = torch.zeros(4, 4, 4, dtype=torch.float64) if S is None else S
        S = f[:, :, None] * before + (1 - f)[:, :, None] * v[:, None]
        return mixer.out(normed((S * silu(q)[:, :, None]).sum(dim=1), mixer.norm)), S

    x = signal()
    torch.testing.assert_close(whole(mixer, x), by_frames(mixer, x, step))


@torch.no_grad()
def test_hgrn2_forgets_all_and_nothing() -> None:
    """Gates far out keep their digits, and their gradients are numbers."""
    mixer = double("hgrn2", lower_bound=0).float()
    with torch.enable_grad():
        z = torch.tensor([-200.0, -30.0, 0.0, 30.0, 200.0], requires_grad=True)
        log_f, let_go = mixer._gates(z)
        (log_f + let_go).sum().backward()
    torch.testing.assert_close(log_f.detach()[1], torch.tensor(-30.0))
    torch.testing.assert_close(let_go.detach()[3], torch.exp(torch.tensor(-30.0)))
    assert bool(z.grad.isfinite().all())


@torch.no_grad()
def test_rwkv() -> None:
    mixer = double("rwkv", rank=3)
    # Away from what they begin as, so that every term counts.
    for parameter in (mixer.share_up, mixer.decay_up, mixer.bonus, mixer.norm.bias, mixer.shares):
        parameter.add_(0.3 * torch.randn_like(parameter))
    down = mixer.share_down.weight.chunk(5)

    def step(x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        last, S = state or (torch.zeros_like(x), torch.zeros(4, 4, 4, dtype=torch.float64))
        base = x + (last - x) * mixer.share
        mixed = [
            x + (last - x) * (mixer.shares.chunk(5)[c] + torch.tanh(down[c] @ base) @ mixer.share_up[c])
            for c in range(5)
        ]
        d = mixer.decay + torch.tanh(mixer.decay_down.weight @ mixed[4]) @ mixer.decay_up
        w = heads_of(torch.exp(-torch.exp(d)), 4)
        projections = (mixer.receptance, mixer.key, mixer.value)
        r, k, v = (
            heads_of(linear.weight @ one, 4) for linear, one in zip(projections, mixed[:3], strict=True)
        )
        new = k[:, :, None] * v[:, None]
        o = ((S + heads_of(mixer.bonus, 4)[:, :, None] * new) * r[:, :, None]).sum(dim=1)
        o = (o - o.mean(dim=1, keepdim=True)) / (o.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt()
        o = o.flatten() * mixer.norm.weight + mixer.norm.bias
        return mixer.out(silu(mixer.gate.weight @ mixed[3]) * o), (x, w[:, :, None] * S + new)

    x = signal()
    torch.testing.assert_close(whole(mixer, x), by_frames(mixer, x, step))


@torch.no_grad()
def test_mamba2() -> None:
    mixer, x = double("mamba2", heads=4, states=5, kernel=3), signal()
    z, heard, r = (x @ mixer.project.weight.T).split((32, 42, 4), dim=1)
    dt = torch.log(1 + torch.exp(r + mixer.step.bias))
    start = torch.nn.functional.softplus(mixer.step.bias)
    assert bool(((start > 0.00099) & (start < 0.101)).all())
    A = mixer.step.log_rate.exp()
    assert bool(((A >= 1) & (A <= 16)).all())
    frames = torch.cat((silu(convolved(heard, mixer.convolution)), z, dt), dim=1)

    def step(frame: Tensor, S: Tensor | None) -> tuple[Tensor, Tensor]:
        u, B, C, z, dt = frame.split((32, 5, 5, 32, 4))
        S = torch.zeros(4, 8, 5, dtype=torch.float64) if S is None else S  # (heads, width, states)
        u = heads_of(u, 4)
        S = torch.exp(-dt * A)[:, None, None] * S + (dt[:, None] * u)[:, :, None] * B
        o = (S @ C + mixer.skip[:, None] * u).flatten() * silu(z)
        return mixer.out(normed(o[None], mixer.norm)), S

    torch.testing.assert_close(whole(mixer, x), by_frames(mixer, frames, step))


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(dim=1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("options", [{}, {"negative_eigenvalues": False}, {"decay": False}, {"kernel": 0}])
@torch.no_grad()
def test_delta_product(steps: int, options: dict[str, Any]) -> None:
    mixer, x = double("delta_product", steps=steps, **options), signal()
    heard, gate = (x @ mixer.project.weight.T).split(((1 + 2 * steps) * DIM, DIM), dim=1)
    heard = silu(heard if mixer.convolution is None else convolved(heard, mixer.convolution))
    reach = 1 if options.get("negative_eigenvalues") is False else 2
    beta = reach / (1 + torch.exp(-x @ mixer.rates.weight.T))
    kept = torch.ones(len(x), 4, dtype=torch.float64)
    if mixer.forget is not None:
        dt = torch.log(1 + torch.exp(x @ mixer.forget.weight.T + mixer.step.bias))
        kept = torch.exp(-mixer.step.log_rate.exp() * dt)
    frames = torch.cat((heard, beta, kept, gate), dim=1)

    def step(frame: Tensor, S: Tensor | None) -> tuple[Tensor, Tensor]:
        heard, beta, kept, gate = frame.split((len(frame) - 4 * steps - 4 - DIM, 4 * steps, 4, DIM))
        q, *rest = (heads_of(part, 4) for part in heard.split(DIM))
        S = torch.zeros(4, 4, 4, dtype=torch.float64) if S is None else S  # (heads, values, keys)
        S = kept[:, None, None] * S
        for n in range(steps):
            k, v, rate = rest[n], rest[steps + n], beta[4 * n : 4 * n + 4, None, None]
            k = unit(k)
            S = S @ (torch.eye(4) - rate * k[:, :, None] * k[:, None])
            S = S + rate * v[:, :, None] * k[:, None]
        o = (S @ unit(q)[:, :, None])[..., 0]
        return mixer.out(silu(gate) * normed(o, mixer.norm)), S

    torch.testing.assert_close(whole(mixer, x), by_frames(mixer, frames, step))


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
    with pytest.raises(ValueError, match=r"expected shortest <= longest, found 64 and 2: swap them"):
        mixer_config("retention")(shortest=64, longest=2)
    with pytest.raises(ValueError, match=r"expected dt_min <= dt_max, found 1 and 0\.1: swap them"):
        mixer_config("mamba2")(dt_min=1)


@pytest.mark.parametrize(
    ("kind", "dim", "settings", "message"),
    [
        ("hgrn2", 16, {"heads": 3}, "the same width within 16 channels, found 3 heads: set heads to 2 or 4$"),
        ("rwkv", 16, {"heads": 17}, "within 16 channels, found 17 heads: set heads to 16$"),
        ("delta_product", 16, {"heads": 5}, "found 5 heads: set heads to 4 or 8$"),
        ("mamba2", 16, {"heads": 12}, "within 32 channels, found 12 heads: set heads to 8 or 16$"),
        ("retention", 16, {"heads": 16}, "an even width within 16 channels, found 16 heads: set heads to 8$"),
        (
            "retention",
            15,
            {"heads": 1},
            "an even width within 15 channels, found 1 heads: make the width a multiple of 2$",
        ),
        (
            "mamba2",
            16,
            {"expansion": 0.01},
            "within 0 channels, found 8 heads: make the width a multiple of 8$",
        ),
        ("retention", 16, {"expansion": 0.6}, "within 10 channels, found 4 heads: set heads to 2 or 5$"),
    ],
)
def test_heads_that_do_not_divide(kind: str, dim: int, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixer_config(kind)(**settings).build(dim)
