"""Lattice search by k2, against a stand-in with all paths; asr/search/README.md tells of the real k2."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections import defaultdict
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asr.errors import ConfigError
from asr.lms.base import Scorer
from asr.search import BeamSearch, LatticeSearch, SearchConfig, Token, build_search
from asr.search.fusion import Fusion
from asr.transducer import Transducer
from asr_kernels import MONOTONIC, ctc_loss, rnnt_loss
from tests.asr.test_beam import VOCAB, WIDTH, make

LENGTHS = [3, 0, 4, 1]
Arcs = list[tuple[int, int, float]]
"""Label, what is said, score; the last enters the final state."""


class Lattice:
    """All paths of each stream, without a common part."""

    def __init__(self, streams: list[list[Arcs]]) -> None:
        self.streams = streams
        arcs = [arc for paths in streams for path in paths for arc in path]
        self.labels, self.aux_labels = (torch.tensor([arc[i] for arc in arcs]) for i in (0, 1))
        self.scores = torch.tensor([arc[2] for arc in arcs])

    def __getitem__(self, stream: int) -> Lattice:
        return Lattice([self.streams[stream]])


class Streams:
    """k2's streams without pruning: a path is the symbols of its frames."""

    def __init__(self, streams: list[Any], config: SimpleNamespace) -> None:
        assert config.vocab_size == VOCAB
        self.history, self.paths = config.decoder_history_len, [{(): 0.0} for _ in streams]
        self.scored: list[dict[tuple[int, ...], list[float]]] = [{} for _ in streams]
        self.ended = False

    def _context(self, path: tuple[int, ...]) -> tuple[int, ...]:
        return ((0,) * self.history + tuple(x for x in path if x))[-self.history :]

    def _contexts(self) -> list[tuple[int, tuple[int, ...]]]:
        return sorted({(b, self._context(path)) for b, paths in enumerate(self.paths) for path in paths})

    def get_contexts(self) -> tuple[Any, Tensor]:
        rows = torch.tensor([b for b, _ in self._contexts()], dtype=torch.int32)
        contexts = torch.tensor([context for _, context in self._contexts()], dtype=torch.int32)
        return SimpleNamespace(row_ids=lambda axis: rows if axis == 1 else None), contexts

    def advance(self, log_probs: Tensor) -> None:
        rows = dict(zip(self._contexts(), log_probs.tolist(), strict=True))
        for b, paths in enumerate(self.paths):
            table = {path: rows[b, self._context(path)] for path in paths}
            self.scored[b] |= table
            self.paths[b] = {(*p, v): 0.0 for p in paths for v in range(VOCAB)}

    def terminate_and_flush_to_streams(self) -> None:
        self.ended = True

    def format_output(self, frames: list[int]) -> Lattice:
        """As in k2, the arc into the final state takes the last frame."""
        assert self.ended
        found = []
        for b, count in enumerate(frames):
            rows = list(itertools.product(range(VOCAB), repeat=count - 1))
            found.append([[*(self._arc(b, p, i) for i in range(len(p))), (-1, -1, 0.0)] for p in rows])
        return Lattice(found)

    def _arc(self, b: int, path: tuple[int, ...], i: int) -> tuple[int, int, float]:
        return path[i], path[i], self.scored[b][path[:i]][path[i]]


