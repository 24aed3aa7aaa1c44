"""Networks too large to train whole on every process: FSDP2, `training.sharding: fsdp2`.

Every process keeps one part of each parameter, of its gradient and of its moments (Zhao et al. 2023,
"PyTorch FSDP"; here torch's `fully_shard`), and the whole of a layer only while it is at work. What is
trained is a sharded copy. Beside it stays the whole network, which validation, checkpoints and the final
averaging use as if nothing were sharded: the weights are gathered into it first. It costs one copy of the
weights per process, against the four (weights, gradients, two moments) that sharding divides.

A gradient arrives as the mean over the processes, of which every one must go through equally many batches:
layers are fetched from the others, so a process without a batch would keep them waiting.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from asr.errors import ConfigError
from asr.train.distributed import World
from asr.transducer import Transducer


def shard(network: Transducer, world: World) -> Transducer:
    """A copy of `network` whose parameters are spread over the processes; raises ConfigError."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    scalars = [name for name, parameter in network.named_parameters() if parameter.dim() == 0]
    if scalars:
        raise ConfigError(
            f"training.sharding=fsdp2 cannot share {scalars[0]} out, a single number; set it to none"
        )
    sharded = copy.deepcopy(network)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for layer in sharded.encoder.blocks:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    for method in ("encode_views", "losses"):
        register_fsdp_forward_method(sharded, method)
    return sharded


@torch.no_grad()
def gather_weights(sharded: nn.Module, network: nn.Module) -> None:
    """Copy the weights of a sharded network into a whole one; all processes must."""
    whole_network = network.state_dict()
    for name, tensor in sharded.state_dict().items():
        whole_network[name].copy_(whole(tensor))


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is spread over processes, gathered on each of them; others as they are."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def spread_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, which every process has, spread as `parameter` is."""
    layout: Any = getattr(parameter, "device_mesh", None)
    if layout is None or tensor.dim() == 0:  # AdamW's count of steps is the same everywhere
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(tensor.to(parameter.device), layout, parameter.placements, src_data_rank=None)
