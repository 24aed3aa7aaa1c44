"""Scores of symbols from the joiner's inputs, in Triton: the logits never leave the chip in the forward pass.

The equations are those of cpu.py. Nodes (t, u) are visited by a list of those that count, so the same code
serves the whole lattice, a pruned band of it and the few nodes that are live in a sparse backward.

The kernels are in jit.py; here is how they work together.

Forward, one kernel: a program takes a tile of nodes, writes their activations h to scratch memory of its own,
and multiplies them with one block of the vocabulary after another. The logits of a block stay in registers,
where they give the symbols' columns, the largest logit so far and the sum of exp relative to it (Milakov and
Gimelshein 2018, "Online normalizer calculation for softmax"). One program per multiprocessor takes tile
after tile, so the scratch is as large as the chip, not as the batch, and stays in its L2 cache.
(Computing the activations anew for every block needs no scratch, but more time in tanh than in the product.)

Backward, chunks of live nodes of a size that stays in the L2 cache too: h anew, z = h W^T, in place
dz_v = gamma exp(z_v - N) + sum over k with symbol_k = v of g_k, then dW += dz^T h, dh = dz W, and the sums
of dh activation' over the nodes of each frame and of each label. The three products are cuBLAS's. Sums over
nodes run in a fixed order in float32, each by one program, chunk after chunk: results repeat exactly.

float32, bfloat16 and float16; float64 has cpu.py. Products take the common dtype of the inputs and
accumulate in float32; float32 products are full float32 in the backward (unless PyTorch is told otherwise)
and 3xTF32, which is as good, in the forward. The logits of the backward are rounded to that dtype, but not
those of the symbols: they come from the forward, where they matter to the difference of p and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from asr_kernels.fused import jit
from asr_kernels.fused.cpu import Gradients, live_nodes
from asr_kernels.nodes import Nodes

# Elements of a chunk in the backward, logits and activations together: 16 MB of bfloat16.
_CHUNK = 1 << 23


class Reading(NamedTuple):
    """What the forward pass keeps, V times smaller than the logits."""

    scores: Tensor
    """(B, T, W, K) float32: log-probabilities, or raw logits of columns outside the softmax; 0 outside."""
    log_norm: Tensor
    """(B, T, W) float32: log sum_v exp(logit); 0 outside."""


def read(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    symbols: Tensor,
    frames: list[int],
    labels: list[int],
    first: Tensor | None,
    vocab: int,
    activation: str,
) -> Reading:
    """Scores of `symbols` (B, 1 or T, W, K) by encoder (B, T, D), predictor (B, U+1, D), weight (V, D).

    `first` (B, T) is the u of the first of the W nodes of each frame, None for 0; `bias` is (V,). The softmax
    is over the first `vocab` columns.
    """
    joiner = _Joiner(encoder, predictor, weight, bias, activation)
    T, W, K = encoder.shape[1], *symbols.shape[2:]
    V, D = weight.shape
    scores = torch.zeros((*encoder.shape[:2], W, K), dtype=torch.float32, device=encoder.device)
    log_norm = scores.new_zeros(scores.shape[:3])
    nodes = _listed(Nodes(frames, labels, W, first).valid(T, encoder.device))
    if len(nodes) > 0:
        # In Triton's interpreter two programs take turns.
        processors, capability = 2, (8, 0)
        if encoder.is_cuda:
            processors = torch.cuda.get_device_properties(encoder.device).multi_processor_count
            capability = torch.cuda.get_device_capability(encoder.device)
        tile = tile_of(joiner.dtype, capability)
        programs = min(triton.cdiv(len(nodes), tile.rows), processors)
        scratch = joiner.weight.new_empty((programs, tile.rows, triton.cdiv(D, tile.inner) * tile.inner))
        jit.read_kernel[(programs,)](
            joiner.encoder, joiner.predictor, joiner.weight, joiner.bias, symbols.contiguous(),
            None if first is None else first.contiguous(), nodes, scratch, scores, log_norm,
            len(nodes), T, W, predictor.shape[1], D, V, vocab,
            K=K, PER_FRAME=symbols.shape[1] > 1, TANH=joiner.tanh, PRECISION=tile.precision,
            ROWS=tile.rows, COLUMNS=tile.columns, INNER=tile.inner,
            num_warps=8, num_stages=3,
        )  # fmt: skip
    return Reading(scores, log_norm)


def spread(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    symbols: Tensor,
    reading: Reading,
    grad_scores: Tensor,
    frames: list[int],
    labels: list[int],
    first: Tensor | None,
    vocab: int,
    activation: str,
    *,
    skip_below: float,
    needs: Sequence[bool] = (True, True, True, True),
) -> Gradients:
    """The gradients that are in `needs`, from that at the scores; arguments as for `read`."""
    joiner = _Joiner(encoder, predictor, weight, bias, activation)
    T, W, K = encoder.shape[1], *symbols.shape[2:]
    V, D = weight.shape
    grad_scores = grad_scores.float().contiguous()
    symbols = symbols.contiguous()
    valid = Nodes(frames, labels, W, first).valid(T, encoder.device)
    live = _Live.of(live_nodes(grad_scores, valid, skip_below, torch.float32), first, predictor.shape[1])
    given = encoder, predictor, weight, bias
    sums = [
        None if x is None or not need else torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for x, need in zip(given, needs, strict=True)
    ]
    d_encoder, d_predictor, d_weight, d_bias = sums
    size = _chunk_size(V + D)
    sides = []
    if d_encoder is not None:
        segments = _Segments.of(live.encoder, size, in_order=True)
        sides.append(_Side(d_encoder, segments, joiner.encoder, joiner.predictor, live.predictor))
    if d_predictor is not None:
        segments = _Segments.of(live.predictor, size, in_order=False)
        sides.append(_Side(d_predictor, segments, joiner.predictor, joiner.encoder, live.encoder))
    rooms = [joiner.weight.new_empty(min(size, len(live.nodes)), n) for n in (D, V)]
    for number, start in enumerate(range(0, len(live.nodes), size)):
        nodes = live.nodes[start : start + size]
        hidden, logits = (room[: len(nodes)] for room in rooms)
        joiner.hidden(live, start, hidden)
        torch.mm(hidden, joiner.weight.t(), out=logits)
        jit.logit_gradient_kernel[(triton.cdiv(len(nodes), 4), triton.cdiv(V, 256))](
            logits, joiner.bias, symbols, nodes, reading.scores, reading.log_norm, grad_scores,
            len(nodes), T, W, V, vocab,
            K=K, PER_FRAME=symbols.shape[1] > 1, ROWS=4, COLUMNS=256, num_warps=4,
        )  # fmt: skip
        if d_weight is not None:
            _add_product(d_weight, logits.t(), hidden)
        if d_bias is not None:
            d_bias += logits.sum(0, dtype=torch.float32)
        if sides:
            torch.mm(logits, joiner.weight, out=hidden)  # now its gradient
        for side in sides:
            side.add_up(hidden, start, number, joiner.tanh)
    return Gradients(
        *(None if x is None or y is None else x.to(y.dtype) for x, y in zip(sums, given, strict=True))
    )


class _Tile(NamedTuple):
    """How the forward kernel is cut: nodes, columns, and elements of their products at a time."""

    rows: int
    columns: int
    inner: int
    precision: str = "tf32"  # of float32 alone


def tile_of(dtype: torch.dtype, capability: tuple[int, int]) -> _Tile:
    """The largest blocks that neither spill registers nor exceed the shared memory: see README.md."""
    if dtype == torch.float32:
        return _Tile(64, 128, 32, precision="tf32x3")
    return _Tile(128, 256, 64) if capability[0] in (9, 10) else _Tile(128, 128, 64)


def _chunk_size(elements: int) -> int:
    """Nodes of a chunk of that many elements each; many, so that pieces of tensors stay aligned."""
    return max(128, _CHUNK // elements // 128 * 128)


def _listed(chosen: Tensor) -> Tensor:
    """The places in (B, T, W), in order, where the mask is true; in 32 bits if they suffice."""
    places = chosen.flatten().nonzero().squeeze(-1)
    return places.int() if chosen.numel() < 1 << 31 else places


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a b, for float32 `out`, without rounding to the dtype of a and b in between."""
    if a.dtype == torch.float32:
        out.addmm_(a, b)
    elif a.is_cuda:
        out += torch.mm(a, b, out_dtype=torch.float32)
    else:  # in Triton's interpreter
        out.addmm_(a.float(), b.float())


