"""What becomes of an n-best list at the end, against its definition; the same live, whole and in batches."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import asr
from asr.encoders import EncoderOutput
from asr.endpoint import EndpointConfig
from asr.errors import AudioError, ConfigError
from asr.evaluate import Options, evaluate
from asr.recognizer import Transcript
from asr.search import BeamSearch, Hypothesis, SearchConfig, SecondPass, Token, search_whole, second_pass
from asr.search.ctc_beam import CtcBeamSearch
from asr.search.fusion import Fusion, Weighted
from asr.search.rescore import RescoreWeights, log_probs
from asr.text.tokenizer import TokenizerConfig, train_tokenizer
from tests.asr.bigram import Bigram
from tests.asr.test_rescore import VOCAB, WIDTH, make

WORDS = train_tokenizer(TokenizerConfig(kind="word"), ["zero one two"])
WEIGHTS = RescoreWeights(own=0.4, ctc=0.3, transducer=0.3)


def distance(a: list[int], b: list[int]) -> int:
    """Of labels, each of them a word."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


@pytest.mark.parametrize("kind", [BeamSearch, CtcBeamSearch])
def test_it_is_the_weighted_sum_and_then_the_least_expected_distance(kind: type) -> None:
    """From hypotheses of a search with a language model, their scores, and the exact likelihoods."""
    assert WORDS.vocab_size == VOCAB
    model = make()
    torch.manual_seed(7)
    scorer = Fusion(VOCAB, [Weighted(Bigram(torch.randn(VOCAB, VOCAB)), 0.5)])
    search, changed = kind(model, 6, scorer=scorer), 0
    for _ in range(8):
        encoded = EncoderOutput(torch.randn(2, 9, WIDTH), torch.tensor([9, 6]), None)
        step = search(*encoded[:2], search.initial_state(2))
        lists = search.n_best(step.state)
        found = SecondPass(model, WORDS, WEIGHTS, 0.7)(step.tokens, lists, [encoded])
        for b, ranked in enumerate(found):
            labels = [[t.id for t in (*step.tokens[b], *h.tokens)] for h in lists[b]]
            frames = encoded.y[b, : int(encoded.y_lengths[b])]
            exact = [log_probs(model, head, frames, labels).tolist() for head in ("ctc", "transducer")]
            scores = [
                0.4 * h.log_prob + 0.3 * ctc + 0.3 * transducer + h.fused
                for h, ctc, transducer in zip(lists[b], *exact, strict=True)
            ]
            mass = [math.exp(0.7 * (score - max(scores))) for score in scores]
            risks = [
                sum(m * distance(a, other) for m, other in zip(mass, labels, strict=True)) / sum(mass)
                for a in labels
            ]
            order = sorted(range(len(labels)), key=lambda k: (risks[k], -scores[k]))
            assert [[t.id for t in each.hypothesis.tokens] for each in ranked] == [labels[k] for k in order]
            for each, k in zip(ranked, order, strict=True):
                assert each.score == pytest.approx(scores[k], abs=1e-4)
                assert (each.ctc, each.transducer) == pytest.approx([e[k] for e in exact], abs=1e-4)
                assert each.risk == pytest.approx(risks[k], abs=1e-5)
                assert each.posterior == pytest.approx(mass[k] / sum(mass), abs=1e-5)
            changed += order[0] != 0
    assert changed > 2


def test_without_either_the_list_is_as_the_search_has_it() -> None:
    model, said = make(), [Token(1, 0, 1, -0.1)]
    lists = [[Hypothesis([Token(k, 2, 3, -0.2)], -float(k), 0.5) for k in (1, 2, 3)]]
    (found,) = SecondPass(model, WORDS, RescoreWeights())([said], lists)
    assert [each.hypothesis.tokens for each in found] == [said + h.tokens for h in lists[0]]
    assert [tuple(each[1:]) for each in found] == [(h.score, None, None, None, None) for h in lists[0]]


