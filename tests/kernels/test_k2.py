"""k2 as a backend, against a stand-in with the interface and the peculiarities of k2 1.23.4.

k2 itself is never installed here; kernels/asr_kernels/pruned/README.md tells how this was compared with it.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import Case, agree, am_and_lm, make, run
from torch import Tensor

from asr_kernels import (
    MONOTONIC,
    RNNT,
    fused_pruned_rnnt_loss,
    pruned_rnnt_loss,
    pruning_bounds,
    rnnt_loss,
    simple_rnnt_loss,
    tdt,
)

LENGTHS = [(6, 3), (4, 0), (2, 3), (0, 2), (5, 1)]
V, S = 5, 3


def lengths_of(boundary: Tensor) -> tuple[Tensor, Tensor]:
    assert boundary.dtype == torch.int64
    assert not boundary[:, :2].any()
    return boundary[:, 3], boundary[:, 2]


def peculiar(losses: Tensor, leaf: Tensor, frames: Tensor) -> Tensor:
    """k2: 0 without frames; a gradient even without a path."""
    losses = torch.where(losses.isinf(), torch.inf + 0.0 * leaf.flatten(1).sum(1), losses)
    return torch.where(frames == 0, 0.0, losses)


class StandIn(ModuleType):
    """What the backend uses of k2."""

    topologies = {"regular": RNNT, "modified": MONOTONIC}  # noqa: RUF012

    def rnnt_loss_smoothed(
        self, lm: Tensor, am: Tensor, symbols: Tensor, termination_symbol: int, **options: Any
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        assert not am.isnan().any()
        assert not lm.isnan().any()
        assert options["return_grad"]
        assert options["reduction"] == "none"
        frames, labels = lengths_of(options["boundary"])
        found = simple_rnnt_loss(
            am,
            lm,
            symbols,
            frames,
            labels,
            termination_symbol,
            am_scale=options["am_only_scale"],
            lm_scale=options["lm_only_scale"],
            topology=self.topologies[options["rnnt_type"]],
            delay_penalty=options["delay_penalty"],
        )
        label = found.label_occupation.transpose(1, 2)
        if options["rnnt_type"] == "regular":
            label = torch.nn.functional.pad(label, (0, 1))
        return peculiar(found.loss, am, frames), (label, found.blank_occupation.transpose(1, 2))

    def get_rnnt_prune_ranges(
        self, px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int
    ) -> Tensor:
        assert px_grad.is_contiguous()
        assert py_grad.is_contiguous()
        T = py_grad.shape[2]
        assert px_grad.shape[2] == T + 1
        frames, labels = lengths_of(boundary)
        return pruning_bounds(
            px_grad[..., :T].transpose(1, 2), py_grad.transpose(1, 2), frames, labels, s_range
        )

    def rnnt_loss_pruned(
        self, logits: Tensor, symbols: Tensor, ranges: Tensor, termination_symbol: int, **options: Any
    ) -> Tensor:
        assert not logits.isnan().any()
        assert ranges.dtype == torch.int64
        frames, labels = lengths_of(options["boundary"])
        losses = pruned_rnnt_loss(
            logits,
            symbols,
            ranges,
            frames,
            labels,
            termination_symbol,
            topology=self.topologies[options["rnnt_type"]],
            delay_penalty=options["delay_penalty"],
        )
        return peculiar(losses, logits, frames)


@pytest.fixture
def k2(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were installed."""
    module = StandIn("k2")
    module.__spec__ = object()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "k2", module)


def problem() -> Case:
    return make(LENGTHS, V, blank=2)


def test_it_says_how_to_get_it() -> None:
    if "k2" in sys.modules:
        pytest.skip("k2 is installed")
    case = problem()
    with pytest.raises(ImportError, match="not installed"):
        simple_rnnt_loss(*am_and_lm(case), *case[1:], backend="k2")


