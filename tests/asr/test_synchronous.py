"""Both orders of beam search against Graves' algorithm and sums over all paths, and what must not matter."""

from __future__ import annotations

import pytest
import torch

import asr
from asr.encoders import EncoderOutput
from asr.errors import AudioError, ConfigError, StreamingError
from asr.search import BeamSearch, SearchConfig, arena, build_search, search_whole
from asr.search.fusion import Fusion, Weighted
from asr.search.history import EVERY
from tests.asr.beam_cases import TOPOLOGIES, VOCAB, WIDTH, assert_same, assert_sums, make, n_best
from tests.asr.bigram import Bigram
from tests.asr.graves_beam import graves_beam

ORDERS = ["time", "alignment"]


@pytest.mark.parametrize("predictor", ["lstm", "stateless"])
@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_what_graves_algorithm_finds(order, predictor: str) -> None:
    model = make("rnnt", predictor, bias=2.0)
    frames = torch.randn(3, WIDTH)
    expected = graves_beam(model, frames, 150)
    search = BeamSearch(model, beam=400, max_symbols=12, margin=1e6, synchronous=order)
    found = n_best(search, frames, 3)
    best = list(expected)[:25]
    assert max(map(len, best)) > 3
    assert list(found)[:5] == best[:5]
    for labels in best:
        assert found[labels][0] == pytest.approx(expected[labels], abs=2e-3), labels


@torch.no_grad()
def test_with_a_narrow_beam_the_best_is_that_of_graves() -> None:
    model, lengths = make("rnnt", bias=4.0, sharp=10), []
    for _ in range(3):
        frames = torch.randn(8, WIDTH)
        expected = next(iter(graves_beam(model, frames, 8)))
        found = n_best(BeamSearch(model, beam=8), frames, 8)
        assert next(iter(found)) == expected
        lengths.append(len(expected))
    assert max(lengths) > 2


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("topology", TOPOLOGIES)
@torch.no_grad()
def test_by_length_of_alignments_a_wide_beam_finds_the_sums(topology: str, fused: bool) -> None:
    symbols = 2 if topology == "tdt" else 3  # as long are the texts, so that the bound forbids none
    settings = {"beam": 1500, "max_symbols": symbols, "synchronous": "alignment"}
    assert_sums(topology, fused, symbols + 1, **settings)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("order", ORDERS)
def test_neither_the_window_nor_forgetting_matters(order, topology: str, monkeypatch) -> None:
    model = make(topology, bias=1.0)
    scorer = Fusion(VOCAB, [Weighted(Bigram(torch.randn(VOCAB, VOCAB)), 0.4)], reward=0.5)
    encoded = EncoderOutput(torch.randn(3, EVERY + 9, WIDTH), torch.tensor([EVERY + 9, 12, 31]), None)

    def found(window: int):
        search = BeamSearch(model, 3, max_symbols=3, scorer=scorer, synchronous=order, window=window)
        return search_whole(search, encoded).tokens

    expected = found(4)
    assert all(expected)
    assert all(token.end_frame > token.frame for tokens in expected for token in tokens)
    others = [found(1), found(100)]
    monkeypatch.setattr(arena, "BUDGET", 0)  # rows that nobody needs are dropped all the time
    monkeypatch.setattr(arena, "ROOM", 1)
    for tokens in (*others, found(2)):
        for ours, theirs in zip(tokens, expected, strict=True):
            assert_same(ours, theirs)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_by_length_of_alignments_any_batch_finds_the_same(topology: str) -> None:
    search = BeamSearch(make(topology, bias=1.0), 3, max_symbols=3, synchronous="alignment")
    encoded, lengths = torch.randn(4, 40, WIDTH), [40, 31, 0, 1]
    whole = search_whole(search, EncoderOutput(encoded, torch.tensor(lengths), None))
    for b, length in enumerate(lengths):
        alone = search_whole(search, EncoderOutput(encoded[b : b + 1], torch.tensor([length]), None))
        assert_same(alone.tokens[0], whole.tokens[b])


def test_by_length_of_alignments_endless_emission_is_bounded() -> None:
    model = make("rnnt", bias=-20.0)
    encoded = EncoderOutput(torch.randn(2, 6, WIDTH), torch.tensor([6, 4]), None)
    search = BeamSearch(model, 2, 3, scorer=Fusion(VOCAB, reward=30.0), synchronous="alignment")
    result = search_whole(search, encoded)
    assert [len(tokens) for tokens in result.tokens] == [18, 12]
    assert result.truncated == [6, 4]


def test_by_length_of_alignments_streams_are_refused() -> None:
    search = BeamSearch(make(), 4, synchronous="alignment")
    state = search(torch.randn(2, 3, WIDTH), torch.tensor([3, 0]), search.initial_state(2)).state
    assert search(torch.randn(2, 3, WIDTH), torch.tensor([0, 3]), state).state.frame.tolist() == [3, 3]
    with pytest.raises(StreamingError, match=r"search\.synchronous=alignment: expected whole recordings"):
        search(torch.randn(2, 3, WIDTH), torch.tensor([1, 1]), state)


def test_the_order_is_a_setting() -> None:
    search = build_search(SearchConfig(method="beam", synchronous="alignment"), make())
    assert isinstance(search, BeamSearch)
    assert search.synchronous == "alignment"
    for settings in ({"method": "greedy"}, {"method": "beam", "head": "ctc"}):
        with pytest.raises(ConfigError, match=r"search\.synchronous=alignment: expected"):
            build_search(SearchConfig(synchronous="alignment", **settings), make())


def test_by_length_of_alignments_recordings_are_transcribed_whole(make_model, speech_like) -> None:
    settings = ["method=beam", "synchronous=alignment"]
    recognizer = asr.load(make_model(kind="transducer"), settings=settings)
    samples = speech_like(3.1)
    assert not recognizer.streaming
    transcript = recognizer.transcribe(samples)
    assert len(transcript.tokens) > 5
    assert transcript.text == recognizer.transcribe_batch([samples])[0].text
    with pytest.raises(StreamingError, match=r"expected whole recordings, found a stream"):
        recognizer.stream()


def test_by_length_of_alignments_what_cannot_be_heard_whole_is_refused(
    make_model, speech_like, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In windows or blocks it would be a stream; its frames alone can be had."""
    recognizer = asr.load(make_model(), settings=["method=beam", "synchronous=alignment"])
    samples, short = speech_like(3.1), speech_like(0.6)
    expected = recognizer.transcribe(short).text
    monkeypatch.setattr("asr.encoders.base.LONGEST_WHOLE_S", 2.0)
    told = r"{}: search\.synchronous=alignment: expected at most 2 s, .*found 3 s; use search\.sync"
    with pytest.raises(AudioError, match=told.format("array")):
        recognizer.transcribe(samples)
    with pytest.raises(AudioError, match=told.format("long")):
        recognizer.transcribe_batch([short, samples], ["short", "long"])
    # Four together would have a second each: one after the other.
    assert [each.text for each in recognizer.transcribe_batch([short] * 4)] == [expected] * 4
    assert recognizer.encode(samples).shape[0] > recognizer.encode(short).shape[0]
