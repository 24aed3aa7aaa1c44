"""The fused reader against autograd through all the logits in float64, on awkward and hostile inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from asr_kernels.fused import cpu
from asr_kernels.fused.function import FusedScores, joiner_scores
from asr_kernels.fused.reference import joiner_logits
from asr_kernels.nodes import Nodes

# B, T, U, V, D: one frame, no labels, two symbols, a large vocabulary, one activation
SHAPES = [
    (1, 1, 0, 2, 1),
    (1, 1, 4, 5, 3),
    (2, 6, 0, 7, 4),
    (3, 3, 7, 2, 5),
    (5, 9, 5, 33, 17),
    (2, 4, 2, 5001, 3),
    (4, 7, 3, 9, 1),
]


class Case(NamedTuple):
    encoder: Tensor
    predictor: Tensor
    weight: Tensor
    bias: Tensor | None
    symbols: Tensor
    frames: list[int]
    labels: list[int]
    first: Tensor | None
    vocab: int
    activation: str

    @property
    def inputs(self) -> list[Tensor]:
        return [x for x in self[:4] if x is not None]

    def to(self, dtype: torch.dtype) -> Case:
        names = ("encoder", "predictor", "weight", "bias")
        return self._replace(
            **{n: None if getattr(self, n) is None else getattr(self, n).to(dtype) for n in names}
        )

    def valid(self) -> Tensor:
        """(B, T, W), by counting."""
        W = self.grid[2]
        mask = torch.zeros(self.grid[:3], dtype=torch.bool)
        for b, (T_b, U_b) in enumerate(zip(self.frames, self.labels, strict=True)):
            for t in range(T_b):
                for w in range(W):
                    u = w if self.first is None else w + int(self.first[b, t])
                    mask[b, t, w] = u <= U_b
        return mask

    @property
    def grid(self) -> tuple[int, ...]:
        return (*self.encoder.shape[:2], *self.symbols.shape[2:])


def make(
    B: int, T: int, U: int, V: int, D: int, *, K: int = 2, extra: int = 0, band: int = 0, seed: int = 0
) -> Case:
    """Random inputs in float64, uneven lengths, the first full; `extra` columns are beyond the softmax."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    frames, labels = (torch.randint(low, n + 1, (B,), generator=rng) for low, n in ((min(1, T), T), (0, U)))
    frames[0], labels[0] = T, U
    first, W = None, U + 1
    if band:
        W = min(band, U + 1)
        first = torch.randint(0, U + 2 - W, (B, T), generator=rng).sort(dim=1).values
    symbols = torch.randint(0, V + extra, (B, T if band else 1, W, K), generator=rng)
    weight = normal(V + extra, D) * 2 / math.sqrt(D)
    inputs = normal(B, T, D), normal(B, U + 1, D), weight, normal(V + extra)
    return Case(*inputs, symbols, frames.tolist(), labels.tolist(), first, V, "tanh")


def random_grad(case: Case, seed: int = 0) -> Tensor:
    """At the scores of the valid nodes, of any sign, over five orders of magnitude; garbage elsewhere."""
    rng = torch.Generator().manual_seed(seed)
    grad = torch.randn(case.grid, generator=rng, dtype=torch.float64)
    grad *= 10 ** (-5 * torch.rand(case.grid, generator=rng, dtype=torch.float64))
    return grad.masked_fill(~case.valid()[..., None], math.nan)


