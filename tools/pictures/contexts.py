"""Draws what every streaming mode of the encoders hears: asr/encoders/contexts.png.

    python tools/pictures/contexts.py [--output FILE]

Small encoders of each mode hear noise. Dark: what a frame of the first layer attends to, by the mask that the
encoder gave to scaled_dot_product_attention. Light: which input frames change an output frame of the stack of
three layers when they are disturbed, convolutions and subsampling included.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from torch import Tensor
from torch.nn import functional

from asr.encoders import (
    ConformerEncoderConfig,
    EncoderConfig,
    LstmEncoderConfig,
    TransformerEncoderConfig,
    build_encoder,
)
from asr.layers.context import ContextConfig
from asr.layers.subsampling import SubsamplingConfig

OUTPUT = Path(__file__).parents[2] / "asr" / "encoders" / "contexts.png"
FRAMES, FACTOR, BINS = 24, 4, 8
HEARD, ATTENDED = 1, 2
STACK = SubsamplingConfig(kind="stack", factor=FACTOR)


class Mode(NamedTuple):
    title: str
    config: EncoderConfig


def conformer(chunk: int | None, left_chunks: int | None, **options: object) -> ConformerEncoderConfig:
    return ConformerEncoderConfig(
        dim=16,
        heads=2,
        layers=3,
        kernel=5,
        contexts=(ContextConfig(chunk=chunk, left_chunks=left_chunks),),
        subsampling=STACK,
        **options,
    )


MODES = (
    Mode("Conformer, full context", conformer(None, None)),
    Mode("Conformer, chunks of 6,\n1 chunk of history", conformer(6, 1)),
    Mode("Conformer, chunks of 2,\n3 chunks of history", conformer(2, 3)),
    Mode("Conformer, causal,\n6 frames of history", conformer(1, 6, convolution="causal")),
    Mode("Conformer, chunks of 3\nand a lookahead of 2", conformer(3, 2, lookahead=2)),
    Mode(
        "Transformer, 4 frames back,\n1 ahead in every layer",
        TransformerEncoderConfig(dim=16, heads=2, layers=3, left=4, right=1, subsampling=STACK),
    ),
    Mode("LSTM, lookahead of 2", LstmEncoderConfig(hidden=16, layers=3, lookahead=2, subsampling=STACK)),
    Mode("BiLSTM", LstmEncoderConfig(hidden=16, layers=3, bidirectional=True, subsampling=STACK)),
)


@torch.no_grad()
def pattern(config: EncoderConfig) -> Tensor:
    """(FRAMES, FRAMES) int: ATTENDED, HEARD or 0 for output frame (row) and input frame (column)."""
    torch.manual_seed(0)
    encoder = build_encoder(config, BINS, 0.01).double().eval()
    x = torch.randn(1, FRAMES * FACTOR, BINS, dtype=torch.float64)
    length = torch.tensor([FRAMES * FACTOR])
    masks: list[Tensor] = []
    attention = functional.scaled_dot_product_attention

    def noted(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones(q.shape[2], k.shape[2]) if attn_mask is None else attn_mask[0, 0]
        masks.append(mask.expand(q.shape[2], -1))
        return attention(q, k, v, attn_mask=attn_mask)

    with mock.patch.object(functional, "scaled_dot_product_attention", noted):
        y = encoder(x, length).y[0, :FRAMES]
    found = torch.zeros(FRAMES, FRAMES, dtype=torch.int64)
    for frame in range(FRAMES):
        disturbed = x.clone()
        disturbed[:, frame * FACTOR : (frame + 1) * FACTOR] += 1.0
        moved = encoder(disturbed, length).y[0, :FRAMES] - y
        found[moved.abs().amax(dim=1) > 1e-12, frame] = HEARD
    if masks:
        found[masks[0][:FRAMES, :FRAMES].bool()] = ATTENDED
    return found


def draw(output: Path) -> None:
    columns = 4
    figure, panels = pyplot.subplots(
        len(MODES) // columns, columns, figsize=(13, 7.4), sharex=True, sharey=True, layout="constrained"
    )
    colours = ListedColormap(["white", "#cfe0f3", "#2f6db3"])
    for mode, panel in zip(MODES, panels.flat, strict=True):
        panel.pcolormesh(pattern(mode.config), cmap=colours, vmin=0, vmax=2, edgecolor="#e4e4e4", lw=0.3)
        panel.plot([0, FRAMES], [0, FRAMES], color="#b03a2e", lw=1)
        panel.set_title(mode.title, fontsize=10)
        panel.set_aspect("equal")
    panels[0, 0].invert_yaxis()
    for panel in panels[-1]:
        panel.set_xlabel("frame that is heard")
    for panel in panels[:, 0]:
        panel.set_ylabel("frame that is answered")
    figure.legend(
        handles=[
            Patch(color="#2f6db3", label="attended to by a layer (its mask)"),
            Patch(color="#cfe0f3", label="heard through all three layers (measured)"),
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    figure.savefig(output, dpi=90)
    print(output)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    draw(parser.parse_args().output)


if __name__ == "__main__":
    main()
