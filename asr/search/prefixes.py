"""Prefixes of CTC prefix beam search and what a frame makes of them; asr.search.ctc_beam has the recursion.

Every prefix has two halves: the paths that end in blank, and those that end in its last label. Of each there
is the sum and the best path (Viterbi), which is where the times come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from asr import state as states
from asr.search.arena import HASH_BASE, NOTHING

SHARE = math.exp(-20)
"""What is this much less probable than the rest of its prefix float32 could not tell from nothing."""


@dataclass(frozen=True)
class Prefixes:
    """Hypotheses of B streams, K each, (B, K); log-probabilities are float64, minus infinity is not there."""

    blank: Tensor
    """Of all paths that end in blank."""
    label: Tensor
    """Of all paths that end in the last label."""
    best_blank: Tensor
    """Of the best path that ends in blank."""
    best_label: Tensor
    """Of the best path that ends in the last label."""
    fused: Tensor
    """float64: what the scorers added."""
    last: Tensor
    """int64 last label, blank if nothing was said."""
    hash: Tensor
    """int64 of all labels."""
    parent: Tensor
    """int64 hash of all labels but the last."""
    start: Tensor
    """int64 first frame of the run that is open on the best path that ends in the label."""
    certain: Tensor
    """float32 log-probability of that run's most certain frame."""
    sure: Tensor
    """float32 logarithm of the confidence there."""

    @property
    def log_prob(self) -> Tensor:
        """(B, K) of all paths."""
        return torch.logaddexp(self.blank, self.label)

    @property
    def total(self) -> Tensor:
        """(B, K) what prefixes are ranked by."""
        return self.log_prob + self.fused

    def without(self, no_blank: Tensor, no_label: Tensor) -> Prefixes:
        """The same without the halves for which it is True, (B, K) each."""
        return replace(
            self,
            blank=self.blank.masked_fill(no_blank, NOTHING),
            label=self.label.masked_fill(no_label, NOTHING),
            best_blank=self.best_blank.masked_fill(no_blank, NOTHING),
            best_label=self.best_label.masked_fill(no_label, NOTHING),
        )

    @property
    def open(self) -> Tensor:
        """(B, K) whether the best path ends in the label."""
        return self.best_label > self.best_blank


class Frame(NamedTuple):
    """What the head says about a frame, float64."""

    log_probs: Tensor  # (B, V)
    confidences: Tensor  # (B, V) logarithms
    candidates: Tensor  # (B, C) int64 labels that may come next
    number: Tensor  # (B,) int64


class Step(NamedTuple):
    """Prefixes after a frame before the best are chosen, and where each came from."""

    prefixes: Prefixes  # (B, N)
    source: Tensor  # (B, N) int64 which of the K it was, or extends
    extends: Tensor  # (B, N) bool
    blank_node: Tensor  # (B, N) of the best path that ends in blank
    label_node: Tensor  # (B, N) of the best path that ends in the label, without the open run


def stay(prefixes: Prefixes, any_node: Tensor, label_node: Tensor, frame: Frame) -> Step:
    """The prefixes that are there, after blank or their last label again."""
    blank = frame.log_probs[:, :1]
    again = frame.log_probs.gather(1, prefixes.last)
    more = again.float() > prefixes.certain
    stayed = replace(
        prefixes,
        blank=prefixes.log_prob + blank,
        label=prefixes.label + again,
        best_blank=torch.maximum(prefixes.best_blank, prefixes.best_label) + blank,
        best_label=prefixes.best_label + again,
        certain=torch.where(more, again.float(), prefixes.certain),
        sure=torch.where(more, frame.confidences.gather(1, prefixes.last).float(), prefixes.sure),
    )
    source = torch.arange(prefixes.last.shape[1], device=any_node.device).expand_as(any_node)
    return Step(stayed, source, torch.zeros_like(source, dtype=torch.bool), any_node, label_node)