class StandIn(ModuleType):
    """What is used of k2."""

    RnntDecodingConfig = SimpleNamespace
    RnntDecodingStreams = Streams

    def trivial_graph(self, max_token: int, device: Any) -> int:
        assert max_token == VOCAB - 1
        return max_token

    def RnntDecodingStream(self, graph: int) -> int:  # noqa: N802
        return graph

    def ctc_topo(self, max_token: int, modified: bool, device: Any) -> int:
        assert not modified
        return max_token

    def DenseFsaVec(self, log_probs: Tensor, segments: Tensor) -> tuple[Tensor, list[list[int]]]:  # noqa: N802
        assert segments.dtype == torch.int32
        assert segments[:, 2].tolist() == sorted(segments[:, 2].tolist(), reverse=True)
        return log_probs, segments.tolist()

    def intersect_dense_pruned(
        self, graph: int, dense: tuple[Tensor, list[list[int]]], **pruning: Any
    ) -> Lattice:
        log_probs, segments = dense
        streams = []
        for b, begin, frames in segments:
            assert begin == 0
            rows = itertools.product(range(graph + 1), repeat=frames)
            streams.append([[*self._collapsed(p, log_probs[b].tolist()), (-1, -1, 0.0)] for p in rows])
        return Lattice(streams)

    def _collapsed(self, path: tuple[int, ...], scores: list[list[float]]) -> Arcs:
        return [(x, x * (not t or path[t - 1] != x), scores[t][x]) for t, x in enumerate(path)]

    def shortest_path(self, lattice: Lattice, use_double_scores: bool) -> Lattice:
        return Lattice([[max(paths, key=lambda p: sum(a[2] for a in p))] for paths in lattice.streams])

    def random_paths(self, lattice: Lattice, use_double_scores: bool, num_paths: int) -> Any:
        """All paths."""
        begin, found = 0, []
        for paths in lattice.streams:
            found.append([])
            for path in paths:
                found[-1].append(list(range(begin, begin + len(path))))
                begin += len(path)
        return SimpleNamespace(tolist=lambda: found)


@pytest.fixture
def _k2(monkeypatch: pytest.MonkeyPatch) -> None:
    module = StandIn("k2")
    module.__spec__ = importlib.util.spec_from_loader("k2", None)
    monkeypatch.setitem(sys.modules, "k2", module)


def network(ctc: bool = False) -> Transducer:
    model = make("monotonic", "stateless", sharp=4)
    model.ctc = nn.Linear(WIDTH, VOCAB)
    with torch.no_grad():
        model.ctc.weight.mul_(6 if ctc else 1)
    return model


def frames() -> tuple[Tensor, Tensor]:
    """Padding is no number."""
    encoded = torch.randn(len(LENGTHS), 5, WIDTH, generator=torch.Generator().manual_seed(1))
    for b, length in enumerate(LENGTHS):
        encoded[b, length:] = torch.nan
    return encoded, torch.tensor(LENGTHS)


def best_path(model: Transducer, ctc: bool, encoded: Tensor, labels: tuple[int, ...]) -> float:
    """Log-probability of the best path of labels, by the kernels."""
    targets = torch.tensor([labels], dtype=torch.int64).reshape(1, -1)
    to = targets, torch.tensor([len(encoded)]), torch.tensor([len(labels)])
    with torch.no_grad():
        if ctc:
            assert model.ctc is not None
            return -float(ctc_loss(model.ctc(encoded[None]), *to, criterion="max"))
        logits = model.joiner(encoded[None], model.predictor.whole(targets))
        return -float(rnnt_loss(logits, *to, topology=MONOTONIC, criterion="max"))


def labels_of(tokens: list[Token]) -> tuple[int, ...]:
    return tuple(token.id for token in tokens)


@pytest.mark.usefixtures("_k2")
@pytest.mark.parametrize("ctc", [False, True], ids=["transducer", "ctc"])
def test_hypotheses_are_those_of_the_best_paths(ctc: bool) -> None:
    model, (encoded, lengths) = network(ctc), frames()
    search = LatticeSearch(model, ctc, beam=6)
    state = search(encoded, lengths, search.initial_state(4)).state
    for b, (length, hypotheses) in enumerate(zip(LENGTHS, search.n_best(state), strict=True)):
        every = (s for n in range(length + 1) for s in itertools.product(range(1, VOCAB), repeat=n))
        scores = defaultdict(
            float, {s: best_path(model, ctc, encoded[b, :length], s) for s in every if length}
        )
        ranked = sorted(scores, key=lambda s: -scores[s])[:6] if length else [()]
        assert [labels_of(h.tokens) for h in hypotheses] == ranked
        for h in hypotheses:
            assert h.log_prob == pytest.approx(scores[labels_of(h.tokens)], abs=1e-5)
            assert all(0 <= t.frame < t.end_frame <= length for t in h.tokens)
    assert search.flush(state) == [row[0].tokens for row in search.n_best(state)]


