"""The transducer and CTC losses and their peers on a GPU, for `tools/gpu_check`; gpu.py measures.

A step goes from the outputs of encoder and predictor (or from logits) to all gradients, in bfloat16. Floors
are the joiner's matrix products and what passes through memory, by the formulas below.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import ctc
import fused
import pruned
import rnnt
import torch
from gpu import (
    BANDWIDTH,
    FLOPS,
    Contestant,
    Group,
    Problem,
    Remark,
    Row,
    Shape,
    compared,
    exact,
    half,
    rows_of,
    step,
)
from measure import plain_rnnt_loss
from tiled import tiled_rnnt_loss
from torch import Tensor

from asr_kernels import fused_rnnt_loss, rnnt_loss
from asr_kernels.dispatch import choose
from asr_kernels.fused.function import joiner_scores
from asr_kernels.fused.op import SKIP_BELOW
from asr_kernels.lattice.arcs import Lattice
from asr_kernels.lattice.op import lattice_loss_and_occupation
from asr_kernels.lattice.topology import RNNT
from asr_kernels.nodes import Nodes

SHAPES: tuple[Shape, ...] = ((16, 400, 60, 500, 512), (32, 400, 60, 1024, 512), (16, 1000, 120, 1024, 512))
WIDE: Shape = (16, 400, 60, 4000, 512)
SMOKE: Shape = (2, 12, 4, 20, 16)
CHECKED: Shape = (3, 9, 4, 24, 16)
TILES = (1 << 23, 1 << 25, 1 << 27)


def rows(smoke: bool) -> list[Row]:
    """The most telling ones first."""
    shapes = (SMOKE,) if smoke else SHAPES
    sizes = {"fused": shapes, "pruned": shapes, "logits": shapes[:2], "ctc": shapes[:2]}
    # The memory must not grow with V.
    wide = SMOKE if smoke else WIDE
    return rows_of(GROUPS, sizes) + [Row("fused", wide, name) for name in ("fused, dense", "tiled")]


# -- Contestants -------------------------------------------------------------------------------------------


def joiner_then(loss: Callable[[rnnt.Problem], Tensor], problem: fused.Problem) -> Tensor:
    return loss(rnnt.Problem(fused.logits(problem), *problem[4:]))


def torchaudio_loss(problem: rnnt.Problem) -> Tensor:
    """In float32: it takes no bfloat16."""
    on_device = (x.to(problem.logits.device, torch.int32) for x in problem[1:])
    return rnnt.torchaudio_loss(rnnt.Problem(problem.logits.float(), *on_device))


def plain_loss(problem: rnnt.Problem) -> Tensor:
    """In float32: 1e-2 is all that bfloat16 would leave of its sums."""
    on_device = (x.to(problem.logits.device) for x in problem[1:])
    return plain_rnnt_loss(problem.logits.float(), *on_device)


def tiled(problem: fused.Problem, elements: int = TILES[1]) -> Tensor:
    return tiled_rnnt_loss(*problem, elements=elements, backend=choose(None, problem.encoder))


def torch_ctc(problem: ctc.Problem) -> Tensor:
    """In float32: it takes no bfloat16."""
    targets = problem.targets.to(problem.logits.device)
    return ctc.torch_loss(problem._replace(logits=problem.logits.float(), targets=targets))


# -- Floors, in seconds ------------------------------------------------------------------------------------


def product(nodes: int, shape: Shape) -> float:
    """Of one of the joiner's matrix products."""
    return 2 * nodes * shape[3] * shape[4] / FLOPS


def nodes(shape: Shape) -> int:
    B, T, U = shape[:3]
    return B * T * (U + 1)


def fused_floor(shape: Shape, occupied: float = 1.0) -> float:
    """One product forward; three backward, for the occupied share of the nodes."""
    return (1 + 3 * occupied) * product(nodes(shape), shape)


def unfused_floor(shape: Shape, visited: int | None = None) -> float:
    """Three products; logits and activations pass through memory six times each, two bytes an element."""
    count = nodes(shape) if visited is None else visited
    return 3 * product(count, shape) + 6 * 2 * count * (shape[3] + shape[4]) / BANDWIDTH


def pruned_floor(shape: Shape) -> float:
    """The unfused one on S nodes a frame, and the linear layer on the encoder's frames with its output."""
    B, T, _, V, _ = shape
    return unfused_floor(shape, B * T * pruned.S) + 3 * product(B * T, shape) + 6 * 2 * B * T * V / BANDWIDTH


def logits_floor(shape: Shape) -> float:
    """Read twice, and the gradient written."""
    return 3 * 2 * nodes(shape) * shape[3] / BANDWIDTH


def ctc_floor(shape: Shape) -> float:
    """Likewise."""
    return 3 * 2 * shape[0] * shape[1] * shape[3] / BANDWIDTH


# -- Problems ----------------------------------------------------------------------------------------------


