"""Neural language models in beam search: what they add, in any chunking, and how they are chosen."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import asr
from asr import state as states
from asr.config import override
from asr.encoders import EncoderOutput
from asr.errors import ConfigError, ModelError
from asr.evaluate import Options
from asr.lm_directory import LmModelConfig, load_lm, save_lm
from asr.lms import AwdLstmConfig, NeuralLm, NeuralLmConfig, TransformerLmConfig, build_neural_lm
from asr.lms.cache import CacheConfig, NeuralCache
from asr.search import BeamSearch, CtcBeamSearch, FusionConfig, SearchConfig, search_whole
from asr.search.fusion import Fusion, Weighted
from asr.text.tokenizer import TokenizerConfig, train_tokenizer
from tests.asr import test_beam, test_ctc_beam
from tests.asr.bigram import Bigram
from tests.asr.test_fusion import ARPA

AWD = AwdLstmConfig(dim=6, hidden=9, layers=2)
TRANSFORMER = TransformerLmConfig(dim=8, heads=2, layers=2, history=3)
WEIGHT, REWARD = 0.7, 0.2


def lively(config: NeuralLmConfig, vocab_size: int = test_beam.VOCAB) -> NeuralLm:
    """A model that is sure of what it says, and of other things after other labels."""
    torch.manual_seed(3)
    model = build_neural_lm(config, vocab_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
        model.bias.copy_(torch.randn(vocab_size))
    return model


@torch.no_grad()
def of_sentence(model: NeuralLm, labels: tuple[int, ...]) -> float:
    """log p of the labels and of the end, read from the model asked once about the whole sentence."""
    rows = model.whole(torch.tensor([labels], dtype=torch.int64).reshape(1, -1))[0].double()
    return float(sum(row[label] for row, label in zip(rows, (*labels, 0), strict=True)))


def searches(scorer: Fusion, beam: int) -> dict[str, tuple[Any, int]]:
    """Searches of a transducer and of CTC, and how wide what they hear is."""
    transducer = BeamSearch(test_beam.make("rnnt", bias=1.0), beam, max_symbols=2, scorer=scorer)
    ctc = CtcBeamSearch(test_ctc_beam.make(), beam, scorer=scorer)
    return {"transducer": (transducer, test_beam.WIDTH), "ctc": (ctc, test_ctc_beam.WIDTH)}


@pytest.mark.parametrize("config", [AWD, TRANSFORMER], ids=["awd", "transformer"])
@pytest.mark.parametrize("kind", ["transducer", "ctc"])
def test_what_is_added_is_the_log_probability_of_the_whole_sentence(
    config: NeuralLmConfig, kind: str
) -> None:
    """Whatever was forked, merged, reordered and dropped on the way; two models add both."""
    model, bigram = lively(config), Bigram(torch.randn(test_beam.VOCAB, test_beam.VOCAB))
    parts = [Weighted(model, WEIGHT), Weighted(bigram, 0.3)]
    search, width = searches(Fusion(test_beam.VOCAB, parts, REWARD), 6)[kind]
    lengths = [14, 9, 1]
    encoded = torch.randn(3, 14, width, generator=torch.Generator().manual_seed(1))
    found = search(encoded, torch.tensor(lengths), search.initial_state(3))
    checked = set()
    for given, hypotheses in zip(found.tokens, search.n_best(found.state), strict=True):
        assert hypotheses
        for hypothesis in hypotheses:
            labels = tuple(token.id for token in given + hypothesis.tokens)
            expected = WEIGHT * of_sentence(model, labels) + 0.3 * bigram.of(labels) + REWARD * len(labels)
            assert hypothesis.fused == pytest.approx(expected, abs=1e-4), labels
            checked.add(labels)
    assert len(checked) > 6
    assert max(map(len, checked)) > 3


@pytest.mark.parametrize("scorer", ["awd", "transformer", "cache"])
@pytest.mark.parametrize("kind", ["transducer", "ctc"])
def test_any_chunking_and_any_batch_finds_the_same(kind: str, scorer: str) -> None:
    model = lively(TRANSFORMER if scorer == "transformer" else AWD)
    chosen = NeuralCache(model, CacheConfig(size=5, weight=0.3)) if scorer == "cache" else model
    search, width = searches(Fusion(test_beam.VOCAB, [Weighted(chosen, WEIGHT)], reward=1.2), 4)[kind]
    lengths = [20, 11, 4]
    encoded = torch.randn(3, 20, width, generator=torch.Generator().manual_seed(2))
    whole = search_whole(search, EncoderOutput(encoded, torch.tensor(lengths), None))
    assert len(whole.tokens[0]) > 3
    for b, length in enumerate(lengths):
        alone = search_whole(search, EncoderOutput(encoded[b : b + 1], torch.tensor([length]), None))
        test_beam.assert_same(alone.tokens[0], whole.tokens[b])
    assert fed_in_pieces(search, encoded, lengths) == [
        [token[:3] for token in tokens] for tokens in whole.tokens
    ]


def fed_in_pieces(search: Any, encoded: Tensor, lengths: list[int]) -> list[list[tuple[int, ...]]]:
    """Ids and times; between the pieces the streams change places, as a server's do."""
    rng, position = random.Random(1), [0] * len(lengths)
    state, order = search.initial_state(len(lengths)), list(range(len(lengths)))
    tokens: list[list[Any]] = [[] for _ in lengths]
    while any(p < n for p, n in zip(position, lengths, strict=True)):
        turned = [*order[1:], order[0]]
        state, order = states.select(state, torch.tensor([*range(1, len(order)), 0])), turned
        new = [min(rng.choice([0, 1, 2, 6]), lengths[b] - position[b]) for b in order]
        chunk = torch.randn(len(order), max(new), encoded.shape[2])
        for row, (b, count) in enumerate(zip(order, new, strict=True)):
            chunk[row, :count] = encoded[b, position[b] : position[b] + count]
            position[b] += count
        found = search(chunk, torch.tensor(new), state)
        state = found.state
        for b, more in zip(order, found.tokens, strict=True):
            tokens[b] += more
    for b, last in zip(order, search.flush(state), strict=True):
        tokens[b] += last
    return [[token[:3] for token in each] for each in tokens]


