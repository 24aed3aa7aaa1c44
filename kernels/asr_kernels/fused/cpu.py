"""Scores of symbols from the joiner's inputs, fast: the logits exist for one cache-sized chunk at a time.

The joiner is logits = activation(encoder_t + predictor_u) W^T + bias (reference.py). A chunk is a list of
nodes (t, u), gathered by index, so that the same code serves the whole lattice, a pruned band of it, many
short utterances at once, and the few nodes that are live in a sparse backward. Written in torch operations,
the matrix products and softmaxes into buffers made once.

Forward, per chunk: the activations h, the logits z, their log-softmax in place, the symbols' columns of it.
(In the cache, a softmax with its maximum costs no more than exp, sum and subtraction without.)

Backward, per chunk of live nodes: h and z again and, with p the softmax, g_k the gradient at the score of
symbol k, gamma = -sum_k g_k (the node's occupation), and columns beyond the vocabulary outside the softmax::

    dz_v = gamma p_v + sum over k with symbol_k = v of g_k
    dW += dz^T h    dbias += sum over nodes of dz    d(encoder_t + predictor_u) = (dz W) activation'

The symbols' columns of dz are formed in float64, because their difference cancels where the model is sure.
A node is live if sum_k |g_k| is more than `skip_below` of the largest in its utterance, or what float32 can
hold of it. Each frame, and each label, has a total occupation of one, so what is skipped is small beside what
its sums already hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from asr_kernels.nodes import Nodes
from asr_kernels.rnnt.cpu import symbol_gradient

# Elements of a chunk, of its logits or its activations: 2 MB of float32 stays in the caches, and the matrix
# products are long enough for their full speed.
_CHUNK = 1 << 19
# But at least as many nodes: with fewer, the products wait for the weight more than they compute.
_NODES = 128
# Of an utterance's nodes, those with this share of the largest gradient are left out in any case: nine orders
# under the rounding of the sums that they would be added to (for float64: none).
_ROUNDING = {torch.float32: 1e-16, torch.float64: 0.0}
# What is smaller is zero: the denormal numbers would make arithmetic several times slower.
_TINY = {torch.float32: 1e-36, torch.float64: 1e-300}


class Reading(NamedTuple):
    """What the forward pass keeps, V times smaller than the logits."""

    scores: Tensor
    """(B, T, W, K) float64: log-probabilities, or raw logits of columns outside the softmax; 0 outside."""


class Gradients(NamedTuple):
    """As the inputs, in their dtypes; None where not asked for."""

    encoder: Tensor | None
    predictor: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


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
    batch = _Batch(encoder, predictor, symbols, first)
    joiner = _Joiner(encoder, predictor, weight, bias, activation)
    scores = torch.zeros(batch.shape, dtype=torch.float64, device=encoder.device)
    for chunk in batch.chunks(batch.valid(frames, labels), joiner.chunk):
        logits = joiner.logits(joiner.hidden(chunk))
        torch.log_softmax(logits[:, :vocab], -1, out=logits[:, :vocab])
        scores.view(-1, scores.shape[-1])[chunk.nodes] = logits.gather(-1, chunk.symbols).double()
    return Reading(scores)


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
    """The gradients that are in `needs`, from that at the scores, float64; arguments as for `read`."""
    batch = _Batch(encoder, predictor, symbols, first)
    joiner = _Joiner(encoder, predictor, weight, bias, activation)
    wanted = zip((joiner.encoder, joiner.predictor, joiner.weight, joiner.bias), needs, strict=True)
    sums = [torch.zeros_like(x) if need and x is not None else None for x, need in wanted]
    d_encoder, d_predictor, d_weight, d_bias = sums
    live = live_nodes(grad_scores, batch.valid(frames, labels), skip_below, joiner.dtype)
    own, gamma = symbol_gradient(symbols, reading.scores, grad_scores, vocab)
    own, gamma = own.flatten(0, 2).to(joiner.dtype), gamma.flatten().to(joiner.dtype)
    for chunk in batch.chunks(live, joiner.chunk):
        hidden = joiner.hidden(chunk)
        logits = joiner.logits(hidden)
        torch.softmax(logits[:, :vocab], -1, out=logits[:, :vocab]).mul_(gamma[chunk.nodes, None])
        logits[:, vocab:] = 0.0
        grad = logits.scatter_(-1, chunk.symbols, own[chunk.nodes])
        if d_weight is not None:
            d_weight.addmm_(grad.t(), hidden)
        if d_bias is not None:
            d_bias += grad.sum(0)
        if d_encoder is None and d_predictor is None:
            continue
        d_sum = joiner.backward(grad, hidden)
        if d_encoder is not None:
            d_encoder.index_add_(0, chunk.encoder, d_sum)
        if d_predictor is not None:
            d_predictor.index_add_(0, chunk.predictor, d_sum)
    given = encoder, predictor, weight, bias
    pairs = zip(sums, given, strict=True)
    return Gradients(*(None if x is None or y is None else x.to(y.dtype).view(y.shape) for x, y in pairs))


def live_nodes(grad_scores: Tensor, valid: Tensor, skip_below: float, dtype: torch.dtype) -> Tensor:
    """Which nodes (B, T, W) have a gradient that counts in sums of `dtype`; NaN counts."""
    total = torch.where(valid, grad_scores.abs().sum(-1), 0.0)
    if total.numel() == 0:
        return valid
    largest = total.amax((1, 2), keepdim=True)
    return valid & ~(total <= (max(skip_below, _ROUNDING[dtype]) * largest).clamp_(min=_TINY[dtype]))


class _Chunk(NamedTuple):
    """Some nodes: their places in (B, T, W) and the rows of what they read."""

    nodes: Tensor
    encoder: Tensor
    predictor: Tensor
    symbols: Tensor  # (n, K) the symbols themselves


class _Batch:
    """The nodes (B, T, W) of a batch, numbered in this order."""

    def __init__(self, encoder: Tensor, predictor: Tensor, symbols: Tensor, first: Tensor | None) -> None:
        self.shape = (*encoder.shape[:2], *symbols.shape[2:])
        self.width = predictor.shape[1]
        self.symbols = symbols.reshape(-1, symbols.shape[-1])
        self.per_frame = symbols.shape[1] > 1
        self.first = first

    def valid(self, frames: list[int], labels: list[int]) -> Tensor:
        """(B, T, W) bool: within the lengths."""
        _, T, W, _ = self.shape
        return Nodes(frames, labels, W, self.first).valid(T, self.symbols.device)

    def chunks(self, chosen: Tensor, size: int) -> Iterator[_Chunk]:
        """The nodes chosen by the mask (B, T, W), up to `size` at a time."""
        _, T, W, _ = self.shape
        everything = chosen.flatten().nonzero().squeeze(-1)
        for start in range(0, len(everything), size):
            nodes = everything[start : start + size]
            encoder = nodes // W
            b, w = encoder // T, nodes % W
            u = w if self.first is None else w + self.first.flatten()[encoder]
            symbols = self.symbols[nodes if self.per_frame else b * W + w]
            yield _Chunk(nodes, encoder, b * self.width + u, symbols)


class _Joiner:
    """The joiner for a chunk at a time, in buffers that the next chunk overwrites."""

    def __init__(
        self, encoder: Tensor, predictor: Tensor, weight: Tensor, bias: Tensor | None, activation: str
    ) -> None:
        given = [x.dtype for x in (encoder, predictor, weight, bias) if x is not None]
        self.dtype = reduce(torch.promote_types, given, torch.float32)
        V, D = weight.shape
        self.encoder, self.predictor = (x.to(self.dtype).reshape(-1, D) for x in (encoder, predictor))
        self.weight = weight.to(self.dtype)
        self.bias = None if bias is None else bias.to(self.dtype)
        self.tanh = activation == "tanh"
        # tanh x = 2 sigmoid(2 x) - 1 takes a quarter of the time, wherever MKL's tanh is not at home. Its
        # error is up to 1e-7 of 1: not for sums that are small throughout.
        self._by_sigmoid = self.tanh and self.dtype == torch.float32 and not _small(encoder, predictor)
        if self._by_sigmoid:
            self.encoder, self.predictor = 2.0 * self.encoder, 2.0 * self.predictor
            self._minus_one = self.weight.new_tensor(-1.0)
        self.chunk = max(_NODES, _CHUNK // max(V, D))
        rows = min(self.chunk, self.encoder.shape[0] * predictor.shape[1])
        self._hidden, self._other = (self.weight.new_empty(rows, D) for _ in range(2))
        self._logits = self.weight.new_empty(rows, V)

    def hidden(self, chunk: _Chunk) -> Tensor:
        """Activations (n, D)."""
        n = len(chunk.nodes)
        torch.index_select(self.encoder, 0, chunk.encoder, out=self._hidden[:n])
        torch.index_select(self.predictor, 0, chunk.predictor, out=self._other[:n])
        total = self._hidden[:n].add_(self._other[:n])
        if self._by_sigmoid:
            return torch.add(self._minus_one, total.sigmoid_(), alpha=2.0, out=total)
        return total.tanh_() if self.tanh else total.relu_()

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (n, V)."""
        out = self._logits[: len(hidden)]
        if self.bias is None:
            return torch.mm(hidden, self.weight.t(), out=out)
        return torch.addmm(self.bias, hidden, self.weight.t(), out=out)

    def backward(self, grad: Tensor, hidden: Tensor) -> Tensor:
        """Gradient (n, D) at what the activation is of, from that at the logits (n, V). Ruins `hidden`."""
        out = torch.mm(grad, self.weight, out=self._other[: len(grad)])
        # tanh' = 1 - tanh^2; relu is positive where its derivative is 1
        return out.addcmul_(out, hidden.square_(), value=-1.0) if self.tanh else out.mul_(hidden.sign_())


def _small(*inputs: Tensor) -> bool:
    """Whether no sum of theirs exceeds 0.05."""
    return sum(float(x.abs().amax()) for x in inputs if x.numel() > 0) < 0.05