def definition(case: Case, grad_scores: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Scores and gradients in float64, by autograd through the logits of every node."""
    inputs = [x.double().requires_grad_() for x in case.inputs]
    logits = joiner_logits(*inputs[:3], inputs[3] if case.bias is not None else None, case.activation)
    if case.first is not None:
        u = (case.first[..., None] + torch.arange(case.grid[2])).clamp(max=logits.shape[2] - 1)
        logits = logits.gather(2, u[..., None].expand(*u.shape, logits.shape[3]))
    log_probs = torch.cat((logits[..., : case.vocab].log_softmax(-1), logits[..., case.vocab :]), dim=-1)
    scores = log_probs.gather(-1, case.symbols.expand(case.grid))
    scores = scores.masked_fill(~case.valid()[..., None], 0.0)
    grads = torch.autograd.grad(scores, inputs, grad_scores.nan_to_num(0.0))
    return scores.detach(), list(grads)


def run(case: Case, grad_scores: Tensor, skip_below: float = 0.0) -> tuple[Tensor, list[Tensor]]:
    """Scores and gradients by the fast path, in the dtypes it gives them."""
    inputs = [x.detach().requires_grad_() for x in case.inputs]
    bias = inputs[3] if case.bias is not None else None
    scores = FusedScores.apply(*inputs[:3], bias, *case[4:], skip_below, "cpu", True)
    return scores.detach(), list(torch.autograd.grad(scores, inputs, grad_scores))


def agree(
    found: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]], tolerance: float
) -> None:
    """Scores to a tolerance absolute below 1 and relative above, gradients to a share of their largest."""
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
    for x, y in zip(found[1], expected[1], strict=True):
        assert x.shape == y.shape
        assert x.isfinite().all()
        assert (x.double() - y).abs().max() <= tolerance * y.abs().max()


def check(case: Case, tolerance: float = 1e-5, exact: bool = True) -> None:
    """float32 to the tolerance; float64 to 1e-12 unless not `exact`."""
    grad = random_grad(case)
    single = case.to(torch.float32)
    agree(run(single, grad), definition(single, grad), tolerance)
    if exact:
        agree(run(case, grad), definition(case, grad), 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_definition(shape: tuple[int, ...], activation: str, bias: bool) -> None:
    case = make(*shape)._replace(activation=activation)
    check(case if bias else case._replace(bias=None))


@pytest.mark.parametrize("K", [1, 3, 6])
def test_symbols_of_a_node_may_be_one_column(K: int) -> None:
    check(make(3, 5, 4, 3, 6, K=K))


@pytest.mark.parametrize("extra", [1, 4])
def test_columns_beyond_the_vocabulary_are_raw_logits(extra: int) -> None:
    case = make(3, 5, 4, 6, 7, K=4, extra=extra)
    assert (case.symbols >= case.vocab).any()
    check(case)


@pytest.mark.parametrize("band", [1, 2, 5])
def test_a_band_of_the_lattice(band: int) -> None:
    case = make(4, 8, 6, 11, 5, band=band)._replace(frames=[8, 3, 8, 8], labels=[6, 2, 4, 0])
    assert not case.valid()[2:].all()  # bands reach beyond the labels
    check(case)
    check(make(2, 4, 3, 5, 3, band=2, extra=2))


def test_utterances_of_very_unequal_lengths() -> None:
    case = make(4, 50, 20, 7, 6)
    check(case._replace(frames=[50, 1, 2, 7], labels=[0, 20, 1, 0]))


@pytest.mark.parametrize("frames", [[0, 5, 0], [0, 0, 0]])
def test_utterances_without_frames(frames: list[int]) -> None:
    case = make(3, 5, 2, 4, 3)._replace(frames=frames)
    grad = random_grad(case)
    scores, grads = run(case, grad)
    agree((scores, grads), definition(case, grad), 1e-12)
    assert not scores[0].any()
    assert not grads[0][0].any()


def test_no_frames_at_all() -> None:
    case = make(2, 0, 2, 4, 3)
    for skip_below in (0.0, 1e-3):
        scores, grads = run(case, torch.zeros(case.grid, dtype=torch.float64), skip_below)
        assert scores.shape == case.grid
        assert [x.shape for x in grads] == [x.shape for x in case.inputs]
        assert not any(x.any() for x in grads)


@pytest.mark.parametrize("chunk", [1, 20, 100, 700])
@pytest.mark.parametrize("band", [0, 3])
def test_chunks_of_any_size_give_the_same(chunk: int, band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_CHUNK", chunk)
    monkeypatch.setattr(cpu, "_NODES", 1)
    check(make(4, 9, 5, 12, 7, band=band))


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_precision_is_accumulated_in_float32_and_rounded_once(dtype: torch.dtype, unit: float) -> None:
    case = make(3, 20, 6, 17, 8).to(dtype)
    grad = random_grad(case)
    scores, grads = run(case, grad)
    expected = definition(case, grad)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, expected[0], rtol=1e-5, atol=1e-5)
    for x, y in zip(grads, expected[1], strict=True):
        assert x.dtype == dtype
        assert ((x.double() - y).abs() <= unit * y.abs() + 1e-5 * y.abs().max()).all()


def test_any_strides() -> None:
    case = make(3, 6, 4, 5, 8)
    grad = random_grad(case)
    expected = run(case, grad)
    turned = case._replace(
        encoder=case.encoder.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        predictor=case.predictor.repeat_interleave(2, dim=2)[..., ::2],
        weight=case.weight.t().contiguous().t(),
        bias=case.bias.repeat_interleave(3)[::3],
        symbols=case.symbols.transpose(2, 3).contiguous().transpose(2, 3),
    )
    assert not any(x.is_contiguous() for x in (*turned.inputs, turned.symbols))
    agree(run(turned, grad), expected, 1e-12)
    same_for_all = torch.ones((), dtype=torch.float64).expand(case.grid)
    agree(run(case, same_for_all), definition(case, same_for_all), 1e-12)
    one_for_all = case._replace(encoder=case.encoder[:1, :1].expand(3, 6, 8))
    agree(run(one_for_all, grad), definition(one_for_all, grad), 1e-12)


@pytest.mark.parametrize("filling", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("band", [0, 3])
@pytest.mark.parametrize("skip_below", [0.0, 1e-3])
def test_padding_influences_nothing(filling: float, band: int, skip_below: float) -> None:
    case = make(4, 7, 5, 6, 5, band=band, seed=3)
    grad = random_grad(case)  # NaN in the padding
    expected = run(case, grad.nan_to_num(0.0), skip_below)
    hostile = case._replace(encoder=case.encoder.clone(), predictor=case.predictor.clone())
    for b, (T_b, U_b) in enumerate(zip(case.frames, case.labels, strict=True)):
        hostile.encoder[b, T_b:] = filling
        hostile.predictor[b, U_b + 1 :] = filling
        if case.first is not None:
            case.first[b, T_b:] = 1 << 40
    found = run(hostile, grad, skip_below)
    assert torch.equal(found[0], expected[0])
    assert not found[0][~case.valid()].any()
    for x, y in zip(found[1], expected[1], strict=True):
        assert torch.equal(x, y)
    for b, (T_b, U_b) in enumerate(zip(case.frames, case.labels, strict=True)):
        assert not found[1][0][b, T_b:].any()
        assert not found[1][1][b, U_b + 1 :].any()


@pytest.mark.parametrize("offset", [1e3, -1e3, 1e5])
def test_a_constant_on_all_logits_changes_nothing(offset: float) -> None:
    case = make(3, 6, 4, 9, 5)
    grad = random_grad(case)
    found = run(case._replace(bias=case.bias + offset).to(torch.float32), grad)
    agree(found, definition(case, grad), 4e-7 * abs(offset))


def test_logits_in_the_thousands() -> None:
    """Every node is sure; the logits themselves are only good to 1e-4 in float32."""
    case = make(3, 6, 4, 9, 5)
    case = case._replace(weight=(case.weight * 1000).float().double())
    check(case, tolerance=1e-3)


def test_sure_nodes_keep_their_small_gradients() -> None:
    """Where p rounds to 1, the gradient of the symbol's own column is still right to many digits."""
    case = make(1, 3, 2, 4, 3)._replace(bias=torch.tensor([20.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    case = case._replace(symbols=torch.zeros_like(case.symbols), weight=case.weight / 4)
    grad = torch.full(case.grid, -0.5, dtype=torch.float64)
    assert run(case.to(torch.float32), grad)[0].abs().max() < 1e-6
    found, expected = run(case, grad), definition(case, grad)
    agree(found, expected, 1e-6)
    assert 0 < expected[1][3][0].abs() < 1e-6


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.02, 0.1, 30.0])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_activations_of_any_size(scale: float, activation: str) -> None:
    case = make(3, 6, 4, 9, 5)._replace(activation=activation)
    check(case._replace(encoder=case.encoder * scale, predictor=case.predictor * scale))


def test_labels_of_probability_zero() -> None:
    """A bias of -inf takes a column out: the others do not notice."""
    case = make(2, 5, 3, 6, 4)
    without = case._replace(symbols=case.symbols % 5, weight=case.weight[:5], bias=case.bias[:5], vocab=5)
    bias = torch.cat((case.bias[:5], torch.tensor([-math.inf], dtype=torch.float64)))
    grad = random_grad(case)
    scores, grads = run(case._replace(symbols=case.symbols % 5, bias=bias), grad)
    grads[2:] = [x[:5] for x in grads[2:]]
    agree((scores, grads), definition(without, grad), 1e-12)


def test_nan_stays_in_its_utterance() -> None:
    case = make(2, 4, 2, 5, 3)._replace(frames=[4, 4], labels=[2, 2])
    case.encoder[0, 1, 2] = math.nan
    scores, grads = run(case, random_grad(case))
    assert scores[0, 1].isnan().all()
    assert scores[0, 2].isfinite().all()
    assert scores[1].isfinite().all()
    assert grads[0][0, 1].isnan().all()
    assert grads[0][1].isfinite().all()
    assert grads[1][1].isfinite().all()
    assert grads[2].isnan().any()


def test_nan_gradients_are_not_skipped() -> None:
    case = make(2, 4, 2, 5, 3)._replace(frames=[4, 4], labels=[2, 2])
    grad = random_grad(case)
    grad[0, 1, 1, 0] = math.nan
    for skip_below in (0.0, 1e-2):
        grads = run(case, grad, skip_below)[1]
        assert grads[0][0, 1].isnan().all()
        assert grads[0][1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("skip_below", [1e-4, 1e-2, 0.3])
def test_skipping_drops_small_nodes_and_nothing_else(dtype: torch.dtype, skip_below: float) -> None:
    case = make(4, 12, 6, 8, 5).to(dtype)
    grad = random_grad(case) * torch.tensor([1.0, 1e-8, -1e6, 0.0], dtype=torch.float64)[:, None, None, None]
    size = grad.nan_to_num(0.0).abs().sum(-1)
    kept = size > skip_below * size.amax((1, 2), keepdim=True)
    assert kept.sum((1, 2))[:3].all()
    assert (kept.sum((1, 2)) < case.valid().sum((1, 2))).all()
    found = run(case, grad, skip_below)
    assert torch.equal(found[0], run(case, grad)[0])
    only_kept = torch.where(kept[..., None], grad, 0.0)
    agree(found, definition(case, only_kept), 1e-12 if dtype == torch.float64 else 1e-5)
    for x, y in zip(found[1], run(case, only_kept)[1], strict=True):
        assert torch.equal(x, y)


def test_what_is_skipped_is_not_computed() -> None:
    """Nodes without gradient are not visited: poison that only they read does not show."""
    case = make(1, 6, 4, 5, 3)
    case.encoder[0, 2] = math.nan
    grad = random_grad(case).nan_to_num(0.0)
    grad[0, 2] *= 1e-9
    assert all(x.isfinite().all() for x in run(case, grad, 1e-3)[1])
    grad[0, 2] = 0.0
    assert all(x.isfinite().all() for x in run(case, grad)[1])


@pytest.mark.parametrize("band", [0, 3])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_every_backend_gives_the_same_scores(backend: str, band: int) -> None:
    case = make(4, 7, 5, 6, 5, K=3, extra=2, band=band)
    for b, (T_b, U_b) in enumerate(zip(case.frames, case.labels, strict=True)):
        case.encoder[b, T_b:] = math.nan
        case.predictor[b, U_b + 1 :] = math.nan
    inputs = [x.requires_grad_() for x in case.inputs]
    nodes = Nodes(case.frames, case.labels, case.grid[2], case.first)
    scores = joiner_scores(*inputs, case.symbols, nodes, case.vocab, "tanh", 0.0, backend)
    grad = random_grad(case).nan_to_num(0.0)
    agree((scores.detach(), list(torch.autograd.grad(scores, inputs, grad))), run(case, grad), 1e-12)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)])
