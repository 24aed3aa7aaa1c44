"""Phrases that streams bring along: each stream of a batch hears what it hears alone with its own list."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import asr
from asr import state as states
from asr.data.manifests import read_cuts, write_cuts
from asr.encoders import EncoderOutput
from asr.endpoint import EndpointConfig
from asr.errors import ConfigError, HotwordsError, ManifestError, TokenError
from asr.evaluate import Options, evaluate
from asr.search import BeamSearch, SearchConfig, search_whole
from asr.search.biasing import PhraseBiasing, PhraseList
from asr.search.ctc_beam import CtcBeamSearch
from asr.search.fusion import Fusion, Weighted
from asr.search.streams import begin
from asr.text.hotwords import Phrase
from asr.text.tokenizer import TokenizerConfig, train_tokenizer
from tests.asr.bigram import Bigram
from tests.asr.test_biasing import PHRASES, TEXTS, counted, label_strings, text_of, totals
from tests.asr.test_rescore import VOCAB, WIDTH, make

TOKENIZER = train_tokenizer(TokenizerConfig(kind="char"), TEXTS)
LISTS = (
    (Phrase("ab", 9.0), Phrase("a ba", 5.0)),
    (),
    (Phrase("ba", 7.0), Phrase("b", 3.0), Phrase("ab", -4.0)),
    (Phrase("bb a", 12.0),),
)


@pytest.mark.parametrize("entries", [10**6, 0])
def test_lists_that_come_and_go_leave_the_others_alone(entries: int) -> None:
    """Against counting; hypotheses of a list go on while lists before and behind it go."""
    rng, scorer = random.Random(1), PhraseBiasing(TOKENIZER, [[]], table_entries=entries)
    lists = [tuple(rng.sample(PHRASES, k=rng.randint(1, 4))) for _ in range(12)]
    strings = [string for string in label_strings(TOKENIZER) if len(string) > 3][:60]
    kept: list[tuple[tuple[Phrase, ...], PhraseList]] = []
    for phrases in lists:
        kept.append((phrases, PhraseList(scorer, phrases)))
        if len(kept) > 3:
            del kept[rng.randrange(len(kept))]
        asked = [rng.choice(kept) for _ in strings]
        state = scorer.states_for([handle.number for _, handle in asked])
        # Halfway another list goes and one comes.
        heads, tails = zip(*((string[:2], string[2:]) for string in strings), strict=True)
        begun = torch.zeros(len(strings))
        for column in torch.tensor(heads).T:
            begun += scorer.score(state).gather(1, column[:, None])[:, 0]
            state = scorer.advance(state, column)
        brief = PhraseList(scorer, [Phrase("bb", 1.0)])
        del brief
        scorer.states_for([0])
        found = [a + b for a, b in zip(begun.tolist(), totals(scorer, list(tails), state), strict=True)]
        expected = [
            counted(text_of(TOKENIZER, s), each, True) for s, (each, _) in zip(strings, asked, strict=True)
        ]
        assert found == expected
    del kept, asked
    gc.collect()
    assert totals(scorer, strings, scorer.states_for([0] * len(strings))) == [0.0] * len(strings)
    assert scorer.idle


def searches(kind: str, phrases: tuple[tuple[Phrase, ...], ...]):
    model = make()
    torch.manual_seed(3)
    table = torch.randn(VOCAB, VOCAB)
    scorer = Fusion(VOCAB, [Weighted(PhraseBiasing(TOKENIZER, phrases)), Weighted(Bigram(table), 0.5)])
    return {"transducer": BeamSearch, "ctc": CtcBeamSearch}[kind](model, 4, scorer=scorer)


def together(search, lists: tuple[tuple[Phrase, ...], ...]):
    """A state of streams with lists, and what keeps them."""
    biasing = search.scorer.parts[0].scorer
    handles = [PhraseList(biasing, phrases) if phrases else None for phrases in lists]
    return begin(search, len(lists), handles), handles


def ids(tokens) -> list[tuple[int, int, int]]:
    return [token[:3] for token in tokens]


@pytest.mark.parametrize("kind", ["transducer", "ctc"])
def test_a_batch_of_lists_equals_each_stream_alone_in_any_chunking(kind: str) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([40, 33, 40, 21])
    encoded = 3 * torch.randn(4, 40, WIDTH)
    alone, plain = [], []
    for b, phrases in enumerate(LISTS):
        one = EncoderOutput(encoded[b : b + 1, : int(lengths[b])], lengths[b : b + 1], None)
        alone.append(search_whole(searches(kind, (phrases,)), one).tokens[0])
        plain.append(search_whole(searches(kind, ((),)), one).tokens[0])
    assert [ids(a) != ids(p) for a, p in zip(alone, plain, strict=True)] == [True, False, True, True]
    search = searches(kind, ((),))
    for size in (40, 7, 1):
        state, handles = together(search, LISTS)
        found: list[list] = [[] for _ in LISTS]
        for start in range(0, 40, size):
            chunk = encoded[:, start : start + size]
            step = search(chunk, (lengths - start).clamp(0, chunk.shape[1]), state)
            state = step.state
            for tokens, new in zip(found, step.tokens, strict=True):
                tokens += new
        for tokens, last in zip(found, search.flush(state), strict=True):
            tokens += last
        assert [ids(tokens) for tokens in found] == [ids(tokens) for tokens in alone]
        assert len(handles) == 4


@pytest.mark.parametrize("kind", ["transducer", "ctc"])
def test_streams_with_lists_join_and_leave_a_batch(kind: str) -> None:
    torch.manual_seed(0)
    encoded, search = 3 * torch.randn(4, 30, WIDTH), searches(kind, ((),))
    full = torch.tensor([10])
    found: dict[int, list] = {b: [] for b in range(4)}

    def step(streams: list[int], starts: list[int], state):
        chunk = torch.stack([encoded[b, s : s + 10] for b, s in zip(streams, starts, strict=True)])
        output = search(chunk, full.expand(len(streams)), state)
        for b, new in zip(streams, output.tokens, strict=True):
            found[b] += new
        return output.state

    def end(stream: int, state) -> None:
        found[stream] += search.flush(state)[0]

    (first, kept), (third, also) = together(search, LISTS[:1]), together(search, LISTS[2:3])
    state = step([0, 2], [0, 0], states.stack([first, third]))
    (fourth, last) = together(search, LISTS[3:])
    state = step([0, 2, 3], [10, 10, 0], states.stack([state, fourth]))
    state = step([0, 2, 3], [20, 20, 10], state)
    parts = states.split(state)
    end(0, parts[0])
    end(2, parts[1])
    del kept, also  # their lists go, that of the last stream stays
    second, _ = together(search, LISTS[1:2])
    state = step([3, 1], [20, 0], states.stack([parts[2], second]))
    parts = states.split(state)
    end(3, parts[0])
    end(1, step([1], [20], step([1], [10], parts[1])))
    assert last
    for b, phrases in enumerate(LISTS):
        one = EncoderOutput(encoded[b : b + 1], torch.tensor([30]), None)
        assert ids(found[b]) == ids(search_whole(searches(kind, (phrases,)), one).tokens[0])


@pytest.mark.parametrize("kind", ["transducer", "ctc"])
def test_a_restarted_stream_goes_on_listening(kind: str) -> None:
    torch.manual_seed(0)
    encoded, lengths = 3 * torch.randn(4, 20, WIDTH), torch.full((4,), 20)

    def restarted(search, state):
        first = search(encoded, lengths, state)
        settled = search.settle(first.state)
        again = search.restart(settled.state, [[1, 2]] * len(encoded))
        second = search(encoded, lengths, again)
        return [a + b for a, b in zip(second.tokens, search.flush(second.state), strict=True)]

    search = searches(kind, ((),))
    state, handles = together(search, LISTS)
    found = restarted(search, state)
    assert len(handles) == 4
    for b, phrases in enumerate(LISTS):
        own = searches(kind, (phrases,))
        assert ids(found[b]) == ids(restarted(own, own.initial_state(4))[b])


@pytest.fixture
def recognizer(make_model) -> asr.Recognizer:
    return asr.load(make_model(), search=SearchConfig(method="beam", beam=8, max_symbols=3))


OWN = ["two three\t30"], [], ["four zero\t25", "one\t-5"]


def test_recordings_with_phrases_of_their_own(
    recognizer: asr.Recognizer, speech_like, make_model, tmp_path: Path
) -> None:
    recordings = [speech_like(1.5, seed=seed) for seed in (3, 4, 5)]
    batch = recognizer.transcribe_batch(recordings, hotwords=OWN)
    plain = recognizer.transcribe_batch(recordings)
    assert [a.text != b.text for a, b in zip(batch, plain, strict=True)] == [True, False, True]
    for samples, own, transcript in zip(recordings, OWN, batch, strict=True):
        rate = recognizer.sample_rate
        session = recognizer.stream(hotwords=own)
        for start in range(0, len(samples), 777):
            session.feed(samples[start : start + 777])
        assert transcript.text == recognizer.transcribe(samples, rate, hotwords=own).text
        assert transcript.text == session.finish()[-1].text
        if own:
            path = tmp_path / "words.txt"
            path.write_text("\n".join(own))
            settings = ["method=beam", "beam=8", f"fusion.biasing.hotwords={path}"]
            listed = asr.load(make_model(), settings=settings)
            assert transcript.text == listed.transcribe(samples, rate).text
            # A list of its own comes to that of all.
            assert listed.transcribe_batch([samples], hotwords=[["zero"]])[0].text
    del session
    gc.collect()
    recognizer.initial_state()
    assert recognizer.search.scorer.parts[0].scorer.idle


def test_a_live_stream_listens_in_every_utterance(
    recognizer: asr.Recognizer, speech_like, make_model, tmp_path: Path
) -> None:
    samples = np.concatenate([speech_like(2.5, seed=1), np.zeros(6000, np.float32), speech_like(2, seed=2)])
    endpoint = EndpointConfig(trailing_silence_s=0.24, nothing_s=0.4, max_length_s=0.9)
    words = tmp_path / "words.txt"
    words.write_text("two three\t30\n")
    settings = ["method=beam", "beam=8", f"fusion.biasing.hotwords={words}"]
    listed = asr.load(make_model(), settings=settings)
    found = []
    for session in (
        recognizer.stream(endpoint=endpoint, hotwords=["two three\t30"]),
        listed.stream(endpoint=endpoint),
        recognizer.stream(endpoint=endpoint),
    ):
        events = [*session.feed(samples), *session.finish()]
        found.append([event.text for event in events if event.kind == "final"])
    assert len(found[0]) > 3
    assert found[0] == found[1] != found[2]


def test_what_cannot_be_listened_for_is_refused(recognizer: asr.Recognizer, make_model) -> None:
    samples = np.zeros(8000, np.float32)
    for own, error, message in (
        (["zero", "Kathleen"], TokenError, "talk, phrase 2: the model cannot write 'Kathleen'"),
        (["zero\tmuch"], HotwordsError, "talk, phrase 1: expected a boost from -100 to 100"),
        ("zero", HotwordsError, "talk: expected a list of phrases, found 'zero'"),
        (["zero\t1", "zero\t2"], HotwordsError, "phrase 2: 'zero' has boost 2 here and 1 at talk, phrase 1"),
    ):
        with pytest.raises(error, match=message):
            recognizer.transcribe_batch([samples], ["talk"], hotwords=[own])
    greedy = asr.load(make_model())
    with pytest.raises(
        ConfigError,
        match=r"array: expected a beam search that listens for hotwords.* use search\.method=beam",
    ):
        greedy.transcribe(samples, 8000, hotwords=["zero"])


def test_a_manifest_lists_phrases_of_each_cut(make_model, write_tones, tmp_path: Path) -> None:
    words = {"one": 400.0, "two": 700.0}
    corpus = write_tones(tmp_path / "tones", words, {"test": 2})
    cuts = list(read_cuts(corpus / "test.jsonl.gz"))
    for cut in cuts:
        cut.custom = {"hotwords": [f"{cut.supervisions[0].text}\t60"]}
    write_cuts(cuts, corpus / "listed.jsonl.gz")
    options = Options(search=("method=beam", "beam=8"), cut_hotwords=True)
    assert options.suffix == "-method=beam-beam=8-cut-hotwords"
    model = make_model()
    for live_s in (None, 0.1):
        own = options._replace(live_chunk_s=live_s)
        found = evaluate(model, str(corpus / "listed.jsonl.gz"), tmp_path / "own", own)
        assert any(line.startswith("2 listed phrases: recall 100.0 % (4 / 4 said)") for line in found.lines)
    plain = evaluate(model, str(corpus / "listed.jsonl.gz"), tmp_path / "plain", Options())
    assert not any("listed" in line for line in plain.lines)
    cuts[0].custom = {"hotwords": "one"}
    write_cuts(cuts, corpus / "wrong.jsonl.gz")
    with pytest.raises(ManifestError, match=r"expected a list of phrases in custom\.hotwords, found 'one'"):
        evaluate(model, str(corpus / "wrong.jsonl.gz"), tmp_path / "wrong", options)
