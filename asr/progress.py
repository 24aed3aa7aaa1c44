"""The bar that long commands show while they work: on stderr, where someone looks on, and gone at the end."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress, ProgressColumn


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A context manager; results go to stdout, and where stderr is no terminal nothing is shown."""
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
