"""The Triton kernels of the losses against enumeration and the float64 CPU path; test_triton.py runs this.

In Triton's interpreter (TRITON_INTERPRET=1 before triton is imported) on a CPU, or, where there is a GPU, on
it: `pytest tests/kernels/triton_checks.py`. In the interpreter float32 comes out to the same tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import test_fused_reader as fused_cases
import torch
from cases import TOPOLOGIES, expected, make, uneven
from cases import run as run_op
from torch import Tensor
from triton_support import DEVICE, HALF, poisoned

from asr_kernels import align, ctc_loss, rnnt_loss
from asr_kernels.ctc import gpu as ctc_gpu
from asr_kernels.fused import fused_rnnt_loss
from asr_kernels.fused import gpu as fused_gpu
from asr_kernels.fused.function import FusedScores
from asr_kernels.lattice import cpu as lattice_cpu
from asr_kernels.lattice import gpu as lattice_gpu
from asr_kernels.lattice.arcs import Graph
from asr_kernels.nodes import Nodes
from asr_kernels.rnnt import cpu as rnnt_cpu
from asr_kernels.rnnt import gpu as rnnt_gpu

# The interpreter reports numpy's warnings about the infinities and NaNs that the kernels handle.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

__all__ = ["poisoned"]  # a fixture of every test here

LOG_ZERO = -1e30
MOVES = {
    "rnnt": ((1, 0), (0, 1)),
    "monotonic": ((1, 0), (1, 1)),
    "ctc": ((1, 0), (1, 1), (1, 2)),
    "multi-blank": ((1, 0), (0, 1), (2, 0), (4, 0)),
    "tdt": ((1, 0), (3, 0), (0, 1), (1, 1), (3, 1)),
}


# -- The lattice -------------------------------------------------------------------------------------------


class Lattices:
    """Random lattices: scores (M, B, T, S) in float64, and their dimensions."""

    def __init__(self, name: str, B: int, T: int, S: int, seed: int = 0, scale: float = 2.0) -> None:
        rng = torch.Generator().manual_seed(seed)
        moves = MOVES[name]
        self.frames = torch.randint(1, T + 1, (B,), generator=rng).tolist()
        self.states = torch.randint(1, S + 1, (B,), generator=rng).tolist()
        self.frames[0], self.states[0] = T, S
        self.finals = 2 if name == "ctc" else 1
        self.moves = moves
        self.arcs = -scale * torch.rand(len(moves), B, T, S, generator=rng, dtype=torch.float64)
        # A tenth of the moves does not exist; the scores are those of float32.
        self.arcs[torch.rand(self.arcs.shape, generator=rng) < 0.1] = LOG_ZERO
        self.arcs = self.arcs.float().double()
        self.outside = torch.zeros(B, T, S, dtype=torch.bool)
        for b, (T_b, S_b) in enumerate(zip(self.frames, self.states, strict=True)):
            self.outside[b, T_b:] = True
            self.outside[b, :, S_b:] = True

    @property
    def graph(self) -> Graph:
        return Graph(self.moves, self.frames, self.states, self.finals)

    def expected(self, what: str) -> tuple[Tensor, Tensor]:
        """By the CPU path, which needs the moves outside to be marked."""
        arcs = self.arcs.masked_fill(self.outside, LOG_ZERO)
        for b, (T_b, S_b) in enumerate(zip(self.frames, self.states, strict=True)):
            for m, (dt, ds) in enumerate(self.moves):
                arcs[m, b, max(0, T_b - dt + 1) :] = LOG_ZERO
                arcs[m, b, :, max(0, S_b - ds) :] = LOG_ZERO
        by_cpu = {"forward_backward": lattice_cpu.log_forward_backward, "best_path": lattice_cpu.best_path}
        total, occupation = by_cpu[what](arcs.numpy(), self.graph)
        return torch.from_numpy(total), torch.from_numpy(occupation)

    def found(self, what: str) -> tuple[Tensor, Tensor]:
        """By the kernels, in float32, with NaN outside."""
        arcs = self.arcs.masked_fill(self.outside, math.nan).float().to(DEVICE)
        total, occupation = getattr(lattice_gpu, what)(arcs, self.graph)
        assert total.dtype == occupation.dtype == torch.float32
        return total.cpu().double(), occupation.cpu().double()

    def check(self, tolerance: float = 1e-5) -> None:
        total, occupation = self.found("forward_backward")
        wanted = self.expected("forward_backward")
        torch.testing.assert_close(total, wanted[0], rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(occupation, wanted[1], rtol=tolerance, atol=tolerance)
        arcs = self.arcs.masked_fill(self.outside, math.nan).float().to(DEVICE)
        assert torch.equal(lattice_gpu.log_total(arcs, self.graph).cpu().double(), total)
        for one, other in zip(self.found("best_path"), self.expected("best_path"), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 3), (2, 5, 1), (4, 6, 5)])
def test_lattices_equal_the_cpu_path(name: str, shape: tuple[int, int, int]) -> None:
    Lattices(name, *shape).check()


@pytest.mark.parametrize("name", ["rnnt", "ctc"])
def test_states_beyond_one_block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lattice_gpu, "_STATES", 32)
    lattices = Lattices(name, 2, 3, 40)
    lattices.check()


@pytest.mark.parametrize("name", ["rnnt", "ctc"])
def test_scores_in_the_thousands_keep_their_precision(name: str) -> None:
    """Paths of -1e4 and more, among others that are a thousand better until their last steps."""
    lattices = Lattices(name, 2, 12, 7, scale=2000.0)
    lattices.arcs = (lattices.arcs.clamp(min=-4000) * 1024).round() / 1024
    lattices.check()
    assert (lattices.expected("forward_backward")[0].abs() > 1000).all()


def test_without_a_path_nothing_is_occupied() -> None:
    lattices = Lattices("rnnt", 3, 4, 3)
    lattices.arcs[0, 0, 2] = LOG_ZERO
    lattices.arcs[0, 1] = -math.inf
    lattices.frames[2] = 0
    for what in ("forward_backward", "best_path"):
        total, occupation = lattices.found(what)
        assert total.tolist() == [-math.inf] * 3
        assert not occupation.any()


def test_no_frames_at_all() -> None:
    arcs = torch.zeros(2, 2, 0, 3, device=DEVICE)
    for what in (lattice_gpu.forward_backward, lattice_gpu.best_path):
        total, occupation = what(arcs, Graph(MOVES["rnnt"], [0, 0], [3, 1], 1))
        assert total.tolist() == [-math.inf] * 2
        assert occupation.shape == arcs.shape


@pytest.mark.parametrize("name", ["rnnt", "ctc", "tdt"])
def test_nan_stays_in_its_lattice(name: str) -> None:
    lattices = Lattices(name, 2, 4, 3)
    lattices.frames, lattices.states, lattices.outside[:] = [4, 4], [3, 3], False
    lattices.arcs[:] = -1.0
    lattices.arcs[0, 0, 1, 0] = math.nan
    for what in ("forward_backward", "best_path"):
        total, occupation = lattices.found(what)
        assert total.isnan().tolist() == [True, False]
        assert occupation[:, 0].isnan().all()
        assert occupation[:, 1].isfinite().all()


# -- The reader of logits ----------------------------------------------------------------------------------


class Logits:
    """Random logits in float64, exact in float16, and symbols of their nodes."""

    def __init__(
        self, B: int, T: int, W: int, V: int, K: int = 2, extra: int = 0, band: bool = False, seed: int = 0
    ) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.logits = (3 * torch.randn(B, T, W, V + extra, generator=rng)).half().double()
        frames, labels = (torch.randint(0, n, (B,), generator=rng).tolist() for n in (T + 1, W))
        frames[0], labels[0] = T, W - 1
        first = torch.randint(0, 3, (B, T), generator=rng) if band else None
        self.nodes = Nodes(frames, labels, W, None if first is None else first.to(DEVICE))
        self.symbols = torch.randint(0, V + extra, (B, T if band else 1, W, K), generator=rng)
        self.symbols[..., 0] = self.symbols[..., -1] = self.symbols[..., 0] % V  # two symbols, one column
        self.vocab = V
        self.valid = self.nodes.valid(T, torch.device(DEVICE)).cpu()
        self.grad = torch.randn(B, T, W, K, generator=rng)
        self.grad[0, :1, 0] = 0.0  # nodes without occupation

    def check(
        self,
        dtype: torch.dtype = torch.float32,
        tolerance: float = 2e-6,
        strided: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        nodes = self.nodes._replace(first=None if self.nodes.first is None else self.nodes.first.cpu())
        exact = self.grad.masked_fill(~self.valid[..., None], 0.0).double()
        reading = rnnt_cpu.read(self.logits, self.symbols, nodes, self.vocab)
        wanted = rnnt_cpu.spread(self.logits, self.symbols, reading, exact, nodes, self.vocab)
        logits = strided(self.logits.masked_fill(~self.valid[..., None], math.nan).to(DEVICE, dtype))
        grad = self.grad.masked_fill(~self.valid[..., None], math.nan).to(DEVICE)
        symbols = self.symbols.to(DEVICE)
        found = rnnt_gpu.read(logits, symbols, self.nodes, self.vocab)
        assert found.scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(found.scores.cpu().double(), reading.scores, rtol=1e-6, atol=2e-6)
        spread = rnnt_gpu.spread(logits, symbols, found, grad, self.nodes, self.vocab)
        assert spread.dtype == dtype
        assert spread.is_contiguous()
        torch.testing.assert_close(spread.cpu().double(), wanted, rtol=tolerance, atol=2e-6)
        assert not spread.cpu()[~self.valid].any()


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 3, 4, 1), (3, 6, 5, 33), (1, 2, 3, 5001), (2, 0, 3, 4)])
@pytest.mark.parametrize("band", [False, True])
def test_logits_are_read_and_spread(shape: tuple[int, int, int, int], band: bool) -> None:
    Logits(*shape, band=band).check()


@pytest.mark.parametrize("K", [3, 7])
def test_columns_beyond_the_vocabulary_are_raw(K: int) -> None:
    Logits(2, 4, 3, 6, K=K, extra=5).check()


@pytest.mark.parametrize(("dtype", "unit"), [(x, torch.finfo(x).eps) for x in (*HALF, torch.float64)])
def test_other_dtypes_are_rounded_once(dtype: torch.dtype, unit: float) -> None:
    case = Logits(2, 5, 4, 40, extra=1)
    if dtype == torch.bfloat16:
        case.logits = case.logits.bfloat16().double()
    case.check(dtype, tolerance=max(unit, 1e-6))


def test_logits_of_any_strides() -> None:
    case = Logits(3, 4, 5, 21, band=True)
    case.check(strided=lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0))
    case.check(strided=lambda x: x.repeat_interleave(2, -1)[..., ::2])
    case.logits[:] = case.logits[:1, :1]
    case.valid[:] = True
    case.nodes = Nodes([4, 4, 4], [4, 4, 4], 5)
    case.check(strided=lambda x: x[:1, :1].expand(3, 4, 5, 21))


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_a_constant_changes_nothing(offset: float) -> None:
    case = Logits(2, 3, 4, 9)
    case.logits = (case.logits * 64).round() / 64
    read = [
        rnnt_gpu.read((case.logits + x).float().to(DEVICE), case.symbols.to(DEVICE), case.nodes, 9).scores
        for x in (0.0, offset)
    ]
    torch.testing.assert_close(*read, rtol=0, atol=2e-3)


def test_impossible_and_hostile_logits() -> None:
    case = Logits(3, 3, 3, 6)
    case.nodes = Nodes([3, 3, 3], [2, 2, 2], 3)
    case.symbols[:] = torch.tensor([0, 1])
    case.logits[0, ..., 1] = -math.inf
    case.logits[1, 1, 1, 4] = math.nan
    case.logits[2, 2, 0, 5] = math.inf
    scores = rnnt_gpu.read(
        case.logits.float().to(DEVICE), case.symbols.to(DEVICE), case.nodes, 6
    ).scores.cpu()
    assert (scores[0, ..., 1] == -math.inf).all()
    assert scores[0, ..., 0].isfinite().all()
    assert scores[1, 1, 1].isnan().all()
    assert scores[2, 2, 0].isnan().all()
    assert scores.isnan().sum() == 4


# -- The reader of the joiner's inputs ---------------------------------------------------------------------


def run_fused(case: fused_cases.Case, grad: Tensor, skip_below: float = 0.0) -> tuple[Tensor, list[Tensor]]:
    """Scores and gradients by the kernels."""
    inputs = [x.detach().to(DEVICE).requires_grad_() for x in case.inputs]
    bias = inputs[3] if case.bias is not None else None
    first = None if case.first is None else case.first.to(DEVICE)
    options = case.symbols.to(DEVICE), case.frames, case.labels, first, case.vocab, case.activation
    scores = FusedScores.apply(*inputs[:3], bias, *options, skip_below, "triton", True)
    assert scores.dtype == torch.float32
    grads = torch.autograd.grad(scores, inputs, grad.float().to(DEVICE))
    assert [x.dtype for x in grads] == [x.dtype for x in inputs]
    return scores.detach().cpu(), [x.cpu() for x in grads]


def check_fused(case: fused_cases.Case, tolerance: float = 1e-5) -> None:
    grad = fused_cases.random_grad(case)  # NaN outside the lengths
    case = case.to(torch.float32)
    scores, grads = run_fused(case, grad)
    fused_cases.agree((scores.double(), grads), fused_cases.definition(case, grad), tolerance)
    assert not scores[~case.valid()].any()


@pytest.mark.parametrize("shape", fused_cases.SHAPES)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_joiner_is_read_and_spread(shape: tuple[int, ...], activation: str) -> None:
    check_fused(fused_cases.make(*shape)._replace(activation=activation))


def test_several_blocks_of_everything() -> None:
    """More nodes than two tiles for one of the two programs, more columns and more inputs than a block."""
    check_fused(fused_cases.make(3, 17, 11, 200, 100)._replace(bias=None))


@pytest.mark.parametrize("band", [0, 3])
def test_chunks_give_the_same(band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_gpu, "_CHUNK", 1)
    check_fused(fused_cases.make(5, 16, 9, 12, 7, band=band))


@pytest.mark.parametrize("K", [1, 3, 6])
def test_bands_shared_columns_and_raw_columns(K: int) -> None:
    check_fused(fused_cases.make(4, 8, 6, 5, 6, K=K, extra=K - 1, band=3))


def test_joiners_of_any_strides() -> None:
    case = fused_cases.make(3, 6, 4, 5, 8, band=3).to(torch.float32)
    grad = fused_cases.random_grad(case)
    turned = case._replace(
        encoder=case.encoder.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        predictor=case.predictor.repeat_interleave(2, dim=2)[..., ::2],
        weight=case.weight.t().contiguous().t(),
        bias=case.bias.repeat_interleave(3)[::3],
        symbols=case.symbols.transpose(2, 3).contiguous().transpose(2, 3),
        first=case.first.t().contiguous().t(),
    )
    assert not any(x.is_contiguous() for x in (*turned.inputs, turned.symbols, turned.first))
    (scores, grads), wanted = run_fused(turned, grad), run_fused(case, grad)
    assert torch.equal(scores, wanted[0])
    for one, other in zip(grads, wanted[1], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("frames", [[0, 5, 0], [0, 0, 0]])
def test_utterances_without_frames(frames: list[int]) -> None:
    case = fused_cases.make(3, 5, 2, 4, 3)._replace(frames=frames).to(torch.float32)
    grad = fused_cases.random_grad(case)
    scores, grads = run_fused(case, grad)
    fused_cases.agree((scores.double(), grads), fused_cases.definition(case, grad), 1e-5)


@pytest.mark.parametrize("filling", [math.nan, 1e30])
@pytest.mark.parametrize("band", [0, 3])
def test_padding_influences_nothing(filling: float, band: int) -> None:
    case = fused_cases.make(4, 7, 5, 6, 5, band=band, seed=3).to(torch.float32)
    grad = fused_cases.random_grad(case)
    expected_scores, expected_grads = run_fused(case, grad.nan_to_num(0.0))
    for b, (T_b, U_b) in enumerate(zip(case.frames, case.labels, strict=True)):
        case.encoder[b, T_b:] = filling
        case.predictor[b, U_b + 1 :] = filling
        if case.first is not None:
            case.first[b, T_b:] = 1 << 40
    scores, grads = run_fused(case, grad)
    assert torch.equal(scores, expected_scores)
    for one, other in zip(grads, expected_grads, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision(dtype: torch.dtype) -> None:
    case = fused_cases.make(3, 20, 6, 17, 24).to(dtype)
    grad = fused_cases.random_grad(case)
    unit = torch.finfo(dtype).eps
    scores, grads = run_fused(case, grad)
    fused_cases.agree((scores.double(), grads), fused_cases.definition(case, grad), 4 * unit)


def test_nan_stays_in_its_utterance_and_its_row() -> None:
    case = fused_cases.make(2, 4, 2, 5, 3)._replace(frames=[4, 4], labels=[2, 2], activation="relu")
    case = case.to(torch.float32)
    case.encoder[0, 1, 2] = math.nan
    scores, grads = run_fused(case, fused_cases.random_grad(case))
    assert scores[0, 1].isnan().all()
    assert scores[0, 2].isfinite().all()
    assert scores[1].isfinite().all()
    assert grads[0][0, 1].isnan().all()
    assert grads[0][1].isfinite().all()
    assert grads[1][1].isfinite().all()
    assert grads[2].isnan().any()


@pytest.mark.parametrize("skip_below", [1e-4, 0.3])
def test_skipping_drops_small_nodes_and_nothing_else(skip_below: float) -> None:
    case = fused_cases.make(4, 12, 6, 8, 5).to(torch.float32)
    grad = fused_cases.random_grad(case)
    grad *= torch.tensor([1.0, 1e-8, -1e6, 0.0], dtype=torch.float64)[:, None, None, None]
    size = grad.float().nan_to_num(0.0).abs().sum(-1)
    kept = size > skip_below * size.amax((1, 2), keepdim=True)
    found = run_fused(case, grad, skip_below)
    only_kept = torch.where(kept[..., None], grad, 0.0)
    fused_cases.agree((found[0].double(), found[1]), fused_cases.definition(case, only_kept), 1e-5)
    for one, other in zip(found[1], run_fused(case, only_kept)[1], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("wanted", [(0,), (2,), (1, 3)])
def test_only_what_is_needed_is_computed(wanted: tuple[int, ...]) -> None:
    case = fused_cases.make(3, 5, 4, 6, 5).to(torch.float32)
    grad = fused_cases.random_grad(case)
    here = [x.to(DEVICE) for x in case[:5]]
    reading = fused_gpu.read(*here, *case[5:])
    needs = [i in wanted for i in range(4)]
    grads = fused_gpu.spread(*here, reading, grad.to(DEVICE), *case[5:], skip_below=0.0, needs=needs)
    assert [x is not None for x in grads] == needs
    for i, x in zip(wanted, [grads[i] for i in wanted], strict=True):
        torch.testing.assert_close(x.cpu(), run_fused(case, grad)[1][i])


def test_double_precision_is_refused_with_the_way_out() -> None:
    case = fused_cases.make(1, 2, 1, 3, 2)
    with pytest.raises(ValueError, match='backend="cpu" takes it'):
        run_fused(case, fused_cases.random_grad(case))


def test_repeats_exactly() -> None:
    case = fused_cases.make(3, 12, 7, 40, 20).to(torch.float32)
    grad = fused_cases.random_grad(case)
    runs = [run_fused(case, grad) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    for one, other in zip(runs[0][1], runs[1][1], strict=True):
        assert torch.equal(one, other)


def test_tanh_and_its_slope_are_good_everywhere() -> None:
    """The activation, read off a joiner of one input and two columns: z = (tanh x, 0), vocabulary of one."""
    x = torch.cat((torch.logspace(-6, 1.5, 60), torch.tensor([0.2499, 0.2501, 40.0, 1e30, math.inf])))
    x = torch.cat((x, -x))[None, :, None]
    weight, predictor = torch.tensor([[1.0], [0.0]]), torch.zeros(1, 1, 1)
    symbols = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    # Column 1 is the vocabulary, column 0 lies behind it: its score is the raw logit.
    options = [x.shape[1]], [0], None, 1, "tanh"
    here = [y.to(DEVICE) for y in (x, predictor, weight.flip(0), torch.zeros(2), symbols + 1)]
    reading = fused_gpu.read(*here, *options)
    # 3xTF32 on a GPU: as good as float32
    torch.testing.assert_close(reading.scores.cpu()[0, :, 0], x[0].double().tanh().float(), rtol=1e-6, atol=0)
    ones = torch.ones_like(reading.scores)
    grads = fused_gpu.spread(*here, reading, ones, *options, skip_below=0.0)
    slope = 1 - x[0].double().tanh() ** 2
    torch.testing.assert_close(grads.encoder.cpu()[0].double(), slope, rtol=1e-5, atol=3e-7)


# -- The losses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["rnnt", "monotonic", "ctc", "tdt-3-0-1", "multi-blank"])
@pytest.mark.parametrize("criterion", ["sum", "max"])
def test_losses_equal_the_sum_over_all_paths(topology: str, criterion: str) -> None:
    """Reader and lattice together, by enumeration; lengths too short for a path among them."""
    kind, rules = TOPOLOGIES[topology]
    case = uneven(4, 4, 3, 5, kind.extra_columns, seed=1)
    options = {"fastemit": 0.01, "delay_penalty": 0.05, "criterion": criterion}
    wanted = expected(case, rules, options=lambda b: options)
    found = run_op(
        lambda x: rnnt_loss(x.to(DEVICE), *case[1:], topology=kind, backend="triton", **options).cpu(),
        [case.logits],
        torch.float32,
    )
    torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.grads[0], wanted.grads[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("topology", ["rnnt", "ctc", "tdt"])
def test_alignments_equal_those_of_the_cpu(topology: str) -> None:
    kind, _ = TOPOLOGIES[topology]
    case = uneven(3, 7, 4, 5, kind.extra_columns, seed=2)
    found = align(case.logits.float().to(DEVICE), *case[1:], topology=kind, backend="triton")
    wanted = align(case.logits.float(), *case[1:], topology=kind, backend="cpu")
    assert torch.equal(found.frames.cpu(), wanted.frames)
    assert torch.equal(found.end_frames.cpu(), wanted.end_frames)
    torch.testing.assert_close(found.score.cpu(), wanted.score)


@pytest.mark.parametrize("topology", ["rnnt", "tdt"])
def test_the_fused_loss_equals_the_definition(topology: str) -> None:
    kind, _ = TOPOLOGIES[topology]
    case = fused_cases.make(3, 6, 4, 7 + kind.extra_columns, 5)
    targets = torch.randint(1, 7, (3, 4), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([6, 5, 6]), torch.tensor([4, 2, 0])

    def loss(backend: str, device: str) -> Callable[..., Tensor]:
        options = {"topology": kind, "backend": backend, "skip_below": 0.0}
        return lambda *x: fused_rnnt_loss(*(y.to(device) for y in x), targets, *lengths, **options).cpu()

    wanted = run_op(loss("reference", "cpu"), case.inputs)
    found = run_op(loss("triton", DEVICE), case.inputs, torch.float32)
    torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-5, atol=1e-5)
    for one, other in zip(found.grads, wanted.grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# -- CTC ---------------------------------------------------------------------------------------------------

CTC_LENGTHS = [(9, 4), (5, 4), (7, 0), (3, 4), (0, 1), (1, 1), (9, 2)]


def ctc_case(seed: int = 0) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits (B, T, V) with NaN beyond the frames, and the other arguments; labels often repeat."""
    case = make(CTC_LENGTHS, 3, seed=seed)
    logits = case.logits[:, :, 0].clone()
    for b, (T, _) in enumerate(CTC_LENGTHS):
        logits[b, T:] = math.nan
    return logits, case[1:]


