"""The model: encoder, predictor and joiner, with an optional CTC head on the same encoder.

    features (B, T, D) -> norm -> encoder -> y (B, T', E) -> joiner(y, predictor(labels)) -> logits
                                                         -> ctc head(y)                   -> logits

A model without a predictor is a CTC model; one with both can be decoded either way.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor, nn

from asr.config import Config
from asr.encoders import Encoder, EncoderConfig, EncoderOutput, LstmEncoderConfig, build_encoder
from asr.errors import ConfigError
from asr.joiner import Joiner, JoinerConfig
from asr.layers.norm import FeatureNorm
from asr.lengths import padding_mask
from asr.losses import (
    LossConfig,
    NBest,
    Transcripts,
    consistency_loss,
    ctc_frames_needed,
    ctc_head_loss,
    mwer_loss,
    pruned_transducer_loss,
    transducer_frames_needed,
    transducer_loss,
    twin_loss,
)
from asr.predictors import PredictorConfig, StatelessPredictorConfig, build_predictor
from asr.predictors.twin import Twin, TwinOutput

BLANK = 0
"""The blank's label, in every model and tokenizer."""


class TransducerConfig(Config):
    """The network and its training criterion."""

    encoder: EncoderConfig = LstmEncoderConfig()
    predictor: PredictorConfig | None = StatelessPredictorConfig()
    """None for a CTC model."""
    joiner: JoinerConfig = JoinerConfig()
    loss: LossConfig = LossConfig()

    @model_validator(mode="after")
    def _something_to_train(self) -> TransducerConfig:
        if self.predictor is None and self.loss.transducer.weight:
            raise ValueError(
                "a model without a predictor has no transducer loss: set loss.transducer.weight to 0"
            )
        if self.loss.transducer.weight == 0 and self.loss.ctc.weight == 0:
            raise ValueError("nothing to train: set loss.transducer.weight or loss.ctc.weight above 0")
        return self


class Losses(NamedTuple):
    """Losses of a batch, per utterance, unweighted; None where there is no such head or it has not joined."""

    total: Tensor
    """(B,) weighted sum."""
    transducer: Tensor | None
    ctc: Tensor | None
    consistency: Tensor | None = None
    """None of one view."""
    mwer: Tensor | None = None
    """None without hypotheses."""
    twin: Tensor | None = None
    """None without a twin of the predictor, and where nothing is trained."""