def test_what_was_given_out_counts_where_a_word_goes_on() -> None:
    """Behind "ab", " d" and "c" make "ab d" and "abc", which are two errors apart, and not one."""
    letters = train_tokenizer(TokenizerConfig(kind="char"), ["abc d"])
    ids = {symbol: label for label, symbol in enumerate(letters.symbols)}

    def tokens(text: str) -> list[Token]:
        return [Token(ids[symbol], 0, 1, -0.1) for symbol in text.replace(" ", "▁")]

    lists = [[Hypothesis(tokens(text), -1.0, 0.0) for text in (" d", "c")]]
    (found,) = SecondPass(make(), letters, RescoreWeights(), 1.0)([tokens(" ab")], lists)
    assert [each.risk for each in found] == [1.0, 1.0]  # half of the time


SETTINGS = {
    "mbr": {"mbr": 0.3},
    "rescored": {"rescore": RescoreWeights(own=0.2, ctc=0.8)},
    "both": {"rescore": RescoreWeights(own=0.2, ctc=0.8), "mbr": 0.2},
}


def check_alike(one: Transcript, other: Transcript) -> None:
    """Equal tokens and alternatives, whose scores are equal but for rounding."""
    assert [t[:3] for t in one.tokens] == [t[:3] for t in other.tokens]
    assert [a.text for a in one.alternatives] == [a.text for a in other.alternatives]
    for a, b in zip(one.alternatives, other.alternatives, strict=True):
        assert [x is None for x in a[1:]] == [x is None for x in b[1:]]
        assert [x for x in a[1:] if x is not None] == pytest.approx(
            [x for x in b[1:] if x is not None], abs=5e-3
        )


@pytest.mark.parametrize("head", ["transducer", "ctc"])
@pytest.mark.parametrize("name", SETTINGS)
def test_whole_recordings_batches_and_streams_decide_alike(
    name: str, head: str, make_model, speech_like
) -> None:
    search = SearchConfig(method="beam", beam=6, head=head, max_symbols=2, nbest=4, **SETTINGS[name])
    directory, settings = make_model(kind="hybrid"), ["method=beam", "beam=6"]
    recognizer, plain = asr.load(directory, search=search), asr.load(directory, settings=settings)
    for other in (recognizer, plain):
        with torch.no_grad():  # so that they are less sure
            other.network.joiner.output.weight.mul_(0.4)
            other.network.ctc.weight.mul_(0.2)
    recordings = [speech_like(seconds, seed=seed) for seed, seconds in enumerate((2.0, 1.1, 1.7))]
    batch, changed = recognizer.transcribe_batch(recordings), 0
    for samples, expected in zip(recordings, batch, strict=True):
        assert 1 < len(expected.alternatives) <= 4
        assert expected.alternatives[0].text == expected.text
        assert (expected.alternatives[0].risk is None) == (name == "rescored")
        assert (expected.alternatives[0].ctc is None) == (name == "mbr")
        check_alike(recognizer.transcribe(samples, recognizer.sample_rate), expected)
        session = recognizer.stream()
        for start in range(0, len(samples), 1234):
            session.feed(samples[start : start + 1234])
        check_alike(session.finish()[-1].transcript, expected)
        changed += plain.transcribe_batch([samples])[0].text != expected.text
    assert changed or head == "ctc"


def test_what_makes_no_sense_is_refused(make_model, monkeypatch) -> None:
    model, seconds = make_model(), np.zeros(8000 * 3, np.float32)
    for settings in (["mbr=1"], ["rescore.ctc=0.5"], ["nbest=3"]):
        with pytest.raises(ConfigError, match=r"search\.method=greedy: expected beam with search\.rescore"):
            asr.load(model, settings=settings)
    with pytest.raises(ConfigError, match=r"search\.rescore: this model has no CTC head"):
        asr.load(model, settings=["method=beam", "rescore.ctc=0.5"])
    for settings in (["mbr=-1"], ["mbr=.nan"], ["rescore.own=0"], ["rescore.lstm=1"], ["nbest=65"]):
        with pytest.raises(ConfigError, match="--search: "):
            asr.load(model, settings=["method=beam", *settings])
    recognizer = asr.load(model, settings=["method=beam", "rescore.transducer=1"])
    with pytest.raises(ConfigError, match=r"expected a stream that is one utterance, or .* found rules"):
        recognizer.stream(endpoint=EndpointConfig())
    monkeypatch.setattr(second_pass, "LONGEST_RESCORED_S", 2.0)
    session = recognizer.stream()
    session.feed(seconds[:15000])
    for call in (
        lambda: session.feed(seconds[:9000]),
        lambda: recognizer.transcribe(seconds, 8000),
        lambda: recognizer.transcribe_batch([seconds]),
    ):
        with pytest.raises(
            AudioError, match=r"expected at most 2 s with search\.rescore, found 3 s; leave it"
        ):
            call()
    assert session.finish()[-1].transcript.duration_s == pytest.approx(15000 / 8000)
    assert asr.load(model, settings=["method=beam", "mbr=1"]).transcribe(seconds, 8000).duration_s == 3.0


