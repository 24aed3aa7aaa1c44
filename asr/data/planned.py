"""Batches that are planned before they are made: the order, the sharing out, and going on where it stopped.

What the plans are of (recordings, asr.data.batches; sentences, asr.data.texts) is for subclasses to say. An
iteration goes on where the last one was left, at the next optimiser step's batches; `state_dict` is small and
says where that is, and a fingerprint keeps a run from going on with other data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Generic, TypeVar

from asr.data.plan import Dealing, EpochPlan, Turns
from asr.errors import AsrError, TrainingError

P = TypeVar("P")
B = TypeVar("B", bound=Any)
"""A frozen dataclass with `borrowed`."""


class PlannedBatches(ABC, Generic[P, B]):
    """Batches B, epoch after epoch, of plans P; see the module's text."""

    training: bool
    """False starts at the beginning with every iteration."""

    def __init__(self, training: bool) -> None:
        self.training = training
        self._epoch = 0
        self._position = 0
        self._dealing = Dealing()
        self._planned: tuple[int, EpochPlan[P]] | None = None

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes whenever the sequence of batches would."""

    @abstractmethod
    def _plan(self) -> EpochPlan[P]:
        """The plans of this epoch."""

    @abstractmethod
    def _made(self) -> Iterator[B | AsrError]:
        """The batches of `remaining()`, or what kept one from being made."""

    def __iter__(self) -> Iterator[B]:
        """The rest of the epoch; raises what `steps` does."""
        for own in self.steps():
            yield from own

    def steps(self) -> Iterator[list[B]]:
        """The rest of the epoch, for each optimiser step the batches that are dealt to this process.

        Raises DataError naming the utterance or sentence of which no batch can be made.
        """
        if not self.training:
            self._position = 0
        made = self._made()
        for turns in self._turns():
            own: list[B] = [_checked(next(made)) for _ in turns.own]
            if turns.borrowed is not None:
                own.append(replace(_checked(next(made)), borrowed=True))
            self._position = turns.end
            yield own
        self._epoch, self._position = self._epoch + 1, 0

    def deal(self, dealing: Dealing) -> None:
        """Share the batches with other processes, from the next iteration on."""
        self._dealing = dealing

    def __len__(self) -> int:
        """Batches in the whole of this epoch, of all processes."""
        return len(self.plans())

    @property
    def epoch(self) -> int:
        """The epoch that iteration goes on with."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; in the epoch under way nothing changes."""
        if epoch != self._epoch:
            self._epoch, self._position = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Where iteration stands; batches that were handed out count as done."""
        return {"epoch": self._epoch, "position": self._position, "fingerprint": self.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; raises TrainingError if the data or settings are others."""
        if state["fingerprint"] != self.fingerprint():
            raise TrainingError(
                "expected the training data and batch settings of the checkpoint, found others; "
                "restore them or start a new experiment directory"
            )
        self._epoch, self._position = int(state["epoch"]), int(state["position"])

    def plans(self) -> EpochPlan[P]:
        """The batches of this epoch, as plans."""
        if self._planned is None or self._planned[0] != self._epoch:
            self._planned = (self._epoch, self._plan())
        return self._planned[1]

    def remaining(self) -> Iterator[P]:
        """The batches that this process is still to make in this epoch."""
        plans = self.plans()
        for turns in self._turns():
            numbers = turns.own if turns.borrowed is None else (*turns.own, turns.borrowed)
            yield from (plans[number] for number in numbers)

    def _turns(self) -> Iterator[Turns]:
        return self._dealing.steps(self._position, len(self.plans()))


def _checked(made: B | AsrError) -> B:
    """A batch; raises the error that was found in its place."""
    if isinstance(made, AsrError):
        raise made
    return made
