"""tools/pictures draws what encoders hear as it is."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from asr.layers.context import ContextConfig

TOOL = Path(__file__).parents[2] / "tools" / "pictures" / "contexts.py"


@pytest.fixture(scope="module")
def contexts(load_script) -> ModuleType:
    return load_script(TOOL)


@pytest.mark.parametrize(("chunk", "left"), [(6, 1), (2, 3), (1, 6), (None, None)])
def test_dark_is_the_mask_of_the_context(contexts: ModuleType, chunk: int | None, left: int | None) -> None:
    found = contexts.pattern(contexts.conformer(chunk, left))
    mask = ContextConfig(chunk=chunk, left_chunks=left).mask(contexts.FRAMES)
    assert torch.equal(found == contexts.ATTENDED, mask)
    # deeper layers hear further back and never further ahead
    assert [row.nonzero().max() for row in found] == [row.nonzero().max() for row in mask]


def test_a_lookahead_is_heard(contexts: ModuleType) -> None:
    found = contexts.pattern(contexts.conformer(3, 2, lookahead=2))
    last = [int(row.nonzero().max()) for row in found]
    assert last == [min(frame // 3 * 3 + 4, contexts.FRAMES - 1) for frame in range(contexts.FRAMES)]


def test_the_picture(contexts: ModuleType, tmp_path: Path) -> None:
    contexts.draw(tmp_path / "contexts.png")
    assert (tmp_path / "contexts.png").read_bytes().startswith(b"\x89PNG")