def test_a_long_recording_in_blocks_has_an_n_best_list_too(make_model, speech_like, monkeypatch) -> None:
    monkeypatch.setattr(asr.recognizer, "WHOLE_S", 1.0)
    monkeypatch.setattr("asr.pipeline.BLOCK_S", 0.7)
    recognizer = asr.load(make_model(), settings=["method=beam", "mbr=0.3", "nbest=2"])
    samples = speech_like(2.2, seed=5)
    (found,) = recognizer.transcribe_batch([samples])
    check_alike(found, recognizer.transcribe(samples, 8000))
    assert len(found.alternatives) == 2


def test_commands_tell_of_the_best(call, make_model, write_tones, speech_like, tmp_path: Path) -> None:
    model, path = make_model(), tmp_path / "a.wav"
    soundfile.write(path, speech_like(1.5, seed=3), 8000)
    arguments = "transcribe", path, "--model", model, "--beam", 4, "--nbest", 3
    code, out, _ = call(*arguments, "--format", "json", "--search", "mbr=1")
    entry = json.loads(out)
    assert code == 0
    assert entry["nbest"][0]["text"] == entry["text"]
    assert len(entry["nbest"]) == 3
    assert set(entry["nbest"][0]) == {"text", "score", "log_prob", "fused", "posterior", "risk"}
    code, live, _ = call(*arguments, "--format", "json", "--search", "mbr=1", "--stream")
    assert (code, json.loads(live)["nbest"]) == (0, entry["nbest"])
    code, _, err = call(*arguments)
    assert (code, err) == (1, "asr: --nbest: expected --format json, found txt\n")
    corpus = write_tones(tmp_path / "tones", {"one": 400.0}, {"test": 2})
    options = Options(search=("method=beam", "nbest=2"))
    evaluate(model, str(corpus / "test.jsonl.gz"), tmp_path / "out", options)
    lines = [json.loads(line) for line in (tmp_path / "out" / "hyp.jsonl").read_text().splitlines()]
    assert [line["nbest"][0]["text"] for line in lines] == [line["text"] for line in lines]


def test_minus_infinity_is_null_in_json() -> None:
    model = make()
    silent = EncoderOutput(torch.zeros(1, 1, WIDTH), torch.tensor([1]), None)
    lists = [[Hypothesis([Token(1, 0, 1, -0.1)] * 3, -1.0, 0.0), Hypothesis([], -2.0, 0.0)]]
    (ranked,) = SecondPass(model, WORDS, RescoreWeights(ctc=1.0))([[]], lists, [silent])
    assert [len(each.hypothesis.tokens) for each in ranked] == [0, 3]
    transcript = asr.transcript.make_transcript([], WORDS, 0.04, 1.0, 0, ranked)
    assert asr.transcript.as_json(transcript.alternatives[1]) == {
        "text": WORDS.decode([1, 1, 1]),
        "score": None,
        "log_prob": -1.0,
        "fused": 0.0,
        "ctc": None,
    }


def test_search_whole_without_a_second_pass_has_no_list() -> None:
    encoded = EncoderOutput(torch.randn(1, 5, WIDTH), torch.tensor([5]), None)
    assert search_whole(BeamSearch(make(), 2), encoded).n_best == ()
