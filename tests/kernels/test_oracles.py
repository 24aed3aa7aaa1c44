"""The enumeration that judges the kernels, judged by implementations and identities that are not ours."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from oracles import Rules
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
GRID = [(T, U) for T in range(1, 6) for U in range(4)]


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("criterion", ["sum", "max"])
@pytest.mark.parametrize("name", ["rnnt", "monotonic"])
def test_enumeration_equals_stored_enumeration(number: int, criterion: str, name: str) -> None:
    stored = np.load(GOLDEN / f"paths_{number}.npz")
    found = oracles.loss(
        torch.from_numpy(stored["logits"]), stored["targets"].tolist(), 0, Rules(name), criterion=criterion
    )
    assert found.item() == pytest.approx(float(stored[f"{name}_{criterion}"]), rel=1e-12)


@pytest.mark.parametrize(("T", "U"), GRID)
def test_rnnt_equals_torchaudio(T: int, U: int) -> None:
    torchaudio = pytest.importorskip("torchaudio")
    logits = random_logits(T, U + 1, 4).requires_grad_()
    y = [1, 3, 3][:U]
    loss = oracles.loss(logits, y, 0, Rules("rnnt"), fastemit=0.0)
    (grad,) = torch.autograd.grad(loss, logits)
    x = logits.detach().float()[None].requires_grad_()
    lengths = torch.tensor([T], dtype=torch.int32), torch.tensor([U], dtype=torch.int32)
    targets = torch.tensor([y], dtype=torch.int32).reshape(1, U)
    expected = torchaudio.functional.rnnt_loss(x, targets, *lengths, blank=0, reduction="sum")
    (expected_grad,) = torch.autograd.grad(expected, x)
    torch.testing.assert_close(loss.float(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad.float(), expected_grad[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("T", "U"), GRID)
@pytest.mark.parametrize("labels", [[1, 2, 1], [2, 2, 2], [1, 1, 2]])
def test_both_ctcs_equal_torch(T: int, U: int, labels: list[int]) -> None:
    """On the nodes of the transducer with logits that do not depend on u, and as strings that collapse."""
    logits, y = random_logits(T, 3).requires_grad_(), labels[:U]
    lengths = torch.tensor([T]), torch.tensor([U])
    log_probs = logits.log_softmax(-1)[:, None]
    expected = torch.nn.functional.ctc_loss(
        log_probs, torch.tensor([y]).reshape(1, U), *lengths, reduction="sum"
    )
    on_lattice = oracles.loss(logits[:, None].expand(T, U + 1, 3), y, 0, Rules("ctc"))
    as_strings = oracles.ctc(logits, y, 0)
    if expected.isinf():
        assert U + sum(a == b for a, b in pairwise(y)) > T
        assert on_lattice.item() == as_strings.loss.item() == math.inf
        return
    (expected_grad,) = torch.autograd.grad(expected, logits)
    for found in (on_lattice, as_strings.loss):
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, logits, retain_graph=True)[0], expected_grad)
    best = oracles.best(logits[:, None].expand(T, U + 1, 3), y, 0, Rules("ctc"))
    assert best.frames == as_strings.best.frames
    assert best.end_frames == as_strings.best.end_frames
    assert best.score == pytest.approx(as_strings.best.score, rel=1e-12)


@pytest.mark.parametrize(("T", "U"), GRID)
def test_tdt_and_multi_blank_contain_the_simpler_topologies(T: int, U: int) -> None:
    """One possible duration: monotonic on T-1 frames, then a blank. Impossible big blanks: rnnt."""
    logits, y = random_logits(T, U + 1, 5), [1, 3, 3][:U]
    one = oracles.loss(logits, y, 0, Rules("tdt", (1,), sigma=0.25))
    symbols = logits[..., :4]
    before = oracles.loss(symbols[:-1], y, 0, Rules("monotonic")) if T > 1 else torch.tensor(math.inf)
    last = symbols.log_softmax(-1)[-1, U, 0]
    expected = -last if T == 1 and U == 0 else before - last
    torch.testing.assert_close(one, expected.double() + 0.25 * T)
    logits[..., 4] = -math.inf
    found = oracles.loss(logits, y, 0, Rules("multi_blank", (2,)))
    torch.testing.assert_close(found, oracles.loss(symbols, y, 0, Rules("rnnt")))


@pytest.mark.parametrize("durations", [(0, 1, 2, 3, 4), (1, 2), (3, 0, 1)])
def test_probabilities_of_tdt_sum_to_what_cannot_overshoot(durations: tuple[int, ...]) -> None:
    """One label id, at most U labels: with position U forced to blank, what is missing from 1 overshot T.

    Followed forwards as a Markov chain from (0, 0), which is how the model samples.
    """
    T, U = 4, 3
    logits = random_logits(T, U + 1, 2 + len(durations))
    logits[:, U, 1] = -math.inf
    rules = Rules("tdt", durations)
    total = sum(math.exp(-oracles.loss(logits[:, : u + 1], [1] * u, 0, rules)) for u in range(U + 1))
    symbol, duration = logits[..., :2].softmax(-1), logits[..., 2:].softmax(-1)
    mass = {(0, 0): 1.0}
    ended = 0.0
    while mass:
        (t, u), p = mass.popitem()
        for i, d in enumerate(durations):
            q = p * float(duration[t, u, i])
            if d > 0 and t + d == T:
                ended += q * float(symbol[t, u, 0])
            for emitted in range(2):
                if t + d < T and (d > 0 or emitted) and u + emitted <= U:
                    node = t + d, u + emitted
                    mass[node] = mass.get(node, 0.0) + q * float(symbol[t, u, emitted])
    assert total == pytest.approx(ended, rel=1e-12)


def test_fastemit_and_delay_penalty_on_the_smallest_lattice() -> None:
    """Two frames, one label, by hand: two paths, emitting on frame 0 or 1."""
    logits = random_logits(2, 2, 3)
    log_probs = logits.log_softmax(-1).requires_grad_()
    early = log_probs[0, 0, 2] + log_probs[0, 1, 0] + log_probs[1, 1, 0] + 0.1 * 0.5
    late = log_probs[0, 0, 0] + log_probs[1, 0, 2] + log_probs[1, 1, 0] - 0.1 * 0.5
    options = {"delay_penalty": 0.1, "fastemit": 0.5}
    loss = oracles.loss_from_log_probs(log_probs, [2], 0, Rules("rnnt"), **options)
    assert loss.item() == pytest.approx(-torch.logaddexp(early, late).item(), rel=1e-12)
    (grad,) = torch.autograd.grad(loss, log_probs)
    share = torch.sigmoid(early - late).item()
    assert grad[0, 0, 2].item() == pytest.approx(-1.5 * share, rel=1e-12)
    assert grad[1, 0, 2].item() == pytest.approx(-1.5 * (1 - share), rel=1e-12)
    assert grad[0, 0, 0].item() == pytest.approx(-(1 - share), rel=1e-12)
    assert grad[1, 1, 0].item() == pytest.approx(-1.0, rel=1e-12)


def test_legal_bounds_of_two_frames() -> None:
    assert list(oracles.legal_bounds(2, 2, 2, 2)) == [(0, 1)]
    assert list(oracles.legal_bounds(3, 2, 2, 2)) == [(0, 0, 1), (0, 1, 1), (0, 1, 2)]
