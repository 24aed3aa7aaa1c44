"""Greedy search in CUDA graphs finds what the definition finds on a CPU: `python tools/gpu_check` runs this.

Without a GPU test_greedy.py checks all but the recording.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("pydantic", reason="the toolkit needs pydantic: pip install pydantic pyyaml")

from greedy_cases import MAX_SYMBOLS, PREDICTORS, TOPOLOGIES, Case, case, check, in_chunks
from greedy_cases import make as make_model

from asr.search import GreedySearch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def on_gpu(given: Case) -> Case:
    return given._replace(
        model=given.model.cuda(), encoded=given.encoded.cuda(), lengths=given.lengths.cuda()
    )


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_recorded_steps_equal_the_definition(topology: str, predictor: str) -> None:
    given = on_gpu(case(topology, predictor, blank=1.0, seed=1))
    search = GreedySearch(given.model, MAX_SYMBOLS, window=3)
    for _ in range(2):  # the second time in buffers that have been used
        check(search(given.encoded, given.lengths, search.initial_state(5, given.encoded.device)), given)
    check(in_chunks(search, given, [5, 0, 11, 2, 7]), given)
    assert search.graphs is not None
    assert search.graphs._kept


def test_weights_that_moved_are_read_where_they_are() -> None:
    given = on_gpu(case("rnnt", seed=1))
    search = GreedySearch(given.model, MAX_SYMBOLS)
    state = search.initial_state(5, given.encoded.device)
    search(given.encoded, given.lengths, state)
    silent = make_model(TOPOLOGIES["rnnt"], blank=1000.0).cuda()
    given.model.joiner.output.weight = silent.joiner.output.weight
    given.model.joiner.output.bias = silent.joiner.output.bias
    assert search(given.encoded, given.lengths, state).tokens == [[]] * 5


def test_under_autocast_too() -> None:
    given = on_gpu(case("rnnt", seed=1))
    search = GreedySearch(given.model, MAX_SYMBOLS)
    with torch.autocast("cuda", torch.bfloat16):
        found = search(given.encoded, given.lengths, search.initial_state(5, given.encoded.device))
    assert len(found.tokens) == 5
    assert not search.graphs._kept
