"""The end of a run: average the best checkpoints, keep what has the lower loss on dev, write the model."""

from __future__ import annotations

from pathlib import Path

from asr.model_directory import WEIGHTS, load_weights
from asr.train import checkpoint
from asr.train.distributed import World
from asr.train.setup import CHECKPOINTS
from asr.train.task import Measured, Say, Task


def finish(task: Task, exp: Path, progress: checkpoint.Progress, say: Say, world: World) -> Measured:
    """Make `exp` a model directory; returns what the weights that were kept give on dev."""
    network, directory = task.network, exp / CHECKPOINTS
    best = world.from_main(lambda: checkpoint.best(directory, task.recipe.training.keep_best))
    network.load_state_dict(checkpoint.average(best))
    dev = task.validate(world)
    single, chosen = checkpoint.read_progress(best[0]), f"average of {len(best)} checkpoints"
    # On a few hundred words of dev the WER of single checkpoints jumps by chance; the loss tells them apart.
    if single.dev_loss is not None and single.dev_loss < dev.loss:
        load_weights(network, best[0] / WEIGHTS)
        dev, chosen = task.validate(world), best[0].name
    world.from_main(lambda: task.write(exp, chosen, dev, progress))
    say(f"{' '.join(dev.headline.split())} ({chosen}){task.mark}")
    return dev
