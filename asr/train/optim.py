"""AdamW or NT-ASGD, with linear warm-up and cosine decay.

Weight decay acts on matrices only: biases, norms and embeddings are left alone (Loshchilov and Hutter 2019
for AdamW; the exclusion is common practice). NT-ASGD is plain SGD, the averaging of whose weights begins by
itself (asr.train.asgd); it wants a learning rate of 1 to 30 that stays: warmup_steps 0, final_lr 1.

Parts of the network may learn more slowly than the rest (`rates`), as those do best whose weights come from
elsewhere and know much already (Howard and Ruder 2018, "Universal language model fine-tuning for text
classification", section 3.2).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from asr.config import Config
from asr.errors import ConfigError

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """The optimiser and its learning-rate schedule."""

    kind: Literal["adamw", "nt-asgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    """Highest learning rate, at the end of the warm-up."""
    warmup_steps: int = Field(200, ge=0)
    warmup_share: float = Field(1.0, ge=0, le=1)
    """The warm-up takes at most this share of the run."""
    rates: dict[str, Annotated[float, Field(gt=0)]] = Field({})
    """Shares of the learning rate by the beginning of parameters' names, e.g. encoder: 0.2; the longest that
    fits counts, and what none fits learns at 1."""
    final_lr: float = Field(0.02, ge=0, le=1)
    """Learning rate at the end, as a share of `lr`."""
    weight_decay: float = Field(1e-2, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    """adamw."""
    patience: int = Field(5, ge=1)
    """nt-asgd: validations without a lower loss after which averaging begins."""


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over the parameters of `model`, matrices decayed and the rest not.

    Every group has the share of the learning rate that it learns at, "rate". Raises ConfigError for a rate of
    what the model does not have.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    fitting = set[str]()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        prefixes = [prefix for prefix in config.rates if is_within(name, prefix)]
        fitting.update(prefixes)
        rate = config.rates[max(prefixes, key=len)] if prefixes else 1.0
        decayed = parameter.dim() > 1 and id(parameter) not in embeddings
        found.setdefault((rate, decayed), []).append(parameter)
    _refuse_unknown(set(config.rates) - fitting, model)
    groups = [
        {"params": parameters, "weight_decay": config.weight_decay if decayed else 0.0, "rate": rate}
        for (rate, decayed), parameters in sorted(found.items(), key=lambda item: item[0], reverse=True)
    ]
    if config.kind == "nt-asgd":
        return torch.optim.SGD(groups, lr=config.lr)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


def is_within(name: str, prefix: str) -> bool:
    """Whether `prefix` names a parameter or one of the modules that it is in."""
    return f"{name}.".startswith(f"{prefix}.")


def _refuse_unknown(prefixes: set[str], model: nn.Module) -> None:
    if prefixes:
        parts = sorted({name.split(".")[0] for name, _ in model.named_parameters()})
        raise ConfigError(
            f"optimizer.rates: expected names of parameters, found none that begins with {min(prefixes)!r}; "
            f"the network has {', '.join(parts)}"
        )


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Learning rate of `step` (from 0) of `total_steps`: linear rise, then half a cosine."""
    warmup = min(config.warmup_steps, int(config.warmup_share * total_steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * (config.final_lr + (1 - config.final_lr) * cosine)