WORDS = "zero one two three four"


def write_lm(directory: Path, kind: str = "word", text: str = WORDS) -> Path:
    tokenizer = train_tokenizer(TokenizerConfig(kind=kind), [text])
    network = lively(AWD, tokenizer.vocab_size)
    config = LmModelConfig(network=AWD, vocab_size=tokenizer.vocab_size)
    save_lm(directory, config, network, tokenizer, "# a language model\n")
    return directory


def test_a_directory_is_chosen_as_a_file_is(make_model, speech_like, tmp_path: Path) -> None:
    directory, lm = make_model(kind="hybrid"), write_lm(tmp_path / "letters")
    samples = speech_like(0.8, seed=3)
    beam = ["method=beam", "beam=3"]
    for head in ("transducer", "ctc"):
        plain = asr.load(directory, settings=beam, head=head)
        fused = asr.load(directory, settings=[*beam, f"fusion.lm={lm}", "fusion.lm_weight=5"], head=head)
        _, part = fused.search.scorer.parts
        assert isinstance(part.scorer, NeuralLm)
        assert part.weight == 5
        text = fused.transcribe(samples, fused.sample_rate).text
        assert text != plain.transcribe(samples, plain.sample_rate).text
        assert text == fused.transcribe_batch([samples[:2000], samples])[1].text
        for chunk in (333, 2500):
            stream = asr.Session(fused, fused.sample_rate)
            for start in range(0, len(samples), chunk):
                stream.feed(samples[start : start + chunk])
            assert stream.finish()[-1].text == text


def test_several_at_once_each_with_its_weight(make_model, tmp_path: Path) -> None:
    directory = make_model()
    (directory / "words.arpa").write_text(ARPA)
    write_lm(directory / "letters")
    settings = ["method=beam", "fusion.lm=words.arpa", "fusion.lm_weight=0.5"]
    more = 'fusion.more_lms=[{"lm": "letters", "weight": 0.2, "cache": {"size": 7}}, {"lm": "letters"}]'
    parts = asr.load(directory, settings=[*settings, more]).search.scorer.parts[1:]
    kinds = [(type(part.scorer).__name__, part.weight) for part in parts]
    assert kinds == [("WordNgram", 0.5), ("NeuralCache", 0.2), ("AwdLstm", 0.3)]
    assert parts[1].scorer.config.size == 7
    only = asr.load(directory, settings=["method=beam", more]).search.scorer.parts[1:]
    assert len(only) == 2
    assert FusionConfig(more_lms=({"lm": "x"},)).empty is False
    assert FusionConfig().empty


