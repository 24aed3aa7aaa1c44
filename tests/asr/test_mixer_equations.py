"""Every mixer is what its equations say, computed frame by frame or another way."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from asr.encoders.mixers import Mixer, mixer_config

DIM = 16


def begun(mixer: Mixer, batch: int, dtype: torch.dtype = torch.float32) -> Any:
    return mixer.initial_state(batch, torch.device("cpu"), dtype)


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
    torch.testing.assert_close(mixer.log_gamma.exp(), (1 - decay.abs().square()).sqrt())
    mixer.log_gamma += 0.3 * torch.randn(DIM)
    B = torch.complex(*mixer.input.weight.chunk(2))
    C = torch.complex(mixer.read.weight[:, :DIM], -mixer.read.weight[:, DIM:])

    def step(x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        h = decay * (torch.zeros(DIM, dtype=torch.complex64) if h is None else h)
        h = h + mixer.log_gamma.exp() * (B @ x.to(torch.complex64))
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


@pytest.mark.parametrize(("heads", "exponential"), [(1, False), (2, False), (1, True)])
@torch.no_grad()
def test_slstm(heads: int, exponential: bool) -> None:
    """Without the stabiliser, which changes nothing but what can be represented."""
    mixer = mixer_config("slstm")(heads=heads, kernel=2, exponential_forget=exponential).build(DIM)
    taps, width = mixer.convolution.convolution, DIM // heads
    blocks = [torch.block_diag(*mixer.cell.weight[:, :, gate]) for gate in range(4)]
    forget = torch.exp if exponential else torch.sigmoid

    def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        before, h, c, n = (torch.zeros(DIM),) * 4 if state is None else state
        u = torch.nn.functional.silu(taps.weight[:, 0, 0] * before + taps.weight[:, 0, 1] * x + taps.bias)
        i, f = mixer.gates(u).view(heads, 2, width).unbind(1)
        z, o = mixer.values(x).view(heads, 2, width).unbind(1)
        i, f, z, o = (part.flatten() + h @ blocks[gate] for gate, part in enumerate((i, f, z, o)))
        c = forget(f) * c + i.exp() * z.tanh()
        n = forget(f) * n + i.exp()
        h = torch.sigmoid(o) * c / n
        return mixer.out(mixer.norm(h.view(heads, width))), (x, h, c, n)

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
