"""Against stored numbers of torchaudio, k2, torch and an enumeration: see golden/README.md.

test_rnnt.py has the losses of whole lattices by torchaudio and k2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import BACKENDS, TOPOLOGIES
from torch import Tensor

from asr_kernels import (
    MONOTONIC,
    align,
    ctc_loss,
    fused_pruned_rnnt_loss,
    pruned_rnnt_loss,
    pruning_bounds,
    rnnt_loss,
    simple_rnnt_loss,
)

GOLDEN = Path(__file__).parent / "golden"


def stored(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(np.asarray(value)) for key, value in file.items()}


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    """To this share of the largest; k2 and torchaudio computed in float32."""
    size = float(wanted.abs().max())
    torch.testing.assert_close(found.to(wanted.dtype), wanted, rtol=tolerance, atol=tolerance * size)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("criterion", ["sum", "max"])
@pytest.mark.parametrize("name", ["rnnt", "monotonic"])
def test_paths(name: str, criterion: str, number: int, backend: str) -> None:
    x = stored(f"paths_{number}")
    T, width, _ = x["logits"].shape
    case = x["logits"][None], x["targets"].long()[None], torch.tensor([T]), torch.tensor([width - 1])
    options: dict[str, Any] = {"topology": TOPOLOGIES[name][0], "backend": backend}
    wanted = x[f"{name}_{criterion}"]
    torch.testing.assert_close(
        rnnt_loss(*case, criterion=criterion, **options)[0], wanted, rtol=1e-10, atol=0
    )
    if criterion == "max":
        torch.testing.assert_close(-align(*case, **options).score[0], wanted, rtol=1e-10, atol=0)


def test_a_path_exists_for_few_labels_only() -> None:
    """The stored numbers do hold the case of more labels than frames."""
    assert stored("paths_6")["monotonic_sum"].isinf()
    x = stored("paths_6")
    case = x["logits"][None], x["targets"][None], torch.tensor([3]), torch.tensor([4])
    assert align(*case, topology=MONOTONIC).frames.tolist() == [[-1] * 4]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", range(2))
def test_ctc(number: int, backend: str) -> None:
    x = stored(f"ctc_{number}")
    logits = x["logits"].requires_grad_()
    losses = ctc_loss(logits, x["targets"], x["logit_lengths"], x["target_lengths"], backend=backend)
    torch.testing.assert_close(losses, x["loss"], rtol=1e-9, atol=1e-9)
    (grad,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(grad, x["grad"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", range(3))
def test_simple(number: int, backend: str) -> None:
    x = stored(f"simple_{number}")
    am, lm = x["am"].requires_grad_(), x["lm"].requires_grad_()
    found = simple_rnnt_loss(am, lm, x["targets"], x["logit_lengths"], x["target_lengths"], backend=backend)
    close(found.loss, x["loss"], 1e-5)
    grads = torch.autograd.grad(found.loss.sum(), (am, lm))
    for grad, name in zip(grads, ("grad_am", "grad_lm"), strict=True):
        close(grad, x[name])
    # k2's are (B, U, T+1) and (B, U+1, T)
    close(found.label_occupation, x["label_occupation"][..., :-1].mT)
    close(found.blank_occupation, x["blank_occupation"].mT)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", range(3))
def test_smoothed(number: int, backend: str) -> None:
    """With k2's unigram, through which the gradient flows: the mean over all rows of lm, padding included."""
    x = stored(f"simple_{number}")
    am, lm = x["am"].requires_grad_(), x["lm"].requires_grad_()
    losses = simple_rnnt_loss(
        am,
        lm,
        x["targets"],
        x["logit_lengths"],
        x["target_lengths"],
        am_scale=float(x["smoothed_am_scale"]),
        lm_scale=float(x["smoothed_lm_scale"]),
        unigram=lm.softmax(-1).mean((0, 1)),
        backend=backend,
    ).loss
    close(losses, x["smoothed_loss"], 1e-5)
    grads = torch.autograd.grad(losses.sum(), (am, lm))
    for grad, name in zip(grads, ("smoothed_grad_am", "smoothed_grad_lm"), strict=True):
        close(grad, x[name])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", range(3))
def test_pruned(number: int, backend: str) -> None:
    x = stored(f"pruned_{number}")
    logits = x["logits"].requires_grad_()
    index = x["targets"], x["ranges"], x["logit_lengths"], x["target_lengths"]
    losses = pruned_rnnt_loss(logits, *index, backend=backend)
    close(losses, x["loss"], 1e-5)
    (grad,) = torch.autograd.grad(losses.sum(), logits)
    close(grad, x["grad"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_fused_pruned_on_the_ranges_of_k2(backend: str) -> None:
    """A joiner without weights to speak of: the pruned loss of logits that are tanh(encoder + predictor)."""
    x, y = stored("pruned_1"), stored("simple_1")
    index = x["targets"], x["ranges"], x["logit_lengths"], x["target_lengths"]
    encoder, predictor = y["am"], y["lm"]
    V = encoder.shape[-1]
    inside = predictor[torch.arange(3)[:, None, None], x["ranges"]]
    wanted = pruned_rnnt_loss(torch.tanh(encoder[:, :, None] + inside), *index, backend="reference")
    found = fused_pruned_rnnt_loss(encoder, predictor, torch.eye(V), None, *index, backend=backend)
    close(found, wanted, 1e-5)


@pytest.mark.parametrize("number", range(3))
def test_our_bounds_keep_as_much_as_k2s(number: int) -> None:
    """On the occupations of `simple_*`, whose lengths are the same."""
    x, y = stored(f"pruned_{number}"), stored(f"simple_{number}")
    lengths = x["logit_lengths"], x["target_lengths"]
    label, blank = y["label_occupation"][..., :-1].mT.contiguous(), y["blank_occupation"].mT.contiguous()
    S = x["ranges"].shape[-1]
    ours = pruning_bounds(label, blank, *lengths, S)
    node = blank + torch.nn.functional.pad(label, (0, 1))
    within = torch.arange(node.shape[1])[None, :, None] < lengths[0][:, None, None]
    kept = [(node.gather(2, ranges) * within).sum((1, 2)) for ranges in (ours, x["ranges"])]
    assert (kept[0] >= kept[1] - 1e-3).all()