def make(group: str, shape: Shape, kind: str, device: str) -> Problem:
    """Inputs on the device; targets and lengths on the CPU."""
    B, T, U, V, _ = shape
    dtype = half(device)
    if group == "fused":
        problem = fused.half_trained(*shape) if kind == "half trained" else fused.untrained(*shape)
        inputs = (x.detach().to(device, dtype).requires_grad_() for x in problem.inputs)
        return fused.Problem(*inputs, *problem[4:])
    if group == "pruned":
        return pruned.make(*shape).cast(dtype, device)
    torch.manual_seed(0)
    problem, size = (rnnt.Problem, (B, T, U + 1, V)) if group == "logits" else (ctc.Problem, (B, T, V))
    logits = torch.randn(size, device=device, dtype=dtype, requires_grad=True)
    return problem(logits, torch.randint(1, V, (B, U)), torch.full((B,), T), torch.full((B,), U))


def check(group: str, name: str, device: str) -> float:
    """On uneven lengths; see Group.check."""
    problem = make(group, CHECKED, "", device)
    lengths = torch.tensor([9, 7, 5]), torch.tensor([4, 3, 1])
    problem = problem._replace(logit_lengths=lengths[0], target_lengths=lengths[1])
    wide = exact(problem)
    loss = partial(GROUPS[group].contestants[name].loss, problem)
    if group == "pruned":
        # Bounds are a choice: both within those of the contestant.
        entry = pruned.ours if name == "pruned" else pruned.plain
        ranges = entry(problem).ranges
        loss, expected = (
            lambda: entry(problem, ranges).total,
            lambda: pruned.plain(wide, ranges.cpu()).total,
        )
    elif group == "ctc":
        expected = partial(ctc.torch_loss, wide)
    else:
        definition = fused_rnnt_loss if group == "fused" else rnnt_loss
        expected = partial(definition, *wide, reduction="sum", backend="reference")
    return compared(step(loss, problem), step(expected, wide), half(device))


# -- What skipping leaves out ------------------------------------------------------------------------------


def remark_on_skipping(problem: fused.Problem, shape: Shape) -> Remark:
    share = occupied(problem)
    note = f"{share:.1%} of the nodes, gradient off by {skipped(problem):.0e}"
    return Remark(fused_floor(shape, share), note)


def occupied(problem: fused.Problem) -> float:
    """Share of the nodes that the skipping backward visits."""
    lattice = Lattice(problem.targets, problem.logit_lengths.tolist(), problem.target_lengths.tolist())
    device = problem.encoder.device
    symbols = RNNT.symbols(problem.targets, 0, len(problem.weight)).to(device)[:, None]
    backend = choose(None, problem.encoder)
    band = Nodes(lattice.frames, lattice.labels, problem.predictor.shape[1])
    with torch.no_grad():
        inputs = (*problem.inputs, symbols, band, len(problem.weight), "tanh", 0.0, backend)
        total = lattice_loss_and_occupation(joiner_scores(*inputs), lattice, backend)[1].sum(-1)
    return float((total > SKIP_BELOW * total.amax((1, 2), keepdim=True)).double().mean())


def skipped(problem: fused.Problem) -> float:
    """Error of its gradient beside the dense one, all gradients together."""
    grads = [step(partial(fused.ours, problem, x), problem)[1] for x in (SKIP_BELOW, 0.0)]
    return fused.error(*([x.double() for x in each] for each in grads))


# -- Groups ------------------------------------------------------------------------------------------------

FUSED = {
    "fused, dense": Contestant(fused.ours, fused_floor, ours=True),
    "fused, skipping": Contestant(
        partial(fused.ours, skip_below=SKIP_BELOW),
        fused_floor,
        ours=True,
        problem="half trained",
        remark=remark_on_skipping,
    ),
    "tiled": Contestant(
        tiled,
        fused_floor,
        variants={f"tiles of {n >> 20} M logits": partial(tiled, elements=n) for n in TILES},
    ),
    "joiner + torchaudio": Contestant(partial(joiner_then, torchaudio_loss), unfused_floor),
    "joiner + plain PyTorch": Contestant(partial(joiner_then, plain_loss), unfused_floor),
    "joiner + rnnt_loss": Contestant(partial(joiner_then, rnnt.ours), unfused_floor, ours=True),
}
PRUNED = {
    "pruned": Contestant(lambda problem: pruned.ours(problem).total, pruned_floor, ours=True),
    "plain PyTorch": Contestant(lambda problem: pruned.plain(problem).total, pruned_floor),
}
LOGITS = {
    "rnnt_loss": Contestant(rnnt.ours, logits_floor, ours=True),
    "torchaudio": Contestant(torchaudio_loss, logits_floor),
    "plain PyTorch": Contestant(plain_loss, logits_floor),
}
CTC = {
    "ctc_loss": Contestant(ctc.ours, ctc_floor, ours=True),
    "torch ctc_loss": Contestant(torch_ctc, ctc_floor),
}
GROUPS = {
    name: Group(
        dimensions="B, T, U, V, D",
        contestants=contestants,
        make=partial(make, name),
        check=partial(check, name),
        comparable=name != "pruned",  # whose bounds differ
    )
    for name, contestants in (("fused", FUSED), ("pruned", PRUNED), ("logits", LOGITS), ("ctc", CTC))
}