def ctc_by(backend: str, labels: tuple[Tensor, ...], **options: object) -> Callable[[Tensor], Tensor]:
    device = DEVICE if backend == "triton" else "cpu"
    return lambda x: ctc_loss(x.to(device), *labels, backend=backend, **options).cpu()


@pytest.mark.parametrize("states", [32, 1024])
@pytest.mark.parametrize("columns", [2, 128])
def test_ctc_equals_the_definition(states: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctc_gpu, "_STATES", states)
    monkeypatch.setattr(ctc_gpu, "_COLUMNS", columns)
    logits, labels = ctc_case()
    wanted = run_op(ctc_by("reference", labels), [logits])
    assert wanted.losses.isinf().sum() >= 2
    found = run_op(ctc_by("triton", labels), [logits], torch.float32)
    torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.grads[0], wanted.grads[0], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(ctc_by("triton", labels)(logits.float()).double(), found.losses)


def test_ctc_of_more_states_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctc_gpu, "_STATES", 32)
    case = make([(60, 40), (41, 40), (50, 16)], 4, seed=3)
    logits = case.logits[:, :, 0].clone()
    wanted = run_op(ctc_by("cpu", case[1:]), [logits])
    found = run_op(ctc_by("triton", case[1:]), [logits], torch.float32)
    torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.grads[0], wanted.grads[0], rtol=1e-4, atol=1e-5)


def test_ctc_without_labels_in_the_batch() -> None:
    logits = torch.randn(2, 5, 3, dtype=torch.float64)
    labels = torch.zeros(2, 0, dtype=torch.int64), torch.tensor([5, 2]), torch.tensor([0, 0])
    wanted = run_op(ctc_by("reference", labels), [logits])
    found = run_op(ctc_by("triton", labels), [logits], torch.float32)
    torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.grads[0], wanted.grads[0], rtol=1e-4, atol=1e-5)


def test_ctc_keeps_nan_and_impossible_symbols_where_they_are() -> None:
    logits, labels = ctc_case(1)
    logits[0, 2, 0] = math.nan
    logits[1, 1, 1:] = -math.inf
    wanted = run_op(ctc_by("reference", labels), [logits])
    found = run_op(ctc_by("triton", labels), [logits], torch.float32)
    assert found.losses.isnan().tolist() == [True] + [False] * 6
    torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(found.grads[0][1:], wanted.grads[0][1:], rtol=1e-4, atol=1e-5)
    assert found.grads[0][0, :9].isnan().any()