def test_only_what_is_needed_is_computed(wanted: tuple[int, ...]) -> None:
    case = make(3, 5, 4, 6, 5)
    grad = random_grad(case)
    reading = cpu.read(*case)
    needs = [i in wanted for i in range(4)]
    found = cpu.spread(*case[:5], reading, grad, *case[5:], skip_below=0.0, needs=needs)
    assert [x is not None for x in found] == needs
    expected = run(case, grad)[1]
    for i in wanted:
        torch.testing.assert_close(found[i], expected[i])


def test_without_gradient_nothing_is_kept() -> None:
    case = make(2, 3, 2, 4, 3)
    with torch.no_grad():
        scores = FusedScores.apply(*case, 0.0, "cpu", torch.is_grad_enabled())
    assert scores.grad_fn is None
    torch.testing.assert_close(scores, run(case, random_grad(case))[0])


def test_second_derivative_raises() -> None:
    case = make(2, 3, 2, 4, 3)
    inputs = [x.requires_grad_() for x in case.inputs]
    scores = FusedScores.apply(*case, 0.0, "cpu", True)
    grads = torch.autograd.grad(scores.square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        grads[0].sum().backward()


def test_every_output_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate_nan(*args: object, **kwargs: object) -> Tensor:
            result = allocate(*args, **kwargs)
            return result.fill_(math.nan) if result.is_floating_point() else result

        return allocate_nan

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(Tensor, name, poisoned(getattr(Tensor, name)))
    check(make(4, 7, 5, 6, 5))
    check(make(3, 6, 5, 4, 5, K=3, extra=2, band=3))


class _LargestResult(TorchDispatchMode):
    """Elements of the largest floating tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, Tensor) and x.is_floating_point():
                self.elements = max(self.elements, x.numel())
        return result


@pytest.mark.parametrize("vocab", [20, 400])
def test_holds_only_chunks(vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_CHUNK", 4000)
    monkeypatch.setattr(cpu, "_NODES", 1)
    case = make(3, 40, 30, vocab, 8)
    grad = random_grad(case)
    with _LargestResult() as largest:
        reading = cpu.read(*case)
        cpu.spread(*case[:5], reading, grad, *case[5:], skip_below=0.0)
    nodes = 3 * 40 * 31
    assert largest.elements <= max(4000, 2 * nodes) < nodes * vocab / 3
