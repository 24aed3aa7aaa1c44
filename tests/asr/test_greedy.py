"""Greedy transducer search is what its definition says, whatever the window, the batch and the chunks."""

from __future__ import annotations

import pytest
import torch
from greedy_cases import MAX_SYMBOLS, PREDICTORS, TOPOLOGIES, WIDTH, Case, case, check, in_chunks, make
from torch.utils._python_dispatch import TorchDispatchMode

from asr import state as states
from asr.losses import TopologyConfig
from asr.search import GreedySearch, Token
from asr.search.label_graph import STEPS, Buffers, LabelGraphs, power_of_two
from asr.search.label_loop import LabelLoop, Streams

EMITTING = [name for name in TOPOLOGIES if name not in ("monotonic", "ctc", "tdt, no zero")]
"""Topologies whose labels can stay on a frame."""


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Every topology, from models that emit on most frames to some that rarely do."""
    found = [
        case(name, blank=blank, seed=seed) for name in TOPOLOGIES for seed, blank in enumerate((0, 1.5, 4))
    ]
    assert sum(len(tokens) for each in found for tokens in each.tokens) > 600
    assert sum(sum(each.truncated) for each in found) > 100
    for each in found:
        assert any(each.tokens)
    return found


@pytest.mark.parametrize("window", [1, 2, 3, 8, 64])
def test_every_topology_equals_the_definition(cases: list[Case], window: int) -> None:
    for each in cases:
        search = GreedySearch(each.model, MAX_SYMBOLS, window)
        check(search(each.encoded, each.lengths, search.initial_state(5)), each)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_every_predictor_equals_the_definition(predictor: str) -> None:
    for name in ("rnnt", "tdt"):
        given = case(name, predictor, 1.0)
        search = GreedySearch(given.model, MAX_SYMBOLS)
        check(search(given.encoded, given.lengths, search.initial_state(5)), given)


@pytest.mark.parametrize("chunks", [[1] * 36, [5, 0, 11, 2, 7], [36]], ids=["ones", "uneven", "all but one"])
def test_any_chunking_finds_the_same(cases: list[Case], chunks: list[int]) -> None:
    for each in cases:
        check(in_chunks(GreedySearch(each.model, MAX_SYMBOLS, 4), each, chunks), each)


def test_a_stream_does_not_depend_on_those_beside_it(cases: list[Case]) -> None:
    for each in cases[:3]:
        search = GreedySearch(each.model, MAX_SYMBOLS)
        for stream in range(5):
            one = slice(stream, stream + 1)
            alone = search(each.encoded[one], each.lengths[one], search.initial_state(1))
            check(alone, each._replace(tokens=each.tokens[one], truncated=each.truncated[one]))


def test_frames_of_an_hour_are_counted_on() -> None:
    given = case("tdt", seed=1)
    search = GreedySearch(given.model, MAX_SYMBOLS)
    late = search.initial_state(5)
    late = type(late)(late.predictor, late.projected, late.frame + 90_000, late.skip, late.held)
    found = search(given.encoded, given.lengths, late)
    expected = [
        [Token(t.id, t.frame + 90_000, t.end_frame + 90_000, t.log_prob) for t in each]
        for each in given.tokens
    ]
    check(found, given._replace(tokens=expected))
    assert search.frames(found.state).tolist() == (given.lengths + 90_000).tolist()


def test_nothing_to_search_changes_nothing() -> None:
    model = make(TOPOLOGIES["tdt"])
    search = GreedySearch(model, MAX_SYMBOLS)
    state = search(torch.randn(2, 5, WIDTH), torch.tensor([5, 3]), search.initial_state(2)).state
    for frames in (0, 3):
        found = search(torch.randn(2, frames, WIDTH), torch.zeros(2, dtype=torch.int64), state)
        assert found.tokens == [[], []]
        assert found.truncated == [0, 0]
        for a, b in zip(states.leaves(found.state), states.leaves(state), strict=True):
            assert torch.equal(a, b)


def test_a_batch_of_no_streams() -> None:
    search = GreedySearch(make(TOPOLOGIES["rnnt"]))
    state = search.initial_state(0)
    for frames in (0, 4):
        found = search(torch.zeros(0, frames, WIDTH), torch.zeros(0, dtype=torch.int64), state)
        assert found.tokens == []
        assert found.truncated == []
    assert search.flush(state) == []


def test_a_symbol_may_consume_more_frames_than_are_left() -> None:
    """What goes on into the next chunks is skipped there, over an empty one too."""
    model = make(TopologyConfig(name="multi_blank", durations=(7,)))
    with torch.no_grad():
        model.joiner.output.bias[-1] += 1000
    search = GreedySearch(model, 1)
    state, left = search.initial_state(1), []
    for frames in (1, 0, 2, 3, 2):
        state = search(torch.randn(1, frames, WIDTH), torch.tensor([frames]), state).state
        left.append(int(state.skip))
    assert left == [6, 6, 4, 1, 6]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_an_endlessly_emitting_model_is_bounded_and_reported(topology: str) -> None:
    model = make(TOPOLOGIES[topology])
    with torch.no_grad():
        model.joiner.output.bias[0] -= 1000
        if model.topology.big_blanks:
            model.joiner.output.bias[-model.topology.big_blanks :] -= 1000
        if model.topology.durations:  # the shortest, which need not be 0
            durations = [arc.frames for arc in model.topology.arcs if arc.kind == "label"]
            model.joiner.output.bias[model.vocab_size + durations.index(min(durations))] += 1000
    search = GreedySearch(model, 3)
    found = search(torch.randn(2, 6, WIDTH), torch.tensor([6, 4]), search.initial_state(2))
    if topology in EMITTING:
        assert [len(tokens) for tokens in found.tokens] == [18, 12]
        assert found.truncated == [6, 4]
    else:
        assert all(1 <= len(tokens) <= 6 for tokens in found.tokens)
        assert found.truncated == [0, 0]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_an_all_blank_model_finds_nothing(topology: str) -> None:
    search = GreedySearch(make(TOPOLOGIES[topology], blank=1000.0))
    found = search(torch.randn(2, 6, WIDTH), torch.tensor([6, 4]), search.initial_state(2))
    assert found.tokens == [[], []]
    assert found.truncated == [0, 0]


def test_restarted_streams_have_said_what_they_are_told() -> None:
    given = case("rnnt", "lstm", 1.0)
    search = GreedySearch(given.model, MAX_SYMBOLS)
    halves = given.encoded[:1, :18], given.encoded[:1, 18:]
    first = search(halves[0], torch.tensor([18]), search.initial_state(1))
    said = [[token.id for token in first.tokens[0]]]
    assert said[0]
    expected = search(halves[1], torch.tensor([19]), first.state).tokens
    again = search.restart(first.state, said)
    assert [token[:3] for token in search(halves[1], torch.tensor([19]), again).tokens[0]] == [
        token[:3] for token in expected[0]
    ]
    other = search(halves[1], torch.tensor([19]), search.restart(first.state, [[]])).tokens
    assert other != expected


def begin(loop: LabelLoop, given: Case, search: GreedySearch) -> Streams:
    state = search.initial_state(len(given.lengths))
    none = torch.zeros_like(given.lengths)
    return Streams(state.predictor, state.projected, none, none, state.held, none)


def test_the_recorded_loop_equals_the_definition(cases: list[Case]) -> None:
    """As on a GPU, but for the recording: steps in place, in buffers that other batches have been through."""
    for each in cases:
        search = GreedySearch(each.model, MAX_SYMBOLS, 3)
        sizes = []

        def recorded(chunk, streams, search=search, each=each, sizes=sizes):
            sizes.append(len(chunk.lengths))
            batch = [stream for stream in range(5) if len(chunk.lengths) == 5 or stream == 2]
            frames = each.model.joiner.encoder(each.encoded[batch])
            return search.graphs.run(frames, chunk.lengths, streams)

        search.loop.run = recorded
        check(search(each.encoded, each.lengths, search.initial_state(5)), each)
        one = search(each.encoded[2:3], each.lengths[2:3], search.initial_state(1))
        check(one, each._replace(tokens=each.tokens[2:3], truncated=each.truncated[2:3]))
        check(search(each.encoded, each.lengths, search.initial_state(5)), each)
        assert sizes == [5, 1, 5]


def test_few_graphs_serve_all_sizes() -> None:
    given = case("rnnt")
    search = GreedySearch(given.model, MAX_SYMBOLS)
    graphs, found = LabelGraphs(search.loop), set()
    with torch.inference_mode():
        frames = given.model.joiner.encoder(given.encoded)
        for T in (1, 9, 16, 17, 37):
            for B in (3, 4, 5):
                part = Case(given.model, given.encoded[:B], given.lengths[:B].clamp(max=T), [], [])
                graphs.run(frames[:B, :T], part.lengths, begin(search.loop, part, search))
                found |= set(graphs._kept)
    assert {(batch, T) for batch, T, *_ in found} == {(4, 16), (8, 16), (4, 32), (8, 32), (4, 64), (8, 64)}
    assert len(graphs._kept) == 4
    assert [power_of_two(n) for n in (1, 2, 3, 4, 5, 1000)] == [1, 2, 4, 4, 8, 1024]


class NoSync(TorchDispatchMode):
    """Raises where the host would wait for a device, or a shape depend on values."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        assert not any(bad in name for bad in self.FORBIDDEN), name
        if name.startswith("aten.index"):
            for tensor in torch.utils._pytree.tree_leaves(args):
                assert not (isinstance(tensor, torch.Tensor) and tensor.dtype == torch.bool), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_step_asks_for_no_values(topology: str, predictor: str) -> None:
    """Tensors that have none go through it, and keep their shapes; so all of it is on one device too."""
    model = make(TOPOLOGIES[topology], predictor).to("meta")
    search = GreedySearch(model, MAX_SYMBOLS)
    meta = torch.device("meta")
    with torch.inference_mode():
        state = search.initial_state(3, meta)
        none = torch.zeros(3, dtype=torch.int64, device=meta)
        streams = Streams(state.predictor, state.projected, none, none, state.held, none)
        buffers = Buffers(search.loop, 4, 7, streams)
        before = [(x.shape, x.dtype) for x in states.leaves(buffers.streams)]
        with NoSync():
            buffers.advance()
            after, found = search.loop.step(buffers.chunk, buffers.streams)
        assert [(x.shape, x.dtype) for x in states.leaves(after)] == before
        assert all(x is None or x.shape == (4,) for x in found)
        assert (found.consumed is None) == (not topology.startswith("tdt"))
        with pytest.raises((AssertionError, RuntimeError)), NoSync():
            search.loop.run(buffers.chunk, buffers.streams)
    assert STEPS > 1
