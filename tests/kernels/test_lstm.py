"""Recurrent cells against torch.nn, loops written here from the papers, and backend against backend."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from triton_support import poisoned

from asr_kernels import Cell, CellState, recurrence

__all__ = ["poisoned"]  # a fixture of every test here

BACKENDS = ["reference", "cpu"]
CELLS = {
    "lstm": Cell(),
    "peepholes": Cell(peepholes=True),
    "NIG": Cell(peepholes=True, input_gate=False),
    "NFG": Cell(peepholes=True, forget_gate=False),
    "NOG": Cell(peepholes=True, output_gate=False),
    "NIAF": Cell(peepholes=True, input_activation=False),
    "NOAF": Cell(peepholes=True, output_activation=False),
    "CIFG": Cell(peepholes=True, coupled=True),
    "FGR": Cell(peepholes=True, gate_recurrence=True),
    "FGR, NFG": Cell(forget_gate=False, gate_recurrence=True),
    "FGR, CIFG": Cell(coupled=True, gate_recurrence=True),
    "no gates": Cell(input_gate=False, forget_gate=False, output_gate=False),
    "gru": Cell("gru"),
    "elman": Cell("elman"),
    "slstm": Cell("slstm"),
    "slstm, exp": Cell("slstm", exponential_forget=True),
}
SHAPES = [(3, 6, 2, 4), (1, 1, 1, 1), (2, 1, 3, 5), (1, 7, 1, 3), (4, 5, 1, 2)]


class Inputs(NamedTuple):
    """Everything that `recurrence` differentiates, float64."""

    x: Tensor
    parameters: dict[str, Tensor]
    state: CellState

    def leaves(self) -> list[Tensor]:
        return [self.x, *self.parameters.values(), *(leaf for leaf in self.state if leaf is not None)]

    def to(self, dtype: torch.dtype) -> Inputs:
        """Leaves of that dtype; the state stays float32 where that is shorter."""

        def cast(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype).requires_grad_()

        state = {name: cast(leaf) for name, leaf in self.state._asdict().items() if leaf is not None}
        return Inputs(cast(self.x), {k: cast(p) for k, p in self.parameters.items()}, CellState(**state))


def make(cell: Cell, B: int, T: int, H: int, D: int, seed: int = 0) -> Inputs:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=rng, dtype=torch.float64)).requires_grad_()

    shapes = cell.parameter_shapes(H, D)
    parameters = {name: normal(*shape, scale=0.7) for name, shape in shapes.items()}
    state = {leaf: normal(B, H, D) for leaf in cell.leaves}
    if cell.kind == "slstm":  # a normaliser is a sum of exponentials
        state["n"] = (0.5 + torch.rand(B, H, D, generator=rng, dtype=torch.float64)).requires_grad_()
    return Inputs(normal(B, T, H, len(cell.gates), D), parameters, CellState(**state))


class Outcome(NamedTuple):
    y: Tensor
    state: CellState
    grads: list[Tensor]


def run(cell: Cell, inputs: Inputs, **options: Any) -> Outcome:
    """Outputs, and the gradients of a random function of all of them."""
    found = recurrence(cell, inputs.x, state=inputs.state, **inputs.parameters, **options)
    return differentiate(found.y, found.state, inputs.leaves())


def differentiate(y: Tensor, state: CellState, leaves: list[Tensor]) -> Outcome:
    rng = torch.Generator().manual_seed(9)
    total = torch.zeros((), dtype=torch.float64)
    for output in (y, *(leaf for leaf in state if leaf is not None)):
        total = (
            total + (output.double() * torch.randn(output.shape, generator=rng, dtype=torch.float64)).sum()
        )
    grads = torch.autograd.grad(total, leaves, allow_unused=True)
    detached = CellState(*(None if leaf is None else leaf.detach() for leaf in state))
    zeros = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)]
    return Outcome(y.detach(), detached, zeros)


def agree(found: Outcome, wanted: Outcome, tolerance: float = 1e-9) -> None:
    pairs = [(found.y, wanted.y), *zip(found.grads, wanted.grads, strict=True)]
    pairs += [(a, b) for a, b in zip(found.state, wanted.state, strict=True) if b is not None]
    for a, b in pairs:
        scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=tolerance * scale)


def uneven(B: int, T: int) -> Tensor:
    """Lengths from T down, with an empty one in the middle."""
    return torch.tensor([max(0, T - 2 * b) if b != 1 else 0 for b in range(B)])


# -- Loops from the papers, one stream, one head and one unit at a time --------------------------------------


def by_hand(cell: Cell, inputs: Inputs) -> Outcome:
    x, p, start = inputs
    B, T, H, _, D = x.shape
    y, ends = torch.zeros(B, T, H, D, dtype=torch.float64), {leaf: {} for leaf in cell.leaves}
    rows = {}
    for b in range(B):
        for head in range(H):
            s = {leaf: [getattr(start, leaf)[b, head, d] for d in range(D)] for leaf in cell.leaves}
            for t in range(T):
                new: dict[str, list[Tensor]] = {leaf: [] for leaf in cell.leaves}
                for d in range(D):
                    unit = _lstm_unit if cell.kind == "lstm" else _slstm_unit
                    for leaf, value in unit(cell, x[b, t, head], p, head, s, d).items():
                        new[leaf].append(value)
                s = new
                rows[b, t, head] = torch.stack(s["h"])
            for leaf in cell.leaves:
                ends[leaf][b, head] = torch.stack(s[leaf])
    y = torch.stack(
        [torch.stack([torch.stack([rows[b, t, h] for h in range(H)]) for t in range(T)]) for b in range(B)]
    )
    state = {
        leaf: torch.stack([torch.stack([found[b, h] for h in range(H)]) for b in range(B)])
        for leaf, found in ends.items()
    }
    return differentiate(y, CellState(**state), inputs.leaves())


def _preactivation(
    cell: Cell, x: Tensor, p: dict[str, Tensor], head: int, h: list[Tensor], d: int
) -> dict[str, Tensor]:
    return {
        gate: x[g, d] + p["bias"][head, g, d] + sum(h[k] * p["weight"][head, k, g, d] for k in range(len(h)))
        for g, gate in enumerate(cell.gates)
    }


def _lstm_unit(
    cell: Cell, x: Tensor, p: dict[str, Tensor], head: int, s: dict[str, list[Tensor]], d: int
) -> dict[str, Tensor]:
    """Greff et al. 2017, section II and appendix."""
    a = _preactivation(cell, x, p, head, s["h"], d)
    one = torch.ones((), dtype=torch.float64)
    if cell.gate_recurrence:
        names = [g for g in ("i", "f", "o") if g in a]
        for m, to in enumerate(names):
            for n, source in enumerate(names):
                for k in range(len(s["h"])):
                    a[to] = a[to] + s[source][k] * p["gate_weight"][head, n, k, m, d]
    if cell.peepholes:
        names = [g for g in ("i", "f", "o") if g in a]
        peep = {name: p["peepholes"][head, k, d] for k, name in enumerate(names)}
    else:
        peep = {}
    i = 1 / (1 + torch.exp(-a["i"] - peep.get("i", 0) * s["c"][d])) if "i" in a else one
    f = 1 / (1 + torch.exp(-a["f"] - peep.get("f", 0) * s["c"][d])) if "f" in a else one
    f = 1 - i if cell.coupled else f
    z = torch.tanh(a["z"]) if cell.input_activation else a["z"]
    c = z * i + s["c"][d] * f
    o = 1 / (1 + torch.exp(-a["o"] - peep.get("o", 0) * c)) if "o" in a else one
    h = (torch.tanh(c) if cell.output_activation else c) * o
    return {"h": h, "c": c, **{k: v for k, v in (("i", i), ("f", f), ("o", o)) if k in cell.leaves}}


def _slstm_unit(
    cell: Cell, x: Tensor, p: dict[str, Tensor], head: int, s: dict[str, list[Tensor]], d: int
) -> dict[str, Tensor]:
    """Beck et al. 2024, equations 8 to 17: without the stabiliser, which is put back at the end."""
    a = _preactivation(cell, x, p, head, s["h"], d)
    i, o = torch.exp(a["i"]), torch.sigmoid(a["o"])
    f = torch.exp(a["f"]) if cell.exponential_forget else torch.sigmoid(a["f"])
    c = f * s["c"][d] * torch.exp(s["m"][d]) + i * torch.tanh(a["z"])
    n = f * s["n"][d] * torch.exp(s["m"][d]) + i
    m = torch.maximum(torch.log(f) + s["m"][d], a["i"])
    return {"h": o * c / n, "c": c * torch.exp(-m), "n": n * torch.exp(-m), "m": m}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name, cell in CELLS.items() if cell.kind in ("lstm", "slstm")])
def test_equals_the_papers(name: str, backend: str) -> None:
    cell = CELLS[name]
    inputs = make(cell, 2, 4, 2, 3)
    agree(run(cell, inputs, backend=backend), by_hand(cell, inputs))


# -- torch.nn ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["lstm", "gru", "elman"])
@pytest.mark.parametrize("reverse", [False, True])
def test_equals_torch(kind: Any, backend: str, reverse: bool) -> None:
    B, T, D = 3, 9, 5
    torch.manual_seed(0)
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "elman": torch.nn.RNN}[kind]
    peer = module(D, D, batch_first=True).double()
    cell = Cell(kind)
    G = len(cell.gates)
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    start = [torch.randn(1, B, D, dtype=torch.float64, requires_grad=True) for _ in cell.leaves]
    fed = x.flip(1) if reverse else x
    y, last = peer(fed, tuple(start) if kind == "lstm" else start[0])
    y = y.flip(1) if reverse else y
    last = last if kind == "lstm" else (last,)
    state = CellState(*(leaf.transpose(0, 1) for leaf in last))
    leaves = [x, *start, *peer.parameters()]
    wanted = differentiate(y[:, :, None], state, leaves)

    projected = torch.nn.functional.linear(x, peer.weight_ih_l0, peer.bias_ih_l0).view(B, T, 1, G, D)
    weight = peer.weight_hh_l0.view(1, G, D, D).permute(0, 3, 1, 2)
    found = recurrence(
        cell,
        projected,
        weight,
        peer.bias_hh_l0.view(1, G, D),
        CellState(*(leaf.transpose(0, 1) for leaf in start)),
        reverse=reverse,
        backend=backend,
    )
    agree(differentiate(found.y, found.state, leaves), wanted)


def test_uneven_lengths_equal_packed_sequences() -> None:
    torch.manual_seed(0)
    peer, lengths = torch.nn.GRU(4, 4, batch_first=True), torch.tensor([3, 7, 1, 7])
    x = torch.randn(4, 7, 4)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    y, last = peer(packed)
    wanted, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True)
    projected = torch.nn.functional.linear(x, peer.weight_ih_l0, peer.bias_ih_l0).view(4, 7, 1, 3, 4)
    weight, bias = peer.weight_hh_l0.view(1, 3, 4, 4).permute(0, 3, 1, 2), peer.bias_hh_l0.view(1, 3, 4)
    found = recurrence(Cell("gru"), projected, weight, bias, lengths=lengths)
    torch.testing.assert_close(found.y[:, :, 0], wanted)
    assert found.state.h is not None
    torch.testing.assert_close(found.state.h[:, 0], last[0])


# -- Backend against backend ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_backends_agree_on_awkward_shapes(name: str, reverse: bool) -> None:
    cell = CELLS[name]
    for shape in SHAPES:
        inputs = make(cell, *shape, seed=1)
        for lengths in (None, uneven(*shape[:2])):
            options = {"lengths": lengths, "reverse": reverse}
            wanted = run(cell, inputs, backend="reference", **options)
            agree(run(cell, inputs, backend="cpu", **options), wanted)
            agree(run(cell, inputs.to(torch.float32), backend="cpu", **options), wanted, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["FGR", "CIFG", "gru", "elman", "slstm"])
def test_gradcheck(name: str, backend: str) -> None:
    cell = CELLS[name]
    inputs = make(cell, 2, 3, 1, 2, seed=2)
    names = list(inputs.parameters)

    def op(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        parameters = dict(zip(names, rest[: len(names)], strict=True))
        state = CellState(**dict(zip(cell.leaves, rest[len(names) :], strict=True)))
        found = recurrence(cell, x, state=state, lengths=torch.tensor([3, 2]), backend=backend, **parameters)
        return found.y, *(leaf for leaf in found.state if leaf is not None)

    state = [getattr(inputs.state, leaf) for leaf in cell.leaves]
    assert torch.autograd.gradcheck(op, (inputs.x, *inputs.parameters.values(), *state))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["CIFG", "gru", "elman", "slstm"])
def test_half_precision_is_rounded_at_the_ends_only(name: str, dtype: torch.dtype) -> None:
    cell = CELLS[name]
    inputs = make(cell, 2, 6, 2, 4).to(dtype)
    exact = inputs.to(torch.float32)
    found = run(cell, inputs, backend="cpu")
    wanted = run(cell, exact, backend="cpu")
    assert found.y.dtype == dtype
    assert all(leaf.dtype == torch.float32 for leaf in found.state if leaf is not None)
    torch.testing.assert_close(found.y, wanted.y.to(dtype), rtol=0, atol=0)
    agree(found, wanted, 1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["FGR", "gru", "elman", "slstm"])
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_is_never_seen(name: str, backend: str, reverse: bool) -> None:
    cell = CELLS[name]
    inputs, lengths = make(cell, 4, 6, 2, 3, seed=3), torch.tensor([4, 0, 6, 1])
    wanted = run(cell, inputs, lengths=lengths, reverse=reverse, backend=backend)
    padding = torch.arange(6) >= lengths[:, None]
    poisoned = inputs._replace(x=inputs.x.detach().masked_fill(padding[..., None, None, None], math.nan))
    poisoned.x.requires_grad_()
    found = run(cell, poisoned, lengths=lengths, reverse=reverse, backend=backend)
    agree(found, wanted, 0.0)
    assert not found.y[padding].any()
    assert not found.grads[0][padding].any()
    for leaf in cell.leaves:  # a stream without frames keeps its state
        torch.testing.assert_close(getattr(found.state, leaf)[1], getattr(inputs.state, leaf)[1].detach())
    if reverse:  # from each stream's own end
        for b, T in enumerate(lengths.tolist()):
            alone = inputs.x[b : b + 1, :T].flip(1)
            start = CellState(*(None if leaf is None else leaf[b : b + 1] for leaf in inputs.state))
            y = recurrence(cell, alone, state=start, backend=backend, **inputs.parameters).y
            torch.testing.assert_close(found.y[b, :T], y.detach().flip(1)[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CELLS)
def test_any_chunking_equals_the_whole(name: str, backend: str) -> None:
    cell = CELLS[name]
    inputs = make(cell, 2, 7, 2, 3, seed=4)
    wanted = run(cell, inputs, backend=backend)
    state, ys = inputs.state, []
    for chunk in inputs.x.split([1, 0, 4, 2], dim=1):
        y, state = recurrence(cell, chunk, state=state, backend=backend, **inputs.parameters)
        ys.append(y)
    agree(differentiate(torch.cat(ys, dim=1), state, inputs.leaves()), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["peepholes", "gru", "elman", "slstm"])
def test_no_frames_and_no_bias(name: str, backend: str) -> None:
    cell = CELLS[name]
    inputs = make(cell, 2, 0, 2, 3)
    found = run(cell, inputs, backend=backend)
    assert found.y.shape == (2, 0, 2, 3)
    agree(found._replace(grads=[]), Outcome(found.y, inputs.state, []))
    inputs = make(cell, 2, 3, 2, 3)
    inputs.parameters["bias"] = torch.zeros_like(inputs.parameters["bias"]).requires_grad_()
    wanted = run(cell, inputs, backend=backend)
    without = inputs._replace(parameters={k: p for k, p in inputs.parameters.items() if k != "bias"})
    grads = [g for g, name in zip(wanted.grads, ["x", *inputs.parameters], strict=False) if name != "bias"]
    grads += wanted.grads[1 + len(inputs.parameters) :]
    agree(run(cell, without, backend=backend), wanted._replace(grads=grads))


@pytest.mark.parametrize("name", ["FGR", "gru", "slstm"])
def test_strides_do_not_matter(name: str) -> None:
    cell = CELLS[name]
    inputs = make(cell, 3, 4, 2, 4, seed=5)
    turned = {
        k: p.detach().transpose(0, -1).contiguous().transpose(0, -1) for k, p in inputs.parameters.items()
    }
    x = inputs.x.detach().transpose(1, 4).contiguous().transpose(1, 4)
    strided = Inputs(x, turned, inputs.state)
    assert not x.is_contiguous()
    for leaf in (x, *turned.values()):
        leaf.requires_grad_()
    agree(run(cell, strided, backend="cpu"), run(cell, inputs, backend="cpu"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exponential", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slstm_survives_extreme_gates(backend: str, exponential: bool, dtype: torch.dtype) -> None:
    """From zero state and from a given one; gates whose exponentials overflow and vanish, also in turn."""
    cell = Cell("slstm", exponential_forget=exponential)
    for start in (None, make(cell, 9, 6, 1, 2).to(torch.float32).state):
        extremes = torch.tensor([-3e4, 0.0, 3e4])
        x = torch.randn(9, 6, 1, 4, 2, generator=torch.Generator().manual_seed(0))
        x[:, :, 0, 0] = extremes.repeat(3)[:, None, None] * torch.tensor([1, 1, -1, 1, -1, -1.0])[:, None]
        x[:, :, 0, 1] = extremes.repeat_interleave(3)[:, None, None]
        x = x.to(dtype).requires_grad_()
        found = recurrence(cell, x, torch.randn(1, 2, 4, 2).mul_(0.1), state=start, backend=backend)
        assert all(leaf.isfinite().all() for leaf in (found.y, *found.state) if leaf is not None)
        assert found.y.abs().max() <= 1.0 or start is not None  # c / n is a mean of tanh
        found.y.float().sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()


def test_slstm_output_does_not_depend_on_the_stabiliser() -> None:
    """c, n and exp(m) are known up to a common factor."""
    cell = Cell("slstm")
    inputs = make(cell, 2, 5, 1, 3)
    c, n, m = (getattr(inputs.state, leaf) for leaf in ("c", "n", "m"))
    scaled = inputs.state._replace(c=c * math.exp(3), n=n * math.exp(3), m=m - 3)
    wanted = recurrence(cell, inputs.x, state=inputs.state, **inputs.parameters).y
    torch.testing.assert_close(recurrence(cell, inputs.x, state=scaled, **inputs.parameters).y, wanted)


@pytest.mark.parametrize("name", ["FGR", "gru"])
def test_second_derivatives_only_by_the_reference(name: str) -> None:
    cell = CELLS[name]
    inputs = make(cell, 1, 2, 1, 2)
    for backend in BACKENDS:
        y = recurrence(cell, inputs.x, backend=backend, **inputs.parameters).y
        (grad,) = torch.autograd.grad(y.sum(), inputs.x, create_graph=True)
        if backend == "reference":
            grad.sum().backward()
        else:
            with pytest.raises(RuntimeError, match='differentiates twice only with backend="reference"'):
                grad.sum().backward()


@pytest.mark.parametrize("frames", [0, 3])
@pytest.mark.parametrize("streams", [1, 2])
def test_modifying_what_was_returned_harms_nothing(frames: int, streams: int) -> None:
    cell = Cell()
    inputs = make(cell, streams, frames, 1, 2)
    kept = inputs.to(torch.float64)
    found = recurrence(cell, inputs.x, state=inputs.state, **inputs.parameters)
    total = found.y.sum()
    for leaf in (found.y, *found.state):
        if leaf is not None:
            leaf.detach().fill_(7.0)
    grads = torch.autograd.grad(total, inputs.leaves())
    wanted = recurrence(cell, kept.x, state=kept.state, **kept.parameters).y.sum()
    for a, b in zip(grads, torch.autograd.grad(wanted, kept.leaves()), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(inputs.leaves(), kept.leaves(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["lstm", "gru", "slstm"])
def test_gradients_given_are_not_modified(name: str) -> None:
    cell = CELLS[name]
    inputs = make(cell, 2, 3, 1, 2)
    found = recurrence(cell, inputs.x, state=inputs.state, **inputs.parameters)
    outputs = [found.y, *(leaf for leaf in found.state if leaf is not None)]
    grads = [torch.randn_like(output) for output in outputs]
    kept = [grad.clone() for grad in grads]
    torch.autograd.grad(outputs, inputs.leaves(), grads)
    for a, b in zip(grads, kept, strict=True):
        assert torch.equal(a, b)


# -- Errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "rnn"}, "expected kind among lstm, gru, elman, slstm, found 'rnn'"),
        ({"kind": "gru", "peepholes": True}, "peepholes=True is for kind 'lstm', found 'gru'"),
        ({"exponential_forget": True}, "exponential_forget=True is for kind 'slstm', found 'lstm'"),
        ({"coupled": True, "input_gate": False}, "remove neither"),
        ({"input_gate": 1}, "expected input_gate True or False, found 1"),
        (
            {"peepholes": True, "input_gate": False, "forget_gate": False, "output_gate": False},
            "peepholes=True needs a gate",
        ),
    ],
)
def test_cells_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        Cell(**options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "lstm"}, "expected cell as an asr_kernels.Cell, found str"),
        (
            {"x": torch.zeros(2, 3, 1, 3, 4)},
            r"expected x of shape \(B, T, heads, 4, D\) for the gates i, f, z, o",
        ),
        ({"x": torch.zeros(2, 3, 1, 4, 4).long()}, "expected x of a floating dtype, found torch.int64"),
        ({"x": torch.zeros(0, 3, 1, 4, 4)}, "none of them 0 but T, found"),
        (
            {"weight": torch.zeros(1, 4, 4, 5)},
            r"expected weight of shape \(1, 4, 4, 4\), found \(1, 4, 4, 5\)",
        ),
        ({"bias": torch.zeros(4, 4)}, r"expected bias of shape \(1, 4, 4\), found \(4, 4\)"),
        ({"peepholes": None}, r"expected peepholes of shape \(1, 3, 4\) for Cell\(.*found None"),
        (
            {"gate_weight": torch.zeros(1, 3, 4, 3, 4)},
            "expected no gate_weight, as Cell\\('lstm', peepholes=True\\) has none",
        ),
        ({"lengths": torch.tensor([1, 4])}, r"expected lengths within \[0, 3\], found 4 for utterance 1"),
        ({"lengths": torch.tensor([1.0, 2.0])}, "expected lengths of dtype int32 or int64"),
        (
            {"state": (torch.zeros(2, 1, 4),)},
            "expected state as an asr_kernels.CellState or None, found tuple",
        ),
        ({"state": CellState(h=torch.zeros(2, 1, 4))}, "expected a state of h, c, found h"),
        ({"state": CellState(torch.zeros(2, 1, 4), torch.zeros(2, 4))}, "expected state.c of shape"),
        ({"reverse": 1}, "expected reverse True or False, found 1"),
        ({"backend": "cuda"}, "expected a backend among"),
        ({"backend": "triton"}, "expected tensors on a GPU"),
        (
            {"weight": torch.zeros(1, 4, 4, 4, device="meta")},
            "expected weight on cpu, where x is, found meta",
        ),
    ],
)
def test_wrong_inputs(change: dict[str, Any], message: str) -> None:
    given = {
        "cell": Cell(peepholes=True),
        "x": torch.zeros(2, 3, 1, 4, 4),
        "weight": torch.zeros(1, 4, 4, 4),
        "peepholes": torch.zeros(1, 3, 4),
    }
    with pytest.raises(ValueError, match=message) as raised:
        recurrence(**given | change)
    assert "\n" not in str(raised.value)


@torch.no_grad()
@pytest.mark.parametrize("name", CELLS)
def test_a_few_frames_go_by_the_definition(name: str) -> None:
    inputs = make(CELLS[name], 2, 5, 2, 4).to(torch.float32)
    found, definition, fast = (
        run_forward(CELLS[name], inputs, backend) for backend in (None, "reference", "cpu")
    )
    assert torch.equal(found.y, definition.y)
    torch.testing.assert_close(found.y, fast.y)
    with torch.enable_grad():
        assert torch.equal(run_forward(CELLS[name], inputs, None).y, fast.y)


def run_forward(cell: Cell, inputs: Inputs, backend: str | None) -> Any:
    return recurrence(cell, inputs.x, **inputs.parameters, state=inputs.state, backend=backend)
