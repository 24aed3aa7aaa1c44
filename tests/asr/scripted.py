"""A search that finds what it is told, and scripts of letters for it."""

from __future__ import annotations

import torch

from asr.search import SearchOutput, Settled, Token
from asr.text.tokenizer import TokenizerConfig, train_tokenizer


class Scripted:
    """A search that finds what it is told: (label, first frame, frame behind the last) of one stream.

    A label is given when its last frame has been searched, and waits, open, from its first one on.
    """

    def __init__(self, script: list[tuple[int, int, int]]) -> None:
        self.script = [Token(label, start, stop, 0.0) for label, start, stop in script]
        self.said: list[list[int]] = []

    def initial_state(self, batch: int, device: torch.device | None = None) -> torch.Tensor:
        return torch.zeros(batch, dtype=torch.int64)

    def __call__(self, encoded: torch.Tensor, lengths: torch.Tensor, state: torch.Tensor) -> SearchOutput:
        after = state + lengths
        found = [token for token in self.script if int(state) < token.end_frame <= int(after)]
        return SearchOutput([found], after, [0])

    def flush(self, state: torch.Tensor) -> list[list[Token]]:
        return [[t._replace(end_frame=int(state)) for t in self.script if t.frame < int(state) < t.end_frame]]

    def pending(self, state: torch.Tensor) -> list[list[Token]]:
        return [[]]

    def settle(self, state: torch.Tensor) -> Settled:
        return Settled([[]], state)

    def restart(self, state: torch.Tensor, said: list[list[int]]) -> torch.Tensor:
        self.said += said
        return state

    def frames(self, state: torch.Tensor) -> torch.Tensor:
        return state


def letters(text: str, frame: int, every: int = 1, width: int = 1) -> list[tuple[int, int, int]]:
    """The labels of a text, a letter every so many frames."""
    return [(label(c), frame + i * every, frame + i * every + width) for i, c in enumerate(text)]


def label(letter: str) -> int:
    return LETTERS.symbols.index(letter.replace(" ", "▁"))


LETTERS = train_tokenizer(TokenizerConfig(kind="char"), ["ab cdefghijklmnopqrstuvwxyz"])
