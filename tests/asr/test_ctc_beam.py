"""CTC prefix beam search against sums over all paths, whole against any chunking, and its bounds."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from itertools import groupby

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from asr.encoders import EncoderOutput, LstmEncoderConfig
from asr.losses import CtcLossConfig, LossConfig, TransducerLossConfig
from asr.search import CtcGreedySearch, Token, search_whole
from asr.search.ctc_beam import CtcBeamSearch
from asr.search.fusion import Fusion, Weighted
from asr.search.history import EVERY, WINDOW
from asr.transducer import Transducer, TransducerConfig
from tests.asr.bigram import Bigram

WIDTH, VOCAB = 6, 4
Labels = tuple[int, ...]


def make(sharp: float = 3, blank: float = 0.0, vocab: int = VOCAB) -> Transducer:
    torch.manual_seed(5)
    config = TransducerConfig(
        encoder=LstmEncoderConfig(hidden=WIDTH, layers=1),
        predictor=None,
        loss=LossConfig(transducer=TransducerLossConfig(weight=0), ctc=CtcLossConfig(weight=1)),
    )
    model = Transducer(config, 4, vocab).eval()
    with torch.no_grad():
        model.ctc.weight.mul_(sharp)
        model.ctc.bias[0] += blank
    return model


def all_paths(log_probs: Tensor) -> tuple[dict[Labels, float], dict[Labels, list[Token]]]:
    """For every string of labels the log of the sum of its paths, and the tokens of the best of them."""
    scores, best = defaultdict(list), {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        score = float(sum(log_probs[t, label] for t, label in enumerate(path)))
        tokens, t = [], 0
        for label, run in groupby(path):
            size = len(list(run))
            if label:
                tokens.append(Token(label, t, t + size, float(log_probs[t : t + size, label].max())))
            t += size
        labels = tuple(token.id for token in tokens)
        scores[labels].append(score)
        if score >= max(scores[labels]):
            best[labels] = tokens
    return {key: float(torch.tensor(each).logsumexp(0)) for key, each in scores.items()}, best


def n_best(search: CtcBeamSearch, encoded: Tensor) -> dict[Labels, tuple[float, float, list[Token]]]:
    found = search(encoded[None], torch.tensor([len(encoded)]), search.initial_state(1))
    hypotheses = search.n_best(found.state)[0]
    assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
    whole = [(h.log_prob, h.fused, found.tokens[0] + h.tokens) for h in hypotheses]
    labels = [tuple(token.id for token in tokens) for _, _, tokens in whole]
    assert len(set(labels)) == len(labels)
    return dict(zip(labels, whole, strict=True))


def assert_same(found: list[Token], expected: list[Token]) -> None:
    assert [token[:3] for token in found] == [token[:3] for token in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.log_prob == pytest.approx(b.log_prob, abs=1e-4)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("frames", [1, 5])
@torch.no_grad()
def test_a_wide_beam_finds_the_sums_and_best_paths_of_all_labels(frames: int, fused: bool) -> None:
    model = make()
    bigram = Bigram(torch.randn(VOCAB, VOCAB))
    scorer = Fusion(VOCAB, [Weighted(bigram, 0.5)], reward=0.3) if fused else None
    encoded = torch.randn(frames, WIDTH)
    found = n_best(CtcBeamSearch(model, beam=250, margin=torch.inf, scorer=scorer), encoded)
    sums, best = all_paths(model.ctc(encoded).log_softmax(-1))
    assert set(found) == set(sums)
    assert frames == 1 or any(a == b for labels in sums for a, b in itertools.pairwise(labels))
    for labels, (log_prob, added, tokens) in found.items():
        assert log_prob == pytest.approx(sums[labels], abs=1e-4), labels
        expected = 0.5 * bigram.of(labels) + 0.3 * len(labels) if fused else 0
        assert added == pytest.approx(expected, abs=1e-4)
        assert_same(tokens, best[labels])


@torch.no_grad()
def test_the_best_with_a_scorer_is_that_of_exhaustive_rescoring() -> None:
    model, encoded = make(), torch.randn(5, WIDTH)
    sums, _ = all_paths(model.ctc(encoded).log_softmax(-1))
    winners = set()
    for seed in range(4):
        torch.manual_seed(seed)
        bigram = Bigram(2 * torch.randn(VOCAB, VOCAB))
        search = CtcBeamSearch(model, 250, margin=torch.inf, scorer=Fusion(VOCAB, [Weighted(bigram)]))
        tokens = search_whole(search, EncoderOutput(encoded[None], torch.tensor([5]), None)).tokens[0]
        best = max(sums, key=lambda labels: sums[labels] + bigram.of(labels))
        assert tuple(token.id for token in tokens) == best
        winners.add(best)
    assert len(winners) > 1


@torch.no_grad()
def test_a_narrow_beam_loses_probability_and_invents_none() -> None:
    model, encoded = make(), torch.randn(6, WIDTH)
    sums, _ = all_paths(model.ctc(encoded).log_softmax(-1))
    ranked = sorted(sums, key=lambda labels: -sums[labels])
    for beam in (1, 3, 8):
        found = n_best(CtcBeamSearch(model, beam), encoded)
        assert 0 < len(found) <= beam
        assert all(log_prob <= sums[labels] + 1e-4 for labels, (log_prob, *_) in found.items())
    assert next(iter(found)) == ranked[0]


@torch.no_grad()
def test_few_candidates_still_merge_and_hold_any_label() -> None:
    """With one candidate a frame the others cannot begin, but what has begun is summed as ever."""
    model, encoded = make(), torch.randn(4, WIDTH)
    found = n_best(CtcBeamSearch(model, 200, candidates=1, margin=torch.inf), encoded)
    sums, _ = all_paths(model.ctc(encoded).log_softmax(-1))
    top = model.ctc(encoded)[:, 1:].argmax(-1) + 1
    assert {label for labels in found for label in labels} <= set(top.tolist())
    assert all(log_prob <= sums[labels] + 1e-4 for labels, (log_prob, *_) in found.items())
    assert found[()][0] == pytest.approx(sums[()], abs=1e-4)


def test_a_beam_of_one_is_greedy_where_the_model_is_sure() -> None:
    model = make(sharp=200)
    encoded = EncoderOutput(torch.randn(2, 40, WIDTH), torch.tensor([40, 23]), None)
    greedy = search_whole(CtcGreedySearch(model), encoded).tokens
    found = search_whole(CtcBeamSearch(model, 1), encoded).tokens
    assert any(token.end_frame - token.frame > 1 for token in greedy[0])
    for mine, other in zip(found, greedy, strict=True):
        assert_same(mine, other)


def test_what_is_sure_is_given_out_as_it_comes() -> None:
    model = make()
    with torch.no_grad():
        model.ctc.weight.copy_(15 * torch.eye(VOCAB, WIDTH))
    search = CtcBeamSearch(model, 4)
    encoded = functional.one_hot(torch.randint(VOCAB, (1, 80)), WIDTH).float()
    state, given = search.initial_state(1), 0
    for t in range(0, 80, 8):
        found = search(encoded[:, t : t + 8], torch.tensor([8]), state)
        state, given = found.state, given + len(found.tokens[0])
    pending = search.pending(state)[0]
    assert given > 30
    assert len(pending) <= 2
    assert pending == search.flush(state)[0]


def test_any_chunking_and_any_batch_finds_the_same() -> None:
    model = make(sharp=6)
    scorer = Fusion(VOCAB, [Weighted(Bigram(torch.randn(VOCAB, VOCAB)), 0.4)], reward=0.5)
    search = CtcBeamSearch(model, beam=3, scorer=scorer)
    encoded, lengths = torch.randn(3, 2 * EVERY + 9, WIDTH), [2 * EVERY + 9, 31, 12]
    whole = search_whole(search, EncoderOutput(encoded, torch.tensor(lengths), None))
    assert len(whole.tokens[0]) > 20
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
    """The first label is 1 as well as 2, all others are certain: both would stay for good."""
    model = make()
    with torch.no_grad():
        model.ctc.weight.copy_(15 * torch.eye(VOCAB, WIDTH))
        model.ctc.bias.zero_()
    count = 8 * EVERY
    path = torch.tensor([1, 3] * (count // 2))
    encoded = functional.one_hot(path, WIDTH).float()
    encoded[0] = torch.tensor([0.0, 1.0, 1.0, 0, 0, 0])
    search = CtcBeamSearch(model, beam=4)
    state, tokens, given, sizes = search.initial_state(1), [], [], []
    for t in range(0, count, EVERY):
        found = search(encoded[None, t : t + EVERY], torch.tensor([EVERY]), state)
        state = found.state
        tokens += found.tokens[0]
        given.append(len(tokens))
        sizes.append(int(state.tails.lengths.max()))
    assert given[1] == 0 < given[3]
    assert max(sizes) <= 2 * WINDOW
    tokens += search.flush(state)[0]
    assert tokens[0].id in (1, 2)
    assert [token.id for token in tokens[1:]] == path[1:].tolist()
    assert [token.frame for token in tokens] == list(range(count))


@pytest.mark.parametrize("beam", [1, 4])
def test_nothing_and_next_to_nothing(beam: int) -> None:
    search = CtcBeamSearch(make(blank=1000.0), beam)
    lengths = torch.tensor([6, 1, 0])
    result = search_whole(search, EncoderOutput(torch.randn(3, 6, WIDTH), lengths, None))
    assert result.tokens == [[], [], []]
    assert result.truncated == [0, 0, 0]
    nothing = EncoderOutput(torch.randn(0, 6, WIDTH), torch.zeros(0, dtype=torch.int64), None)
    assert search_whole(search, nothing).tokens == []
    empty = EncoderOutput(torch.randn(2, 0, WIDTH), torch.tensor([0, 0]), None)
    assert search_whole(search, empty).tokens == [[], []]


def test_what_scorers_forbid_is_not_said() -> None:
    model, encoded = make(sharp=6), EncoderOutput(torch.randn(1, 25, WIDTH), torch.tensor([25]), None)
    forbidden = torch.zeros(VOCAB, VOCAB)
    forbidden[:, 2] = -torch.inf

    def said(table: Tensor) -> list[int]:
        search = CtcBeamSearch(model, 4, scorer=Fusion(VOCAB, [Weighted(Bigram(table))]))
        return [token.id for token in search_whole(search, encoded).tokens[0]]

    assert 2 in said(torch.zeros(VOCAB, VOCAB))
    assert len(said(forbidden)) > 3
    assert 2 not in said(forbidden)


def test_frames_that_leave_no_hypothesis_are_passed_over() -> None:
    model = make(blank=-torch.inf)
    search = CtcBeamSearch(model, 4, scorer=Fusion(VOCAB, [Weighted(Bigram(torch.full((4, 4), -torch.inf)))]))
    found = search(torch.randn(1, 5, WIDTH), torch.tensor([5]), search.initial_state(1))
    assert search.flush(found.state) == [[]]
    assert search.frames(found.state).tolist() == [5]


def test_restart_forgets_what_was_given_out_and_keeps_what_waits() -> None:
    model = make(sharp=6)
    table = torch.randn(VOCAB, VOCAB)
    search = CtcBeamSearch(model, 4, scorer=Fusion(VOCAB, [Weighted(Bigram(table), 3.0)]))
    encoded = torch.randn(2, 40, WIDTH)
    first = search(encoded[:, :21], torch.tensor([21, 20]), search.initial_state(2))
    again = search.restart(first.state, [[3], []])
    assert search.frames(again).tolist() == [21, 20]
    waiting = search.pending(first.state)
    assert any(waiting)
    assert search.pending(again) == waiting
    last = [row[-1].id if row else before for row, before in zip(waiting, (3, 0), strict=True)]
    assert again.rows.scorer.parts[0].label[:, 0].tolist() == last
    rest = search(encoded[:, 21:], torch.tensor([19, 19]), again)
    tokens = [a + b for a, b in zip(rest.tokens, search.flush(rest.state), strict=True)]
    for row, before in zip(tokens, waiting, strict=True):
        assert [token.id for token in row[: len(before)]] == [token.id for token in before]
        assert len(row) > len(before)