@pytest.mark.usefixtures("_k2")
def test_tokens_of_a_ctc_head_last_as_long_as_their_labels_are_held() -> None:
    model = network()
    assert model.ctc is not None
    probabilities = torch.zeros(5, WIDTH)
    for t, (symbol, p) in enumerate([(2, 0.6), (2, 0.7), (0, 0.7), (2, 0.7), (3, 0.6)]):
        probabilities[t, :VOCAB] = (1 - p) / (VOCAB - 1)
        probabilities[t, symbol] = p
    model.ctc = nn.Linear(WIDTH, VOCAB, bias=False)
    nn.init.eye_(model.ctc.weight)
    said = probabilities.clamp(min=1e-9).log()
    search = LatticeSearch(model, True)
    state = search.initial_state(1)
    state = search(torch.zeros(1, 0, WIDTH), torch.tensor([0]), state).state
    first = search(said[None, :3], torch.tensor([3]), state)
    assert first.tokens == search.pending(first.state) == [[]]
    last = search(said[None, 3:], torch.tensor([2]), first.state)
    (tokens,) = search.flush(last.state)
    assert [(t.id, t.frame, t.end_frame) for t in tokens] == [(2, 0, 2), (2, 3, 4), (3, 4, 5)]
    assert [t.log_prob for t in tokens] == pytest.approx(torch.tensor([0.7, 0.7, 0.6]).log().tolist())


@pytest.mark.usefixtures("_k2")
def test_any_chunking_gives_the_same_and_settling_begins_anew_with_frames_counted_on() -> None:
    model, (encoded, lengths) = network(), frames()
    search = LatticeSearch(model, False)
    whole = search.flush(search(encoded, lengths, search.initial_state(4)).state)
    state = search.initial_state(4)
    for t in range(4):
        state = search(encoded[:, t : t + 1], (lengths - t).clamp(0, 1), state).state
    assert search.frames(state).tolist() == LENGTHS
    assert search.flush(state) == whole
    settled = search.settle(state)
    assert settled.tokens == whole
    assert search.flush(settled.state) == [[]] * 4
    more = search(encoded, lengths, settled.state).state
    assert search.frames(more).tolist() == [2 * length for length in LENGTHS]
    moved = [
        [t._replace(frame=t.frame + n, end_frame=t.end_frame + n) for t in row]
        for row, n in zip(whole, LENGTHS, strict=True)
    ]
    assert search.flush(more) == moved


@pytest.mark.usefixtures("_k2")
def test_what_it_cannot_search_is_refused() -> None:
    lattice = SearchConfig(method="lattice")
    assert isinstance(build_search(lattice, network()), LatticeSearch)
    assert isinstance(build_search(SearchConfig(method="beam"), network()), BeamSearch)
    with pytest.raises(ConfigError, match="expected a stateless predictor, found lstm"):
        build_search(lattice, make("rnnt", "lstm"))
    with pytest.raises(ConfigError, match="expected topology rnnt or monotonic, found tdt"):
        build_search(lattice, make("tdt", "stateless"))
    scorer: Scorer = Fusion(VOCAB)
    with pytest.raises(ConfigError, match=r"search.method=lattice: expected beam with a language model"):
        build_search(lattice, network(), scorer)


def test_without_k2_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"needs k2, which is not installed \(https.*use search.method=beam"
    ):
        build_search(SearchConfig(method="lattice"), network())
