"""The end of a run: average the best checkpoints, keep what has the lower loss on dev, write the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from asr.model_directory import WEIGHTS, load_weights, save_model
from asr.search import Search
from asr.train import checkpoint
from asr.train.card import facts, model_card
from asr.train.distributed import World
from asr.train.metrics import read_log
from asr.train.setup import CHECKPOINTS, RunSetup
from asr.train.validate import validate


def finish(
    setup: RunSetup,
    exp: Path,
    progress: checkpoint.Progress,
    search: Search,
    say: Callable[[str], None],
    world: World,
) -> float:
    """Make `exp` a model directory; returns the dev WER of the weights that were kept, in 0..1."""
    network, directory = setup.network, exp / CHECKPOINTS
    best = world.from_main(lambda: checkpoint.best(directory, setup.recipe.training.keep_best))
    network.load_state_dict(checkpoint.average(best))
    dev = validate(network, search, setup.dev, setup.tokenizer, world)
    single, chosen = checkpoint.read_progress(best[0]), f"average of {len(best)} checkpoints"
    # On a few hundred words of dev the WER of single checkpoints jumps by chance; the loss tells them apart.
    if single.dev_loss is not None and single.dev_loss < dev.loss:
        load_weights(network, best[0] / WEIGHTS)
        dev, chosen = validate(network, search, setup.dev, setup.tokenizer, world), best[0].name
    throughput = progress.heard_s / max(progress.spent_s, 1e-9)

    def write() -> None:
        # matplotlib: a second that only the end of training pays
        from asr.score.picture import draw_training
        from asr.train.page import write_page

        known = facts(setup, chosen, dev.wer, throughput)
        draw_training(exp / "training.png", read_log(exp))
        save_model(exp, setup.model_config, network, setup.tokenizer, model_card(setup, known))
        write_page(exp, setup, known, dev.report)

    world.from_main(write)
    say(f"dev WER {100 * dev.wer:.2f} % ({chosen}){setup.mark}")
    return dev.wer
