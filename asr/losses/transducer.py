"""Transducer losses: minus the log-probability of the transcript, over the alignments of a topology.

`full` stores the joiner's output over the whole lattice, `fused` computes the same loss and gradients without
storing it, and `pruned` (Kuang et al. 2022) only looks at the label positions that a linear joiner thinks
probable, and trains that joiner along.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from asr.config import Config
from asr.losses.topology import TopologyConfig
from asr_kernels import (
    MONOTONIC,
    RNNT,
    fused_pruned_rnnt_loss,
    fused_rnnt_loss,
    pruning_bounds,
    rnnt_loss,
    simple_rnnt_loss,
)


class PrunedLossConfig(Config):
    """The pruned loss and the linear joiner that guides it."""

    range: int = Field(5, ge=2)
    """Label positions kept per frame."""
    am_scale: float = Field(0.0, ge=0, le=1)
    """Share of the encoder alone in the linear joiner's scores."""
    lm_scale: float = Field(0.25, ge=0, le=1)
    """Share of the predictor alone in the linear joiner's scores."""
    simple_weight: float = Field(0.5, ge=0)
    """Weight of the linear joiner's loss after the warm-up; the pruned loss has 1."""
    warmup_steps: int = Field(200, ge=0)
    """Optimiser steps over which the simple loss goes from 1 to its weight, the pruned one from 0.1 to 1."""
    backend: Literal["own", "k2"] = "own"
    """Whose kernels and bounds: this toolkit's, or those of k2, which has to be installed."""

    @model_validator(mode="after")
    def _scales(self) -> PrunedLossConfig:
        if self.am_scale + self.lm_scale > 1:
            raise ValueError(f"am_scale and lm_scale sum to {self.am_scale + self.lm_scale}: at most 1")
        return self

    def weights(self, step: int | None) -> tuple[float, float]:
        """Weights of the simple and of the pruned loss at an optimiser step; None is after the warm-up."""
        done = 1.0 if step is None or step >= self.warmup_steps else step / self.warmup_steps
        return 1.0 + done * (self.simple_weight - 1.0), 0.1 + 0.9 * done


class TransducerLossConfig(Config):
    """The transducer's training criterion."""

    weight: float = Field(1.0, ge=0)
    """Its share in the total loss; 0 trains without it."""
    after_steps: int = Field(0, ge=0)
    """Optimiser steps that train the CTC head alone before: predictor and joiner stay as they were drawn, so
    that a greedy transducer search on dev has about 100 % errors until then. Warm-ups count from there."""
    kind: Literal["full", "fused", "pruned"] = "fused"
    """full stores the joiner's output, fused and pruned do not; pruned is an approximation."""
    topology: TopologyConfig = TopologyConfig()
    criterion: Literal["sum", "max"] = "sum"
    """Sum over all alignments, or the best one (Viterbi)."""
    max_after_steps: int = Field(0, ge=0)
    """Optimiser steps with the sum before: the best path of an untrained network teaches nothing."""
    fastemit: float = Field(0.0, ge=0)
    """FastEmit's lambda (Yu et al. 2021): label gradients times 1 + lambda, for earlier emission."""
    delay_penalty: float = Field(0.0, ge=0)
    """Reward of early labels per frame (Kang et al. 2023), as k2 defines it."""
    skip_below: float = Field(1e-8, ge=0, lt=1)
    """fused and pruned: nodes less probable than this share of their utterance's largest give no gradient."""
    pruned: PrunedLossConfig = PrunedLossConfig()

    @property
    def probability(self) -> TransducerLossConfig:
        """The same topology's loss that is minus the log-probability of labels, the lattice not stored."""
        return self.model_copy(
            update={"kind": "fused", "criterion": "sum", "fastemit": 0.0, "delay_penalty": 0.0}
        )

    def own_step(self, step: int | None) -> int | None:
        """Optimiser steps with this loss before `step`; negative while CTC is alone. None stays None."""
        return None if step is None else step - self.after_steps

    def criterion_at(self, step: int | None) -> Literal["sum", "max"]:
        """The criterion of an optimiser step; None is after the warm-up."""
        return "sum" if step is not None and step < self.max_after_steps else self.criterion

    @model_validator(mode="after")
    def _what_k2_knows(self) -> TransducerLossConfig:
        known = self.topology.name in ("rnnt", "monotonic") and self.criterion == "sum" and not self.fastemit
        if self.kind == "pruned" and self.pruned.backend == "k2" and not known:
            raise ValueError(
                "pruned.backend k2 takes topology rnnt or monotonic, criterion sum and fastemit 0, found "
                f"{self.topology.name}, {self.criterion}, {self.fastemit:g}: set pruned.backend to own"
            )
        return self


