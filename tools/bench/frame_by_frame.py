"""Greedy transducer search frame by frame, batched: as it was before it went from label to label.

Kept as a peer of tools/bench/search.py, for topologies where blank takes one frame and labels none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asr import state as states
from asr.search import Token
from asr.transducer import Transducer


@torch.inference_mode()
def frame_by_frame(
    model: Transducer, encoded: Tensor, lengths: Tensor, max_symbols: int
) -> list[list[Token]]:
    """Search encoder frames (B, T, E): at every frame, the batch goes on until no stream emits."""
    batch = len(lengths)
    frames = model.joiner.encoder(encoded)
    tokens: list[list[Token]] = [[] for _ in range(batch)]
    blanks = torch.full((batch, 1), model.blank)
    y, predictor = model.predictor(blanks, model.predictor.initial_state(batch))
    projected = model.joiner.predictor(y[:, 0])
    for t in range(int(lengths.max())):
        searching = t < lengths
        for _ in range(max_symbols):
            logits = model.joiner.combine(frames[:, t], projected).float()
            best, label = logits.max(dim=-1)
            log_prob = best - logits.logsumexp(dim=-1)
            searching = searching & (label != model.blank)
            emitting = searching.nonzero()[:, 0]
            if not len(emitting):
                break
            found = zip(emitting.tolist(), label[emitting].tolist(), log_prob[emitting].tolist(), strict=True)
            for stream, token, value in found:
                tokens[stream].append(Token(token, t, t + 1, value))
            y, advanced = model.predictor(label[:, None], predictor)
            predictor = states.where(searching, advanced, predictor)
            projected = torch.where(searching[:, None], model.joiner.predictor(y[:, 0]), projected)
    return tokens
