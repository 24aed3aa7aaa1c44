"""NT-ASGD against its definition: when averaging begins, and what it gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from asr.train.asgd import TriggeredAverage, is_triggered
from asr.train.checkpoint import Progress
from asr.train.distributed import World
from asr.train.learner import Learner
from asr.train.lm_recipe import LmRecipe
from asr.train.optim import OptimizerConfig, build_optimizer
from asr.train.recipe import TrainingConfig


@pytest.mark.parametrize(
    ("losses", "patience", "first"),
    [
        ([5, 4, 3, 2, 1], 2, None),  # it falls all the time
        ([3, 2, 2.5, 2.4, 2.3, 2.2], 2, 4),  # 2.3 is above the 2 of three before; 2.4 is below the 3
        ([3, 2, 2.5, 1.9, 1.95, 1.8], 2, None),  # in between it was better
        ([1, 2], 1, None),  # too few to tell
        ([1, 1.5, 2], 1, 2),
        ([1, 1, 1, 1], 1, None),  # as low is not above
    ],
)
def test_trigger(losses: list[float], patience: int, first: int | None) -> None:
    fired = [t for t in range(len(losses)) if is_triggered(losses[: t + 1], patience)]
    by_hand = [t for t in range(len(losses)) if t > patience and losses[t] > min(losses[: t - patience])]
    assert fired == by_hand
    assert (fired[0] if fired else None) == first


def test_the_average_is_that_of_the_weights_since_the_trigger() -> None:
    trained, average = nn.Linear(2, 2), nn.Linear(2, 2)
    kept = TriggeredAverage(trained, average)
    history, since = [], None
    for step in range(9):
        with torch.no_grad():
            trained.weight.copy_(torch.randn(2, 2, generator=torch.Generator().manual_seed(step)))
        kept.update(step, since)
        history.append(trained.weight.detach().clone())
        if since is None:
            assert torch.equal(average.weight, trained.weight)
        else:
            # `since` steps were done at the trigger: the weights behind step since - 1 are the first.
            expected = torch.stack(history[since - 1 :]).mean(dim=0)
            torch.testing.assert_close(average.weight, expected)
        if step == 4:
            since = step + 1


def test_steps_are_plain_sgd_and_the_learner_triggers() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 1, bias=False)
    recipe = LmRecipe(
        optimizer=OptimizerConfig(
            kind="nt-asgd", lr=0.5, warmup_steps=0, final_lr=1.0, weight_decay=0, patience=1
        ),
        training=TrainingConfig(clip_norm=1e9),
    )
    learner, progress = Learner(network, recipe, World(torch.device("cpu"))), Progress(total_steps=6)
    weight, history = network.weight.detach().clone(), []
    for step, loss in enumerate([3.0, 2.0, 4.0, 5.0, 1.0, 1.0]):
        gradient = torch.full((1, 3), float(step + 1))
        learner.trained.weight.grad = 4 * gradient
        assert learner.update(4, progress).usable
        progress.step += 1
        weight = weight - 0.5 * gradient
        history.append(weight)
        torch.testing.assert_close(learner.trained.weight.detach(), weight)
        began = learner.validated(loss, progress)
        assert began == (step == 2)  # 4 is above the 3 of two validations before
    assert progress.averaging_since == 3
    assert progress.dev_losses == [3.0, 2.0, 4.0]
    torch.testing.assert_close(network.weight.detach(), torch.stack(history[2:]).mean(dim=0))
    assert not build_optimizer(recipe.optimizer, network).state_dict()["state"]
