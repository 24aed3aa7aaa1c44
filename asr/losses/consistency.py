"""Consistency of a CTC head over two views of every utterance, masked differently (CR-CTC).

    loss of view a = sum over its frames t of KL(sg(p_b[t]) || p_a[t]),    and of view b the other way round

p are the CTC head's distributions and sg stops the gradient: each view learns what the other one says, from
a part of the speech that it has not heard. The mean of both is the paper's half of the sum, as CTC's loss
there is the mean of both.

Source: Yao et al. 2024, "CR-CTC: Consistency regularization on CTC for improved speech recognition".
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from asr.lengths import padding_mask
from asr.state import wide

VIEWS = 2
"""Of every utterance, where this is trained."""


def consistency_loss(logits: Tensor, lengths: Tensor) -> Tensor:
    """(2B,) divergences in nats of logits (2B, T, V), of which `lengths` (2B,) frames count.

    Row i and row B + i are views of one utterance, and of one length. Each gets the gradient of its own loss.
    """
    # Padding is undefined; with the same logits in both views it costs nothing.
    logits = logits.masked_fill(~padding_mask(lengths, logits.shape[1])[:, :, None], 0.0)
    own = logits.log_softmax(-1, dtype=wide(logits.dtype))
    other = own.detach().roll(len(own) // VIEWS, dims=0)
    return functional.kl_div(own, other, reduction="none", log_target=True).sum(dim=(1, 2))
