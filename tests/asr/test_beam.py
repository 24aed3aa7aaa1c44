"""Beam search against sums over all paths, whole against any chunking, and its bounds."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from asr.encoders import EncoderOutput
from asr.search import BeamSearch, GreedySearch, search_whole
from asr.search.fusion import Fusion, Weighted
from asr.search.history import EVERY, WINDOW
from tests.asr.beam_cases import TOPOLOGIES, VOCAB, WIDTH, assert_same, assert_sums, make, n_best
from tests.asr.bigram import Bigram


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("topology", TOPOLOGIES)
@torch.no_grad()
def test_a_wide_beam_finds_the_sums_over_all_paths(topology: str, fused: bool) -> None:
    symbols = 1 if topology == "tdt" else 2
    assert_sums(topology, fused, 4, beam=400, max_symbols=symbols)


@torch.no_grad()
def test_without_a_bound_that_bites_sums_are_what_the_loss_says() -> None:
    model = make("rnnt")
    frames = torch.randn(1, WIDTH)
    found = n_best(BeamSearch(model, beam=200, max_symbols=4, margin=1e6), frames, 1)
    for labels in [(), (1,), (3, 2), (1, 1)]:
        targets = torch.tensor([labels], dtype=torch.int64).reshape(1, -1)
        lengths = torch.tensor([1]), targets, torch.tensor([len(labels)])
        loss = model.losses(frames[None], *lengths).total
        assert found[labels][0] == pytest.approx(-float(loss), abs=1e-3)


@pytest.mark.parametrize("topology", ["monotonic", "ctc", "tdt-taking"])
def test_a_beam_of_one_is_greedy_where_every_symbol_takes_frames(topology: str) -> None:
    model = make(topology, sharp=200)
    encoded = torch.randn(1, 30, WIDTH)
    output = EncoderOutput(encoded, torch.tensor([30]), None)
    greedy = search_whole(GreedySearch(model, 3), output).tokens[0]
    found = search_whole(BeamSearch(model, beam=1, max_symbols=3), output).tokens[0]
    assert len(greedy) > 3
    assert [token[:3] for token in found] == [token[:3] for token in greedy]
    for a, b in zip(found, greedy, strict=True):
        assert a.log_prob == pytest.approx(b.log_prob, abs=1e-3)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_any_chunking_and_any_batch_finds_the_same(topology: str) -> None:
    model = make(topology, bias=1.0)
    scorer = Fusion(VOCAB, [Weighted(Bigram(torch.randn(VOCAB, VOCAB)), 0.4)], reward=0.5)
    search = BeamSearch(model, beam=3, max_symbols=3, scorer=scorer)
    encoded, lengths = torch.randn(3, EVERY + 9, WIDTH), [EVERY + 9, 31, 12]
    whole = search_whole(search, EncoderOutput(encoded, torch.tensor(lengths), None))
    for b, length in enumerate(lengths):
        alone = search_whole(search, EncoderOutput(encoded[b : b + 1], torch.tensor([length]), None))
        assert_same(alone.tokens[0], whole.tokens[b])
    rng = random.Random(1)
    state, tokens, position = search.initial_state(3), [[], [], []], [0, 0, 0]
    while any(p < n for p, n in zip(position, lengths, strict=True)):
        new = [min(rng.choice([0, 1, 2, 17]), n - p) for p, n in zip(position, lengths, strict=True)]
        chunk = torch.randn(3, max(new), WIDTH)
        for b, count in enumerate(new):
            chunk[b, :count] = encoded[b, position[b] : position[b] + count]
            position[b] += count
        found = search(chunk, torch.tensor(new), state)
        state = found.state
        tokens = [said + more for said, more in zip(tokens, found.tokens, strict=True)]
    for b, last in enumerate(search.flush(state)):
        assert_same(tokens[b] + last, whole.tokens[b])
    assert search.frames(state).tolist() == lengths


def test_hypotheses_that_never_agree_are_made_to() -> None:
    """Labels are equally probable everywhere: nothing would ever be shared."""
    model = make("monotonic", bias=-50.0)
    with torch.no_grad():
        model.joiner.output.weight.zero_()
    search = BeamSearch(model, beam=4)
    state, given = search.initial_state(1), 0
    sizes = set()
    for _ in range(20):
        found = search(torch.randn(1, EVERY, WIDTH), torch.tensor([EVERY]), state)
        state = found.state
        given += len(found.tokens[0])
        sizes.add(int(state.tails.lengths.max()))
    assert max(sizes) <= 2 * WINDOW
    assert given + len(search.flush(state)[0]) == 20 * EVERY


def test_endless_emission_is_bounded_and_reported() -> None:
    """Blank has to be paid once per frame however much is said: only a reward makes saying more pay."""
    model = make("rnnt", bias=-20.0)
    encoded = EncoderOutput(torch.randn(2, 6, WIDTH), torch.tensor([6, 4]), None)
    result = search_whole(BeamSearch(model, 2, 3, scorer=Fusion(VOCAB, reward=30.0)), encoded)
    assert [len(tokens) for tokens in result.tokens] == [18, 12]
    assert result.truncated == [6, 4]
    result = search_whole(BeamSearch(model, 2, 3), encoded)
    assert result.truncated == [0, 0]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_nothing_and_next_to_nothing(topology: str) -> None:
    model = make(topology, bias=1000.0)
    search = BeamSearch(model, 4)
    lengths = torch.tensor([6, 1, 0])
    result = search_whole(search, EncoderOutput(torch.randn(3, 6, WIDTH), lengths, None))
    assert result.tokens == [[], [], []]
    assert result.truncated == [0, 0, 0]
    nothing = EncoderOutput(torch.randn(0, 6, WIDTH), torch.zeros(0, dtype=torch.int64), None)
    assert search_whole(search, nothing).tokens == []
    empty = EncoderOutput(torch.randn(2, 0, WIDTH), torch.tensor([0, 0]), None)
    assert search_whole(search, empty).tokens == [[], []]


@pytest.mark.parametrize("topology", ["rnnt", "monotonic"])
def test_what_scorers_forbid_is_not_said(topology: str) -> None:
    model = make(topology, bias=-3.0)
    table = torch.zeros(VOCAB, VOCAB)
    forbidden = table.clone()
    forbidden[:, 2] = -torch.inf
    encoded = EncoderOutput(torch.randn(1, 25, WIDTH), torch.tensor([25]), None)

    def said(table: Tensor) -> list[int]:
        scorer = Fusion(VOCAB, [Weighted(Bigram(table))], reward=3.0)
        tokens = search_whole(BeamSearch(model, 4, scorer=scorer), encoded).tokens[0]
        return [token.id for token in tokens]

    assert 2 in said(table)
    assert len(said(forbidden)) > 3
    assert 2 not in said(forbidden)


def test_restart_forgets_labels_and_keeps_time() -> None:
    model = make("rnnt", bias=1.0)
    search = BeamSearch(model, 4)
    encoded = torch.randn(1, 40, WIDTH)
    state = search(encoded[:, :20], torch.tensor([20]), search.initial_state(1)).state
    again = search.restart(state, [[3]])
    assert search.frames(again).tolist() == [20]
    assert search.flush(again) == [[]]
    found = search(encoded[:, 20:], torch.tensor([20]), again)
    after = found.tokens[0] + search.flush(found.state)[0]
    fresh = search.restart(search.initial_state(1), [[3]])
    other = search(encoded[:, 20:], torch.tensor([20]), fresh)
    expected = other.tokens[0] + search.flush(other.state)[0]
    assert [(t.id, t.frame - 20) for t in after] == [(t.id, t.frame) for t in expected]
    assert len(after) > 2