def merge(
    stayed: Step, before: Prefixes, equal: Tensor, any_node: Tensor, blank_node: Tensor, frame: Frame
) -> Step:
    """Those with the paths that lead to them from the prefixes without their last label, if they are there.

    equal (B, K, K): whether the first is the second without its last label; at most one is.
    """
    prefixes = stayed.prefixes
    log_prob = frame.log_probs.gather(1, prefixes.last)
    there, source = equal.any(dim=1), equal.to(torch.int8).argmax(dim=1)
    repeats = before.last.gather(1, source) == prefixes.last
    best_before = torch.maximum(before.best_blank, before.best_label)

    def from_source(of_blank: Tensor, of_any: Tensor) -> Tensor:
        return torch.where(repeats, of_blank.gather(1, source), of_any.gather(1, source))

    entered = (from_source(before.blank, before.log_prob) + log_prob).masked_fill(~there, NOTHING)
    best = (from_source(before.best_blank, best_before) + log_prob).masked_fill(~there, NOTHING)
    better = best > prefixes.best_label
    prefixes = replace(
        prefixes,
        label=torch.logaddexp(prefixes.label, entered),
        best_label=torch.maximum(prefixes.best_label, best),
        start=torch.where(better, frame.number[:, None], prefixes.start),
        certain=torch.where(better, log_prob.float(), prefixes.certain),
        sure=torch.where(better, frame.confidences.gather(1, prefixes.last).float(), prefixes.sure),
    )
    label_node = torch.where(better, from_source(blank_node, any_node), stayed.label_node)
    return stayed._replace(prefixes=prefixes, label_node=label_node)


def extend(
    prefixes: Prefixes, added: Tensor, equal: Tensor, any_node: Tensor, blank_node: Tensor, frame: Frame
) -> Step:
    """Every prefix with every candidate as one more label, but for those that are there already: (B, K C).

    added (B, K, V): what scorers add to each label.
    """
    label = frame.candidates[:, None].expand(-1, prefixes.last.shape[1], -1)
    width = label.shape[1]
    log_prob = frame.log_probs.gather(1, frame.candidates)[:, None]
    known = (equal[:, :, None] & (label[..., None] == prefixes.last[:, None, None])).any(dim=-1)
    repeats = label == prefixes.last[..., None]
    best_before = torch.maximum(prefixes.best_blank, prefixes.best_label)

    def either(of_blank: Tensor, of_any: Tensor) -> Tensor:
        return torch.where(repeats, of_blank[..., None], of_any[..., None])

    entered = (either(prefixes.blank, prefixes.log_prob) + log_prob).masked_fill(known, NOTHING)
    best = (either(prefixes.best_blank, best_before) + log_prob).masked_fill(known, NOTHING)
    nothing = torch.full_like(entered, NOTHING)
    parent = prefixes.hash[..., None].expand_as(label)
    longer = Prefixes(
        nothing,
        entered,
        nothing,
        best,
        prefixes.fused[..., None] + added.gather(2, label).double(),
        label,
        parent * HASH_BASE + label,
        parent,
        frame.number[:, None, None].expand_as(label),
        log_prob.float().expand_as(label),
        frame.confidences.gather(1, frame.candidates)[:, None].float().expand_as(label),
    )
    source = torch.arange(width, device=label.device)[:, None].expand_as(label)
    node = either(blank_node, any_node)
    step = Step(longer, source, torch.ones_like(label, dtype=torch.bool), node, node)
    return states.map_tensors(lambda x: x.flatten(1), step)


def equal_parents(prefixes: Prefixes) -> Tensor:
    """(B, K, K): whether the first is the second without its last label; both are there."""
    there = prefixes.log_prob > NOTHING
    equal = (prefixes.hash[:, :, None] == prefixes.parent[:, None]) & (prefixes.last[:, None] != 0)
    return equal & there[:, :, None] & there[:, None]


def best_of(step: Step, width: int, margin: float) -> tuple[Step, Tensor]:
    """The `width` best, none of them `margin` below the best; and (B,) whether there is one.

    What scorers forbid is not there, nor are halves that count for nothing.
    """
    ranked, order = step.prefixes.total.topk(width, dim=1)
    lost = (ranked < ranked[:, :1] - margin) | (ranked == NOTHING)
    chosen = states.map_tensors(lambda x: x.gather(1, order), step)
    prefixes = chosen.prefixes
    little = prefixes.log_prob + math.log(SHARE)
    prefixes = prefixes.without(lost | (prefixes.blank < little), lost | (prefixes.label < little))
    prefixes = replace(prefixes, fused=prefixes.fused.masked_fill(lost, 0))
    return chosen._replace(prefixes=prefixes), ranked[:, 0] > NOTHING


def joined(one: Prefixes, other: Prefixes) -> Prefixes:
    """Prefixes (B, N) and (B, M) as (B, N + M)."""
    names = [field.name for field in fields(one)]
    return Prefixes(*(torch.cat((getattr(one, name), getattr(other, name)), dim=1) for name in names))
