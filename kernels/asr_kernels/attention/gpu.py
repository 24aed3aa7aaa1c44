"""Gated linear attention by chunks in Triton; the forms are those of cpu.py and chunkwise.py.

Forward: a program per stream, head and block of the state walks over the chunks and leaves the states between
them; then all chunks at once have their scores P (C, C), and then their outputs, q_start S + P v. Backward:
the first kernel walks back with the gradient at the state, the output kernel, turned around, gives the
gradient at v, and the gradients at q, k and the decays come by the states and then by the scores.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from asr_kernels.attention import jit
from asr_kernels.attention.cpu import Gradients
from asr_kernels.attention.reference import Attended

# Frames of a chunk and channels of a block, at most; powers of two, at least 16.
_FRAMES, _CHANNELS = 32, 32


def forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, bonus: Tensor | None
) -> tuple[Attended, Tensor]:
    """The result, and the states (chunks, B H, K, V) before every chunk, which `backward` needs."""
    launch = _Launch(q, v, log_decay, bonus)
    q, k, v, log_decay = (x.contiguous() for x in (q, k, v, log_decay))
    bonus = None if bonus is None else bonus.contiguous()
    states = launch.states()
    states[0] = state.flatten(0, 1)
    launch.pass_on(k, v, log_decay, states, back=False)
    y = torch.empty_like(v)
    launch.read(q, v, log_decay, states, launch.scores(q, k, log_decay, bonus), y, turned=False)
    return Attended(y, states[-1].view(state.shape).clone()), states


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    bonus: Tensor | None,
    states: Tensor,
    grad_y: Tensor,
    grad_state: Tensor,
) -> Gradients:
    """Gradients from those at y and at the last state."""
    launch = _Launch(q, v, log_decay, bonus)
    q, k, v, log_decay, grad_y = (x.contiguous() for x in (q, k, v, log_decay, grad_y))
    bonus = None if bonus is None else bonus.contiguous()
    behind = launch.states()
    behind[-1] = grad_state.flatten(0, 1)
    launch.pass_on(q, grad_y, log_decay, behind, back=True)
    scores = launch.scores(q, k, log_decay, bonus)
    grad_v = torch.empty_like(v)
    launch.read(k, grad_y, log_decay, behind, scores, grad_v, turned=True)
    grad_q, grad_k, grad_decay, grad_bonus = launch.gradients(
        q, k, v, log_decay, bonus, states, behind, scores, grad_y
    )
    return Gradients(grad_q, grad_k, grad_v, grad_decay, behind[0].view(grad_state.shape), grad_bonus)


class _Launch:
    """The kernels on the grids for these sizes."""

    def __init__(self, q: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor | None) -> None:
        (self.B, self.T, self.H, self.K), self.V = q.shape, v.shape[-1]
        self.C = min(_FRAMES, max(16, triton.next_power_of_2(self.T)))
        # How often a chunk can be halved: a number to the kernels, lest the compiler unroll the loop.
        self.chunks, self.levels = triton.cdiv(self.T, self.C), self.C.bit_length() - 1
        self.BK, self.BV = (min(_CHANNELS, max(16, triton.next_power_of_2(n))) for n in (self.K, self.V))
        self._device = q.device
        half = all(x.dtype in (torch.float16, torch.bfloat16) for x in (q, v))
        self._options = {
            "C": self.C,
            "BK": self.BK,
            "BV": self.BV,
            "PER_HEAD": log_decay.ndim == 3,
            "BONUS": bonus is not None,
            "PRECISION": "tf32" if half else "tf32x3",
        }

    def states(self) -> Tensor:
        """Room for the states before every chunk and after the last."""
        return self._empty(self.chunks + 1, self.B * self.H, self.K, self.V)

    def pass_on(self, keys: Tensor, values: Tensor, log_decay: Tensor, states: Tensor, *, back: bool) -> None:
        """Fill the states from the first, or back from the last."""
        if self.T:
            grid = (self.B * self.H, triton.cdiv(self.K, self.BK), triton.cdiv(self.V, self.BV))
            jit._state_kernel[grid](
                keys, values, log_decay, states, self.T, self.chunks, self.H, self.K, self.V,
                BACK=back, num_warps=4, **self._options,
            )  # fmt: skip

    def scores(self, q: Tensor, k: Tensor, log_decay: Tensor, bonus: Tensor | None) -> Tensor:
        """P (chunks, B H, C, C)."""
        scores = self._empty(self.chunks, self.B * self.H, self.C, self.C)
        if self.T:
            jit._score_kernel[self.chunks, self.B * self.H](
                q,
                k,
                log_decay,
                bonus,
                scores,
                self.T,
                self.levels,
                self.H,
                self.K,
                num_warps=4,
                **self._options,
            )
        return scores

    def read(
        self,
        queries: Tensor,
        values: Tensor,
        log_decay: Tensor,
        states: Tensor,
        scores: Tensor,
        out: Tensor,
        *,
        turned: bool,
    ) -> None:
        """Fill `out` (B, T, H, V): what queries see of states and values or, turned, keys of gradients."""
        if self.T:
            grid = (self.chunks, self.B * self.H, triton.cdiv(self.V, self.BV))
            jit._output_kernel[grid](
                queries, values, log_decay, states, scores, out, self.T, self.H, self.K, self.V,
                TURNED=turned, num_warps=4, **self._options,
            )  # fmt: skip

    def gradients(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor,
        bonus: Tensor | None,
        states: Tensor,
        behind: Tensor,
        scores: Tensor,
        grad_y: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """At q, k, log_decay and bonus."""
        # Both kernels add to these; with one decay per head all channels have a part of its gradient.
        shape = self.B, self.T, self.H, self.K
        grads = [self._empty(*shape) for _ in range(3)]
        grad_scores = torch.empty_like(scores)
        grad_bonus = None if bonus is None else self._empty(self.chunks, self.B, self.H, self.K)
        if self.T:
            grid = self.chunks, self.B * self.H, triton.cdiv(self.K, self.BK)
            sizes, options = (self.H, self.K, self.V), self._options | {"num_warps": 4}
            jit._score_gradient_kernel[grid[:2]](v, grad_y, grad_scores, self.T, *sizes, **options)
            jit._carried_kernel[grid](
                q, k, v, log_decay, states, behind, grad_y, *grads, self.T, *sizes, **options
            )  # fmt: skip
            jit._gradient_kernel[grid](
                q, k, log_decay, bonus, scores, grad_scores, *grads, grad_bonus, self.T, self.levels,
                *sizes, **(options | {"num_warps": 8}),
            )  # fmt: skip
        grad_decay = grads[2].sum(dim=-1) if log_decay.ndim == 3 else grads[2]
        weight = None if grad_bonus is None else grad_bonus.sum(dim=(0, 1))
        return grads[0].to(q.dtype), grads[1].to(k.dtype), grad_decay.to(log_decay.dtype), weight

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, device=self._device)
