"""Learning rates by part of the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from asr.errors import ConfigError
from asr.train.checkpoint import Progress
from asr.train.distributed import World
from asr.train.learner import Learner
from asr.train.optim import OptimizerConfig, build_optimizer
from asr.train.recipe import Recipe, TrainingConfig


def network() -> nn.Module:
    return nn.ModuleDict(
        {
            "encoder": nn.ModuleDict({"low": nn.Linear(2, 2), "high": nn.Linear(2, 2)}),
            "encoder_head": nn.Embedding(3, 2),
        }
    )


def test_the_longest_name_that_fits_decides() -> None:
    model = network()
    config = OptimizerConfig(rates={"encoder": 0.5, "encoder.low": 0.1}, weight_decay=0.3)
    optimizer = build_optimizer(config, model)
    found = {
        id(parameter): (group["rate"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    expected = {
        "encoder.low.weight": (0.1, 0.3),
        "encoder.low.bias": (0.1, 0.0),
        "encoder.high.weight": (0.5, 0.3),
        "encoder.high.bias": (0.5, 0.0),
        "encoder_head.weight": (1.0, 0.0),
    }
    assert {name: found[id(p)] for name, p in model.named_parameters()} == expected


def test_without_rates_there_are_the_decayed_and_the_others() -> None:
    groups = build_optimizer(OptimizerConfig(), network()).param_groups
    assert [(group["rate"], len(group["params"])) for group in groups] == [(1.0, 2), (1.0, 3)]
    assert groups[0]["weight_decay"] > groups[1]["weight_decay"] == 0


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="none that begins with 'enc'; the network has encoder, encoder_head"
    ):
        build_optimizer(OptimizerConfig(rates={"encoder": 0.5, "enc": 0.5}), network())
    assert isinstance(build_optimizer(OptimizerConfig(rates={"encoder": 1}), network()), torch.optim.AdamW)


def test_a_step_is_as_long_as_its_rate() -> None:
    """Adam's first step is the learning rate itself, whatever the gradient."""
    model = network()
    optimizer = OptimizerConfig(lr=0.1, warmup_steps=0, weight_decay=0, rates={"encoder.low": 0.1})
    recipe = Recipe(optimizer=optimizer, training=TrainingConfig(clip_norm=1e9))
    learner = Learner(model, recipe, World(torch.device("cpu")))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert learner.update(1, Progress(total_steps=10)).lr == pytest.approx(0.1)
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - before[name]).abs()
        expected = 0.01 if name.startswith("encoder.low") else 0.1
        torch.testing.assert_close(moved, torch.full_like(moved, expected), rtol=1e-4, atol=0)
