"""The progress display of training: one live line, one line that stays per validation."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class TrainingProgress:
    """Context manager around rich's progress bar."""

    def __init__(self, console: Console, total_steps: int) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=console.quiet,
        )
        self._task = self._bar.add_task("training", total=total_steps, status="")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, step: int, epoch: int, loss: float, grad_norm: float) -> None:
        """Show the step's numbers."""
        status = f"epoch {epoch + 1} · loss {loss:.3f} · gradient {grad_norm:.2f}"
        self._bar.update(self._task, completed=step, status=status)

    def validated(self, epoch: int, headline: str, loss: float) -> None:
        """A line that stays: the dev result of an epoch."""
        self._console.print(f"epoch {epoch:3d} · {headline} · dev loss per label {loss:.4f}")