class _Live(NamedTuple):
    """The nodes that have a gradient: their places in (B, T, W), and the rows of what they read."""

    nodes: Tensor
    encoder: Tensor
    predictor: Tensor

    @staticmethod
    def of(chosen: Tensor, first: Tensor | None, width: int) -> _Live:
        """Those chosen by the mask (B, T, W); `width` is the predictor's U+1."""
        _, T, W = chosen.shape
        nodes = _listed(chosen)
        encoder = nodes // W
        u = nodes - encoder * W
        if first is not None:
            u += first.flatten()[encoder]
        return _Live(nodes, encoder, encoder // T * width + u)


class _Segments(NamedTuple):
    """The live nodes of each chunk, sorted by a row that they read; runs of one row are segments."""

    order: Tensor  # (n,) the live nodes, by chunk, row and place
    starts: Tensor  # (segments + 1,) in `order`
    rows: Tensor  # (segments,)
    chunks: list[int]  # (chunks + 1,) in `rows`

    @staticmethod
    def of(rows: Tensor, size: int, in_order: bool) -> _Segments:
        """Segments of equal numbers in `rows`, which belong to the live nodes in chunks of `size`."""
        order = torch.arange(len(rows), dtype=rows.dtype, device=rows.device)
        count = rows.max().long() + 1 if len(rows) > 0 else 1
        keys = torch.arange(len(rows), device=rows.device).div_(size, rounding_mode="floor")
        keys *= count
        keys += rows
        if not in_order:
            keys, sorted_order = torch.sort(keys, stable=True)
            order = sorted_order.to(rows.dtype)
            del sorted_order
        keys, lengths = torch.unique_consecutive(keys, return_counts=True)
        starts = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
        bounds = torch.arange(triton.cdiv(len(rows), size) + 1, device=rows.device)
        return _Segments(order, starts, keys % count, torch.searchsorted(keys // count, bounds).tolist())


class _Joiner:
    """The joiner's inputs, contiguous and in the dtype of the products."""

    def __init__(
        self, encoder: Tensor, predictor: Tensor, weight: Tensor, bias: Tensor | None, activation: str
    ) -> None:
        self.dtype = reduce(torch.promote_types, (encoder.dtype, predictor.dtype, weight.dtype))
        if self.dtype == torch.float64:
            raise ValueError(
                "expected float32, bfloat16 or float16 for the Triton kernels, found torch.float64: "
                'backend="cpu" takes it, on any device'
            )
        D = weight.shape[1]
        self.encoder, self.predictor = (x.reshape(-1, D).contiguous() for x in (encoder, predictor))
        self.weight = weight.to(self.dtype).contiguous()
        self.bias = None if bias is None else bias.contiguous()
        self.tanh = activation == "tanh"

    def hidden(self, live: _Live, start: int, out: Tensor) -> None:
        """Activations (n, D) of the n live nodes from `start` on."""
        n, D = out.shape
        jit.hidden_kernel[(triton.cdiv(n, 16), triton.cdiv(D, 128))](
            self.encoder, self.predictor, live.encoder, live.predictor, out, start, n, D,
            TANH=self.tanh, ROWS=16, COLUMNS=128, num_warps=4,
        )  # fmt: skip


class _Side(NamedTuple):
    """The encoder or the predictor: where the gradients of its rows add up."""

    grad: Tensor  # like the input, float32
    segments: _Segments  # by its rows
    own: Tensor  # (rows, D) itself
    other: Tensor  # (rows, D) the other input
    others: Tensor  # (n,) the row of that for each live node

    def add_up(self, d_hidden: Tensor, start: int, number: int, tanh: bool) -> None:
        """grad += what comes from the `number`-th chunk, which begins with the live node `start`."""
        low, high = self.segments.chunks[number : number + 2]
        D = d_hidden.shape[1]
        jit.sum_kernel[(high - low, triton.cdiv(D, 64))](
            d_hidden, self.own, self.other, self.segments.order, self.segments.starts, self.segments.rows,
            self.others, self.grad, low, start, D,
            TANH=tanh, NODES=32, COLUMNS=64, num_warps=4,
        )  # fmt: skip