class Transducer(nn.Module):
    """Encoder, predictor, joiner and CTC head over a vocabulary whose label 0 is blank."""

    def __init__(
        self, config: TransducerConfig, num_features: int, vocab_size: int, frame_shift_s: float = 0.01
    ) -> None:
        super().__init__()
        self.config, self.vocab_size, self.blank = config, vocab_size, BLANK
        self.norm = FeatureNorm(num_features)
        self.encoder = build_encoder(config.encoder, num_features, frame_shift_s)
        width = self.encoder.output_dim
        if config.predictor is not None and config.loss.transducer.weight:
            self.predictor = build_predictor(config.predictor, vocab_size, BLANK)
            loss = config.loss.transducer
            self.topology = loss.topology.build()
            columns = vocab_size + self.topology.extra_columns
            self.joiner = Joiner(config.joiner, width, self.predictor.output_dim, columns)
            if loss.kind == "pruned":
                self.simple_encoder = nn.Linear(width, vocab_size)
                self.simple_predictor = nn.Linear(self.predictor.output_dim, vocab_size, bias=False)
            if config.loss.twin.weight:
                self.twin = Twin(build_predictor(config.predictor, vocab_size, BLANK), vocab_size)
        self.ctc = nn.Linear(width, vocab_size) if config.loss.ctc.weight else None

    def with_encoder(self, encoder: Encoder) -> Transducer:
        """The same network, its weights shared, behind another view of its encoder."""
        view = copy.copy(self)
        view._modules = {**self._modules, "encoder": encoder}
        return view

    @property
    def has_transducer(self) -> bool:
        """Whether there is a predictor and a joiner to decode with."""
        return hasattr(self, "joiner")

    def encode(self, features: Tensor, feature_lengths: Tensor, state: Any = None) -> EncoderOutput:
        """Normalise and encode (B, T, D) features: whole utterances, or chunks if a state is given."""
        out: EncoderOutput = self.encoder(self.norm(features), feature_lengths, state)
        return out

    def encode_views(
        self, features: Tensor, feature_lengths: Tensor, views: int, step: int | None = None
    ) -> EncoderOutput:
        """Encode whole utterances (views * B, T, D) in training, each view in a mode of its own.

        `step` is the optimiser step, for what warms up; None is after that.
        """
        features = self.norm(features)
        parts = zip(features.chunk(views), feature_lengths.chunk(views), strict=True)
        encoded = [self.encoder.at_step(step, view)(*part) for view, part in enumerate(parts)]
        y, y_lengths = (torch.cat(tensors) for tensors in list(zip(*encoded, strict=True))[:2])
        return EncoderOutput(y, y_lengths, None)

    def losses(
        self,
        encoded: Tensor,
        lengths: Tensor,
        targets: Tensor,
        target_lengths: Tensor,
        step: int | None = None,
        views: int = 1,
        n_best: NBest | None = None,
    ) -> Losses:
        """Losses (B,) of encoder frames (B, T', E) against transcripts (B, U) padded with anything.

        `step` is the optimiser step, for criteria that warm up; None is after that. With `views` 2 the second
        half of the rows are other views of the first. `n_best` are the hypotheses over which word errors are
        expected, if those are trained.
        """
        config = self.config.loss
        total = encoded.new_zeros(encoded.shape[0], dtype=torch.float32)
        transducer = ctc = consistency = mwer = twin = None
        to = Transcripts(targets, lengths, target_lengths, self.blank)
        own_step = config.transducer.own_step(step)
        if self.has_transducer and (own_step is None or own_step >= 0):
            frames = encoded[:, : int(lengths.max())]
            spoken = self._spoken(to.targets, to.target_lengths)
            transducer = self._transducer_loss(frames, spoken, to, own_step)
            total = total + config.transducer.weight * transducer
            if config.twin.weight and self.training:
                twin = self._twin_loss(spoken, to)
                total = total + twin
            if n_best is not None:
                mwer = mwer_loss(self._log_probs(frames, lengths, n_best), n_best)
                total = total + config.mwer.weight * mwer
        if self.ctc is not None:
            logits = self.ctc(encoded)
            ctc = ctc_head_loss(config.ctc, logits, to)
            # Beside a transducer CTC only helps: where it has no path it must not cost the utterance.
            total = total + config.ctc.weight * (
                ctc.masked_fill(ctc == torch.inf, 0.0) if self.has_transducer else ctc
            )
            if views > 1:
                consistency = consistency_loss(logits, lengths)
                total = total + config.ctc.consistency * consistency
        return Losses(total, transducer, ctc, consistency, mwer, twin)

    def _transducer_loss(self, frames: Tensor, spoken: Tensor, to: Transcripts, step: int | None) -> Tensor:
        """(B,) losses by the configured kind."""
        loss = self.config.loss.transducer
        joiner = self.joiner.projected(frames, spoken)
        if loss.kind == "pruned":
            am, lm = self.simple_encoder(frames), self.simple_predictor(spoken)
            return pruned_transducer_loss(loss, am, lm, joiner, to, step)
        return transducer_loss(loss, joiner, to, step)

    def _twin_loss(self, spoken: Tensor, to: Transcripts) -> Tensor:
        """(B,) losses of the predictor's outputs beside those of its twin."""
        transcripts = self._padded(to.targets, to.target_lengths), to.target_lengths
        compared: TwinOutput = self.twin(spoken, *transcripts)
        return twin_loss(self.config.loss.twin, *compared, *transcripts)

    def _spoken(self, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """(B, U + 1, P) predictor outputs of transcripts (B, U) padded with anything."""
        return self.predictor.whole(self._padded(targets, target_lengths))

    def _padded(self, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """Transcripts (B, U) padded with blanks."""
        return targets.masked_fill(~padding_mask(target_lengths, targets.shape[1]), self.blank)

    def _log_probs(self, frames: Tensor, lengths: Tensor, n_best: NBest) -> Tensor:
        """(B, N) log-probabilities of hypotheses over all alignments; minus infinity where there is none."""
        row, place = n_best.present.nonzero(as_tuple=True)
        targets, target_lengths = n_best.targets[row, place], n_best.target_lengths[row, place]
        joiner = self.joiner.projected(frames, self._spoken(targets, target_lengths))
        joiner = joiner._replace(encoder=joiner.encoder[row])
        to = Transcripts(targets, lengths[row], target_lengths, self.blank)
        losses = transducer_loss(self.config.loss.transducer.probability, joiner, to, None)
        nothing = losses.new_full(n_best.present.shape, -torch.inf)
        return nothing.index_put((row, place), -losses)

    def check_steps(self, steps: int) -> None:
        """Raise ConfigError if so many optimiser steps of training would leave out a part of the network."""
        self.encoder.check_steps(steps)
        after = self.config.loss.transducer.after_steps
        if after and after >= steps:
            raise ConfigError(
                f"with after_steps {after} the transducer loss begins at step {after} and the training has "
                f"{steps}: set network.loss.transducer.after_steps, {steps // 10} would do"
            )

    def frames_needed(self, target: Sequence[int]) -> int:
        """Fewest encoder frames from which `target` can be trained; an auxiliary CTC head asks for none."""
        if self.has_transducer:
            return transducer_frames_needed(self.config.loss.transducer, target)
        return ctc_frames_needed(target)