class JoinerInputs(NamedTuple):
    """What the joiner combines: logits = activation(encoder + predictor) @ weight.T + bias."""

    encoder: Tensor
    """(B, T, J) projected frames."""
    predictor: Tensor
    """(B, U + 1, J) projected predictor outputs."""
    weight: Tensor
    """(V, J)"""
    bias: Tensor
    """(V,)"""
    activation: Literal["tanh", "relu"]

    def logits(self) -> Tensor:
        """(B, T, U + 1, V)"""
        total = self.encoder[:, :, None] + self.predictor[:, None]
        hidden = torch.tanh(total) if self.activation == "tanh" else torch.relu(total)
        return functional.linear(hidden, self.weight, self.bias)

    def one_dtype(self) -> JoinerInputs:
        """The layer in the dtype of what comes in, as autocast would have it."""
        dtype = self.encoder.dtype
        return self._replace(
            predictor=self.predictor.to(dtype), weight=self.weight.to(dtype), bias=self.bias.to(dtype)
        )


class Transcripts(NamedTuple):
    """The other arguments of every transducer loss."""

    targets: Tensor
    """(B, U)"""
    lengths: Tensor
    """(B,) encoder frames."""
    target_lengths: Tensor
    """(B,)"""
    blank: int


def transducer_loss(
    config: TransducerLossConfig, joiner: JoinerInputs, to: Transcripts, step: int | None
) -> Tensor:
    """(B,) losses over the whole lattice; infinite where no alignment exists, with zero gradient.

    `step` is the optimiser step, for the warm-up; None is after it.
    """
    topology, criterion = config.topology.build(), config.criterion_at(step)
    if config.kind == "fused":
        return fused_rnnt_loss(
            *joiner.one_dtype()[:4],
            to.targets,
            to.lengths,
            to.target_lengths,
            to.blank,
            activation=joiner.activation,
            skip_below=config.skip_below,
            topology=topology,
            criterion=criterion,
            fastemit=config.fastemit,
            delay_penalty=config.delay_penalty,
        )
    return rnnt_loss(
        joiner.logits(),
        *to,
        topology=topology,
        criterion=criterion,
        fastemit=config.fastemit,
        delay_penalty=config.delay_penalty,
    )


def pruned_transducer_loss(
    config: TransducerLossConfig,
    am: Tensor,
    lm: Tensor,
    joiner: JoinerInputs,
    to: Transcripts,
    step: int | None,
) -> Tensor:
    """(B,) weighted losses of the linear joiner, am (B, T, V) + lm (B, U + 1, V), and of the pruned lattice.

    `step` is the optimiser step, for the warm-up; None is after it.
    """
    options, topology = config.pruned, config.topology.build()
    backend = "k2" if options.backend == "k2" else None
    simple = simple_rnnt_loss(
        am,
        lm.to(am.dtype),
        *to,
        am_scale=options.am_scale,
        lm_scale=options.lm_scale,
        topology=MONOTONIC if config.topology.name in ("monotonic", "ctc") else RNNT,
        fastemit=config.fastemit,
        delay_penalty=config.delay_penalty,
        backend=backend,
    )
    ranges = pruning_bounds(
        simple.label_occupation,
        simple.blank_occupation,
        to.lengths,
        to.target_lengths,
        options.range,
        backend=backend,
    )
    pruned = fused_pruned_rnnt_loss(
        *joiner.one_dtype()[:4],
        to.targets,
        ranges,
        to.lengths,
        to.target_lengths,
        to.blank,
        activation=joiner.activation,
        skip_below=config.skip_below,
        topology=topology,
        criterion=config.criterion_at(step),
        fastemit=config.fastemit,
        delay_penalty=config.delay_penalty,
        backend=backend,
    )
    simple_weight, pruned_weight = options.weights(step)
    return simple_weight * simple.loss + pruned_weight * pruned


def transducer_frames_needed(config: TransducerLossConfig, target: Sequence[int]) -> int:
    """Fewest encoder frames from which `target` can be trained."""
    frames = config.topology.build().frames_needed(target)
    if config.kind == "pruned":
        # The band reaches the last label after so many frames (asr_kernels.pruning_bounds).
        frames = max(
            frames, 1 + -(-max(0, len(target) + 1 - config.pruned.range) // (config.pruned.range - 1))
        )
    return frames
