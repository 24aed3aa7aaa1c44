"""English on Whisper tiny.en's encoder, made to stream: the beginning of a transducer that writes letters.

    python egs/english/whisper.py WHISPER MODEL [--set KEY=VALUE ...]
    asr finetune MODEL --data DIR --exp DIR

WHISPER is a directory with `model.safetensors` (Hugging Face's openai/whisper-tiny.en) or `model.bin` (the
same in CTranslate2's form, as faster-whisper has it). MODEL then holds its encoder and a predictor, a joiner
and a CTC head that know nothing yet, and the settings of the training that follows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from asr.config import override, save_config
from asr.data.augment import AugmentConfig, NoiseConfig, SpeedConfig, VolumeConfig
from asr.data.batches import BatchesConfig
from asr.encoders import WhisperEncoder, WhisperEncoderConfig
from asr.encoders.whisper_weights import WhisperSize, load_whisper, read_whisper, whisper_size
from asr.errors import AsrError, ConfigError
from asr.features.logmel import WHISPER_MEAN, WHISPER_STD, FbankConfig
from asr.features.specaugment import SpecAugmentConfig
from asr.joiner import JoinerConfig
from asr.layers.context import ContextConfig
from asr.losses import CtcLossConfig, LossConfig
from asr.model_directory import ModelConfig, build_network, save_model
from asr.predictors import StatelessPredictorConfig
from asr.text.tokenizer import TokenizerConfig, train_tokenizer
from asr.train.optim import OptimizerConfig
from asr.train.recipe import Recipe, TrainingConfig
from asr.train.setup import RECIPE
from asr.transducer import TransducerConfig

CONTEXTS = (
    ContextConfig(chunk=16, left_chunks=16),  # 320 ms of 20 ms frames, 5.1 s of history
    ContextConfig(chunk=32, left_chunks=8),  # 640 ms
    ContextConfig(),
)
CARD = """# Whisper's encoder under an untrained transducer

A beginning for asr finetune; it writes nothing yet. Whisper: copyright (c) 2022 OpenAI, MIT licence.
"""
TINY = WhisperSize(bins=80, dim=384, heads=6, layers=4)
LETTERS = "abcdefghijklmnopqrstuvwxyz' "


def streaming(size: WhisperSize = TINY) -> Recipe:
    """Frames of 40 ms, pooled from Whisper's 20 ms, in chunks of 320 ms, or 640 ms, or whole recordings."""
    dim, heads, layers = size.dim, size.heads, size.layers
    return Recipe(
        name="English transducer on Whisper's encoder, streaming",
        features=FbankConfig.whisper().model_copy(update={"num_mel_bins": size.bins}),
        specaugment=SpecAugmentConfig(
            freq_masks=2, max_freq_width=20, max_time_width=30, max_time_fraction=0.15
        ),
        tokenizer=TokenizerConfig(kind="char"),
        augment=AugmentConfig(
            speed=SpeedConfig(factors=(0.9, 1.0, 1.1), spread=0.05),
            volume=VolumeConfig(probability=0.5, level_db=(-40, -15)),
            noise=NoiseConfig(probability=0.2, snr_db=(5, 30)),
        ),
        batches=BatchesConfig(max_duration_s=25, cache_mb=2048),
        network=TransducerConfig(
            encoder=WhisperEncoderConfig(
                dim=dim,
                heads=heads,
                layers=layers,
                contexts=CONTEXTS,
                context_warmup_steps=0,
                pool_after=(layers,),
            ),
            predictor=StatelessPredictorConfig(dim=256, context=4),
            joiner=JoinerConfig(dim=256),
            loss=LossConfig(ctc=CtcLossConfig(weight=0.5)),
        ),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=300, rates={"encoder": 0.1}),
        training=TrainingConfig(epochs=12, keep_best=5, precision="bfloat16", ema=0.999),
    )


def begin(whisper: Path, model: Path, settings: Sequence[str] = ()) -> None:
    """Write a model directory whose encoder is that of `whisper`, by the recipe with some settings changed.

    Raises ModelError if there is no Whisper, ConfigError for settings that do not suit it.
    """
    weights = read_whisper(whisper)
    recipe = override(streaming(whisper_size(weights)), settings)
    tokenizer = train_tokenizer(recipe.tokenizer, [LETTERS])
    config = ModelConfig(features=recipe.features, network=recipe.network, vocab_size=tokenizer.vocab_size)
    torch.manual_seed(recipe.training.seed)
    network = build_network(config)
    if not isinstance(network.encoder, WhisperEncoder):
        raise ConfigError("--set network.encoder.kind: expected whisper, found another; leave it out")
    load_whisper(network.encoder, weights)
    network.norm.mean.fill_(WHISPER_MEAN)
    network.norm.scale.fill_(1 / WHISPER_STD)
    save_model(model, config, network, tokenizer, CARD)
    save_config(recipe, model / RECIPE)


def main(
    whisper: Annotated[Path, typer.Argument(help="Directory of Whisper's weights.")],
    model: Annotated[Path, typer.Argument(help="Model directory to write.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a setting: key=value.")] = None,
) -> None:
    """Write a model that begins with Whisper's encoder."""
    try:
        begin(whisper, model, set_ or [])
    except AsrError as error:
        print(f"whisper.py: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"{model}: Whisper's encoder; asr finetune {model} --data DIR --exp DIR trains the rest")


if __name__ == "__main__":
    typer.run(main)