@pytest.mark.usefixtures("k2")
@pytest.mark.parametrize("topology", [RNNT, MONOTONIC])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_whole_step(topology: Any, dtype: torch.dtype) -> None:
    case = problem()
    am, lm = am_and_lm(case)
    options: dict[str, Any] = {"topology": topology, "delay_penalty": 0.1}
    arguments = (*case[1:], 2)

    def simple(backend: str, am: Tensor, lm: Tensor) -> Tensor:
        return simple_rnnt_loss(am, lm, *arguments, lm_scale=0.25, backend=backend, **options).loss

    def pruned(backend: str, logits: Tensor) -> Tensor:
        found = simple_rnnt_loss(am, lm, *arguments, lm_scale=0.25, backend=backend, **options)
        ranges = pruning_bounds(*found[1:], *case[2:], S, backend=backend)
        assert ranges.shape == (len(LENGTHS), 6, S)
        inside = logits.gather(2, ranges[..., None].expand(-1, -1, -1, V))
        return pruned_rnnt_loss(inside, case.targets, ranges, *case[2:], 2, backend=backend, **options)

    padded = case.logits.masked_fill(case.padding()[..., None], torch.nan)
    for op, inputs in ((simple, (am, lm)), (pruned, (padded,))):
        wanted = run(lambda *x, op=op: op("cpu", *x), inputs, dtype)
        found = run(lambda *x, op=op: op("k2", *x), inputs, dtype)
        assert found.losses.isinf().sum() == (1 if topology is RNNT else 2)
        agree(found, wanted, 1e-9 if dtype == torch.float64 else 1e-3)


@pytest.mark.usefixtures("k2")
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_of_the_joiners_inputs(activation: Any) -> None:
    case = problem()
    rng = torch.Generator().manual_seed(0)
    shapes = (len(LENGTHS), 6, 4), (len(LENGTHS), 4, 4), (V, 4), (V,)
    inputs = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]
    found = simple_rnnt_loss(*am_and_lm(case), *case[1:], 2)
    ranges = pruning_bounds(*found[1:], *case[2:], S)
    beyond_frames = torch.arange(6) >= case.logit_lengths[:, None]
    beyond_labels = torch.arange(4) > case.target_lengths[:, None]
    inputs[0].masked_fill_(beyond_frames[..., None], torch.nan)
    inputs[1].masked_fill_(beyond_labels[..., None], torch.nan)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float16, 5e-3)):
        outcomes = [
            run(
                lambda *x, backend=backend: fused_pruned_rnnt_loss(
                    *x,
                    case.targets,
                    ranges,
                    *case[2:],
                    2,
                    activation=activation,
                    skip_below=0.0,
                    backend=backend,
                ),
                [x.to(dtype).double() for x in inputs],
                dtype,
            )
            for backend in ("cpu", "k2")
        ]
        assert all(grad.isfinite().all() for grad in outcomes[1].grads)
        agree(outcomes[1], outcomes[0], tolerance)


@pytest.mark.usefixtures("k2")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topology": tdt()}, "expected topology RNNT or MONOTONIC for .*k2.*found tdt"),
        ({"criterion": "max"}, 'expected criterion "sum" for .*k2.*found max'),
        ({"fastemit": 0.1}, "expected fastemit 0 for .*k2.*found 0.1"),
    ],
)
def test_refuses_what_it_does_not_know(options: dict[str, Any], message: str) -> None:
    case = make(LENGTHS, V, 5 if "topology" in options else 0)
    logits = case.logits[:, :, :S]
    ranges = torch.arange(S).expand(*logits.shape[:2], S)
    with pytest.raises(ValueError, match=message):
        pruned_rnnt_loss(logits, case.targets, ranges, *case[2:], backend="k2", **options)


def test_only_the_pruned_family_has_it() -> None:
    case = problem()
    with pytest.raises(ValueError, match="expected a backend among reference, cpu, triton, found 'k2'"):
        rnnt_loss(*case, backend="k2")
    with pytest.raises(ValueError, match="expected a backend among reference, cpu, triton, k2, found 'k3'"):
        simple_rnnt_loss(*am_and_lm(case), *case[1:], backend="k3")
