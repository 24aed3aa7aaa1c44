"""Sums on probabilities: equal to those on logarithms, and never sure of what they have lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import TOPOLOGIES
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kernels.ctc import cpu as ctc_cpu
from asr_kernels.lattice import cpu
from asr_kernels.lattice.arcs import Lattice, Rules, adjusted
from asr_kernels.lattice.topology import CTC, RNNT, Topology
from asr_kernels.rnnt.reference import symbol_scores

# From certain to impossible: a path of a few of them leaves the range of float64, and float64 squared.
LEVELS = np.array([-0.05, -1.0, -40.0, -150.0, -400.0, -700.0, -5e3, -np.inf])
LENGTHS = [(30, 12), (19, 12), (7, 3), (1, 0), (13, 0), (3, 12), (0, 2)]
U = 12


def lattice_of(topology: Topology, seed: int = 0) -> Lattice:
    frames, labels = zip(*LENGTHS, strict=True)
    targets = torch.randint(1, 4, (len(LENGTHS), U), generator=torch.Generator().manual_seed(seed))
    return Lattice(targets, list(frames), list(labels), Rules(topology))


def random_scores(topology: Topology, lattice: Lattice, scale: float) -> np.ndarray:
    symbols = topology.symbols(lattice.targets, 0, 5 + topology.extra_columns)[:, None]
    shape = len(LENGTHS), 30, U + 1, 5 + topology.extra_columns
    logits = scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scores = symbol_scores(logits, symbols.expand(-1, 30, -1, -1), 5 + topology.big_blanks)
    if topology.durations:
        scores[..., -topology.durations :] = scores[..., -topology.durations :].log_softmax(-1)
    return scores.numpy()


def by_logarithms(scores: np.ndarray, lattice: Lattice) -> cpu.Solution:
    return cpu._by_logarithms(adjusted(scores, lattice), lattice)


def agree(found: cpu.Solution, wanted: cpu.Solution) -> None:
    np.testing.assert_allclose(found.log_total, wanted.log_total, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(found.gradient, wanted.gradient, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [0.0, 2.0, 20.0])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_probabilities_give_what_logarithms_give(name: str, scale: float) -> None:
    topology, _ = TOPOLOGIES[name]
    lattice = lattice_of(topology)
    scores = random_scores(topology, lattice, scale)
    wanted = by_logarithms(scores, lattice)
    probabilities, left_out = cpu._probabilities(adjusted(scores, lattice), lattice)
    found, sure = cpu._by_probabilities(probabilities, lattice)
    assert (sure | (scale == 20.0) | np.isinf(wanted.log_total)).all()
    assert sure.sum() >= 4
    agree(
        cpu.Solution((found.log_total + left_out)[sure], found.gradient[sure]),
        cpu.Solution(wanted.log_total[sure], wanted.gradient[sure]),
    )
    agree(cpu.forward_backward(scores, lattice), wanted)


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(1, len(LEVELS)), st.sampled_from(sorted(TOPOLOGIES)))
def test_what_is_lost_is_found_out(seed: int, levels: int, name: str) -> None:
    """Scores between certainty and impossibility: wherever numbers do not suffice, logarithms step in."""
    topology, _ = TOPOLOGIES[name]
    lattice = lattice_of(topology, seed)
    rng = np.random.default_rng(seed)
    K = topology.symbols(lattice.targets, 0, 9).shape[-1]
    some = rng.choice(LEVELS, levels, replace=False)
    scores = rng.choice(some, (len(LENGTHS), 30, U + 1, K), p=rng.dirichlet(np.full(levels, 0.5)))
    agree(cpu.forward_backward(scores, lattice), by_logarithms(scores, lattice))


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(1, len(LEVELS)))
def test_ctc_knows_what_it_has_lost(seed: int, levels: int) -> None:
    lattice = lattice_of(CTC, seed)
    rng = np.random.default_rng(seed)
    some = rng.choice(LEVELS, levels, replace=False)
    scores = rng.choice(some, (len(LENGTHS), 30, U + 1), p=rng.dirichlet(np.full(levels, 0.5)))
    blank, labels = scores[..., :1], scores[..., 1:]
    at_nodes = np.stack(
        (
            np.broadcast_to(blank, scores.shape),
            np.concatenate((labels, blank), axis=-1),
            np.concatenate((blank, labels), axis=-1),
        ),
        axis=-1,
    )
    wanted = by_logarithms(at_nodes, lattice)
    found = ctc_cpu.forward_backward(scores, lattice)
    sure = found.sure
    assert not sure[np.isinf(wanted.log_total)].any()
    np.testing.assert_allclose(found.log_total[sure], wanted.log_total[sure], rtol=1e-12, atol=1e-9)
    by_symbol = wanted.gradient.copy()
    by_symbol[..., 0] += by_symbol[..., 2] * (np.arange(U + 1) == 0) + by_symbol[..., 1] * (
        np.arange(U + 1) == U
    )
    each = np.concatenate(
        (by_symbol[..., 0].sum(-1, keepdims=True), by_symbol[..., :-1, 1] + by_symbol[..., 1:, 2]), axis=-1
    )
    np.testing.assert_allclose(found.gradient[sure], each[sure], rtol=0, atol=1e-9)


def test_paths_far_below_others_count_when_those_come_to_nothing() -> None:
    """Blanks without labels are 1500 nats likelier than what ends up in the last state."""
    lattice = Lattice(torch.ones(1, 20, dtype=torch.int64), [40], [20], Rules(RNNT))
    scores = np.full((1, 40, 21, 2), -1e-3)
    scores[..., 1] = -75.0
    scores[:, ::2, :, 1] = -76.0
    wanted = by_logarithms(scores, lattice)
    assert wanted.log_total[0] < -1400
    _, sure = cpu._by_probabilities(np.exp(scores), lattice)
    assert not sure.any()  # as they are; with the label's best frame divided out they are easy
    probabilities, _ = cpu._probabilities(scores, lattice)
    assert cpu._by_probabilities(probabilities, lattice)[1].all()
    agree(cpu.forward_backward(scores, lattice), wanted)


def test_long_lattices_keep_their_precision() -> None:
    """1500 frames of which each costs 6 nats: renormalised almost a hundred times."""
    lattice = Lattice(torch.ones(2, 40, dtype=torch.int64), [1500, 900], [40, 25], Rules(RNNT))
    scores = np.random.default_rng(0).normal(-6, 1, (2, 1500, 41, 2)).clip(max=0)
    wanted = by_logarithms(scores, lattice)
    assert (wanted.log_total < -4000).all()
    probabilities, _ = cpu._probabilities(scores, lattice)
    assert cpu._by_probabilities(probabilities, lattice)[1].all()
    agree(cpu.forward_backward(scores, lattice), wanted)
    np.testing.assert_allclose(-wanted.gradient[0, ..., 0].sum(), 1500, rtol=1e-9)


def test_no_number_spreads() -> None:
    """One utterance is NaN or infinite, and the others are what they are without it."""
    lattice = lattice_of(RNNT)
    scores = random_scores(RNNT, lattice, 2.0)
    wanted = by_logarithms(scores, lattice)
    for bad in (np.nan, np.inf):
        scores[1, 2, 1, 0] = bad
        found = cpu.forward_backward(scores, lattice)
        rest = [0, 2, 3, 4, 5, 6]
        agree(
            cpu.Solution(found.log_total[rest], found.gradient[rest]),
            cpu.Solution(wanted.log_total[rest], wanted.gradient[rest]),
        )
        assert np.isnan(found.log_total[1])