def test_what_the_recogniser_learnt_from_its_texts_can_be_taken_off(make_model, tmp_path: Path) -> None:
    """Density ratio and LODR: a weight below 0, on the command line and in a configuration."""
    from asr.cli.options import search_settings

    directory = make_model()
    (tmp_path / "target.arpa").write_text(ARPA)
    (tmp_path / "source.arpa").write_text(ARPA.replace("-0.7 zero", "-0.2 zero"))
    target, source = tmp_path / "target.arpa", tmp_path / "source.arpa"
    settings = search_settings(3, [f"{target}:0.5", f"{source}:-0.2"], None)
    ratio = asr.load(directory, settings=settings).search.scorer
    alone = [
        asr.load(directory, settings=search_settings(3, [f"{lm}:1"], None)).search.scorer
        for lm in (target, source)
    ]
    scores = [scorer.score(scorer.initial_state(1)) for scorer in (ratio, *alone)]
    assert not torch.allclose(scores[1], scores[2])
    torch.testing.assert_close(scores[0], 0.5 * scores[1] - 0.2 * scores[2])
    for lms in (["x:0"], ["x", "y:0"]):
        with pytest.raises(ConfigError, match="expected a weight other than 0: leave the language model out"):
            override(SearchConfig(), search_settings(3, lms, None))


def test_a_model_whose_labels_are_others_is_one_line(make_model, tmp_path: Path) -> None:
    directory = make_model()
    cases = {
        "more": ("word", f"{WORDS} five", "6 of kind word, 1 is '▁four'.*7 of kind word, 1 is '▁five'"),
        "letters": ("char", "abc", "6 of kind word, 1 is '▁four'.*5 of kind char, 1 is 'a'"),
    }
    for name, (kind, text, told) in cases.items():
        lm = write_lm(tmp_path / name, kind, text)
        with pytest.raises(
            ModelError, match=rf"^.*{name}: expected the labels of .*{told}.*=DIR of this one$"
        ):
            asr.load(directory, settings=["method=beam", f"fusion.lm={lm}"])
    with pytest.raises(ModelError, match="expected a language model, found a recogniser"):
        asr.load(directory, settings=["method=beam", f"fusion.lm={directory}"])
    with pytest.raises(ModelError, match="expected a recogniser, found a language model"):
        asr.load(tmp_path / "more")
    (tmp_path / "words.arpa").write_text(ARPA)
    cached = ["method=beam", f"fusion.lm={tmp_path / 'words.arpa'}", "fusion.lm_cache={size: 3}"]
    with pytest.raises(ConfigError, match=r"words\.arpa: expected the directory of a neural .* an n-gram"):
        asr.load(directory, settings=cached)
    with pytest.raises(ConfigError, match=r"use search\.method=beam"):
        asr.load(directory, settings=[f"fusion.more_lms=[{{lm: {tmp_path / 'words.arpa'}}}]"])


def test_the_option_of_commands(call, make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from asr.cli.options import search_settings

    monkeypatch.chdir(tmp_path)
    write_lm(tmp_path / "a:3")
    settings = search_settings(None, ["words.arpa:0.5", "a:3", "b:0.25", "c:x"], ["fusion.reward=1"])
    found = override(SearchConfig(), settings).fusion
    assert [(lm.lm, lm.weight) for lm in found.lms] == [
        ("words.arpa", 0.5),
        ("a:3", 0.3),
        ("b", 0.25),
        ("c:x", 0.3),
    ]
    assert found.reward == 1
    assert search_settings(None, None, None) == []
    options = Options(search=tuple(search_settings(None, ["x/words.arpa", "/y/letters:0.2"], None)))
    assert options.suffix == "-lm=words.arpa-more_lms={lm:letters,weight:0.2}"


def test_a_sentence_goes_on_where_it_was(tmp_path: Path) -> None:
    """What a state has forgotten or mixed up would show in the labels behind it."""
    lm = load_lm(write_lm(tmp_path / "lm")).network
    labels = np.random.default_rng(0).integers(1, 6, (5, 7))
    state = lm.initial_state(5)
    with torch.no_grad():
        expected = lm.whole(torch.from_numpy(labels))
    for u in range(7):
        turned = torch.randperm(5)
        state = states.select(state, turned)
        labels, expected = labels[turned.numpy()], expected[turned]
        assert torch.allclose(lm.score(state)[:, 1:], expected[:, u, 1:], atol=1e-5)
        assert torch.allclose(lm.end(state), expected[:, u, 0], atol=1e-5)
        state = lm.advance(state, torch.from_numpy(labels[:, u]))
