"""Scorers joined to one, the internal language model, and both chosen by configuration."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import asr
from asr import state as states
from asr.config import load_config, save_config
from asr.errors import ConfigError, HotwordsError, ModelError, TokenError
from asr.export import export_model
from asr.lms import NgramModel
from asr.model_directory import CONFIG, ModelConfig
from asr.search import BeamSearch, FusionConfig, SearchConfig, build_search
from asr.search.fusion import Fusion, Weighted
from asr.search.internal_lm import InternalLm, without_internal
from asr.train.finetune import finetune_recipe
from tests.asr.bigram import Bigram
from tests.asr.test_beam import VOCAB, make

ARPA = """\\data\\
ngram 1=8
ngram 2=3

\\1-grams:
-99 <s> -0.3
-1.0 </s>
-2.0 <unk>
-0.7 zero -0.2
-0.8 one -0.2
-0.9 two -0.2
-1.0 three -0.2
-1.1 four -0.2

\\2-grams:
-0.1 <s> one
-0.2 one two
-0.3 two </s>

\\end\\
"""


def test_fusion_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    tables = torch.randn(VOCAB, VOCAB), torch.randn(VOCAB, VOCAB)
    fusion = Fusion(VOCAB, [Weighted(Bigram(tables[0]), 0.7), Weighted(Bigram(tables[1]), -0.2)], reward=0.1)
    state = fusion.initial_state(3)
    assert states.batch_size(state) == 3
    said = torch.tensor([[1, 2], [3, 3], [2, 1]])
    total = torch.zeros(3)
    for labels in said.T:
        scores = fusion.score(state)
        assert bool((scores[:, 0] == 0).all())
        total += scores.gather(1, labels[:, None])[:, 0]
        state = fusion.advance(state, labels)
    total += fusion.end(state)
    for labels, score in zip(said.tolist(), total.tolist(), strict=True):
        first, second = (Bigram(table).of(tuple(labels)) for table in tables)
        assert score == pytest.approx(0.7 * first - 0.2 * second + 0.1 * len(labels), abs=1e-5)


def test_what_is_taken_off_says_nothing_of_what_it_forbids() -> None:
    table = torch.zeros(VOCAB, VOCAB)
    table[:, 2] = -math.inf
    for weight, expected in ((1.0, -math.inf), (-0.5, 0.0)):
        fusion = Fusion(VOCAB, [Weighted(Bigram(table), weight)])
        assert float(fusion.score(fusion.initial_state(1))[0, 2]) == expected


@pytest.mark.parametrize("weight", [0.0, math.nan, math.inf])
def test_a_weight_has_to_be_one(weight: float) -> None:
    with pytest.raises(ConfigError, match="Bigram: expected a finite weight other than 0"):
        Fusion(VOCAB, [Weighted(Bigram(torch.zeros(VOCAB, VOCAB)), weight)])


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected the 9 labels of the recogniser, found 4"):
        Fusion(9, [Weighted(Bigram(torch.zeros(VOCAB, VOCAB)))])


@torch.no_grad()
@pytest.mark.parametrize("topology", ["rnnt", "tdt", "multi_blank"])
def test_the_internal_language_model_is_the_joiner_without_audio(topology: str) -> None:
    model = make(topology)
    scorer = InternalLm(model)
    state, history = scorer.initial_state(1), []
    for label in (2, 1, 3, 3):
        y = model.predictor.whole(torch.tensor([history], dtype=torch.int64).reshape(1, -1))[:, -1]
        hidden = torch.tanh(model.joiner.encoder.bias + model.joiner.predictor(y[0]))
        weights, bias = model.joiner.output.weight[1:VOCAB], model.joiner.output.bias[1:VOCAB]
        expected = (weights @ hidden + bias).log_softmax(0)
        scores = scorer.score(state)[0]
        assert float(scores[0]) == 0
        assert torch.allclose(scores[1:], expected, atol=1e-5)
        state = scorer.advance(state, torch.tensor([label]))
        history.append(label)
    assert scorer.end(state).tolist() == [0.0]


class Anonymous:
    """A scorer that nobody knows for what it is."""

    def __init__(self, scorer: InternalLm) -> None:
        self.vocab_size = scorer.vocab_size
        self.initial_state, self.score = scorer.initial_state, scorer.score
        self.advance, self.end = scorer.advance, scorer.end


@torch.no_grad()
@pytest.mark.parametrize("topology", ["rnnt", "tdt", "multi_blank"])
def test_a_search_takes_the_internal_language_model_from_its_own_rows(topology: str) -> None:
    """The scores are those with a scorer, of this model alone and of several streams at any place."""
    model, other, rng = make(topology), make(topology, sharp=2), torch.Generator().manual_seed(1)
    bigram = Weighted(Bigram(torch.randn(VOCAB, VOCAB, generator=rng)), 0.3)
    y, lengths = torch.randn(2, 6, model.encoder.output_dim, generator=rng), torch.tensor([6, 4])
    found = []
    for internal in (InternalLm(model), Anonymous(InternalLm(model)), InternalLm(other)):
        scorer = Fusion(VOCAB, [bigram, Weighted(internal, -0.7)], 0.2)
        search = BeamSearch(model, 4, scorer=scorer)
        state = search.initial_state(2)
        for begin in (0, 3):
            state = search(y[:, begin : begin + 3], (lengths - begin).clamp(0, 3), state).state
        found.append([[each.score for each in row] for row in search.n_best(state)])
    assert len(without_internal(Fusion(VOCAB, [Weighted(InternalLm(model), -0.7)]), other)[0].parts) == 1
    for own, apart, others in zip(*found, strict=True):
        assert own == pytest.approx(apart, abs=1e-4)
        assert own != pytest.approx(others, abs=1e-4)


def test_greedy_search_and_ctc_take_no_scorer(make_model) -> None:
    model = make("rnnt")
    with pytest.raises(ConfigError, match=r"use search\.method=beam"):
        build_search(SearchConfig(), model, Fusion(VOCAB))
    search = build_search(SearchConfig(method="beam", beam=3), model, Fusion(VOCAB))
    assert isinstance(search, BeamSearch)


def test_a_language_model_is_chosen_by_settings(make_model, speech_like, tmp_path: Path) -> None:
    """It decides between words that sound alike: here all of them do."""
    directory = make_model()
    (directory / "words.arpa").write_text(ARPA)
    settings = ["method=beam", "beam=8", "fusion.lm=words.arpa", "fusion.lm_weight=20", "fusion.reward=30"]
    samples = speech_like(1.5, seed=3)

    def said(*settings: str) -> list[str]:
        recognizer = asr.load(directory, settings=settings)
        return recognizer.transcribe(samples, recognizer.sample_rate).text.split()

    with_lm = said(*settings)
    assert with_lm != said("method=beam", "beam=8")
    assert with_lm[:2] == ["one", "two"]
    weak = said("method=beam", "beam=8", "fusion.lm=words.arpa", "fusion.lm_weight=0.0001")
    assert weak == said("method=beam", "beam=8")
    with pytest.raises(ModelError, match=r"absent\.arpa"):
        asr.load(directory, settings=["method=beam", "fusion.lm=absent.arpa"])
    with pytest.raises(ConfigError, match="--search"):
        asr.load(directory, settings=["beam=none"])
    with pytest.raises(ConfigError, match=r"use search\.method=beam"):
        asr.load(directory, settings=["fusion.lm=words.arpa"])


def test_another_latency_keeps_the_language_model(make_model) -> None:
    directory = make_model()
    (directory / "words.arpa").write_text(ARPA)
    recognizer = asr.load(directory, settings=["method=beam", "fusion.lm=words.arpa"])
    parts = recognizer.search.scorer.parts
    assert [type(part.scorer).__name__ for part in parts] == ["PhraseBiasing", "WordNgram"]
    assert np.isclose(parts[1].weight, 0.3)


def test_hotwords_are_chosen_by_settings(make_model, speech_like, tmp_path: Path) -> None:
    directory, words = make_model(), tmp_path / "words.txt"
    words.write_text("two three\t30\n")
    samples = speech_like(1.5, seed=3)

    def said(*settings: str) -> str:
        recognizer = asr.load(directory, settings=["method=beam", "beam=8", *settings])
        return recognizer.transcribe(samples, recognizer.sample_rate).text

    plain, biased = said(), said(f"fusion.biasing.hotwords={words}")
    assert "two three" not in plain
    assert "two three" in biased
    words.write_text("two three\n")
    assert said(f"fusion.biasing.hotwords={words}", "fusion.biasing.boost=0") == plain
    words.write_text("two\nKathleen\n")
    with pytest.raises(TokenError, match=r"words\.txt:2: the model cannot write 'Kathleen'"):
        said(f"fusion.biasing.hotwords={words}")
    with pytest.raises(HotwordsError, match=r"absent\.txt: expected a file"):
        said("fusion.biasing.hotwords=absent.txt")


def with_language_model(directory: Path, lm: str) -> Path:
    """The model directory, its language model named in its configuration."""
    config = load_config(directory / CONFIG, ModelConfig)
    search = SearchConfig(method="beam", fusion=FusionConfig(lm=lm))
    save_config(config.model_copy(update={"search": search}), directory / CONFIG)
    return directory


def test_an_export_takes_the_language_model_along(make_model, tmp_path: Path) -> None:
    directory = with_language_model(make_model(), "words.arpa")
    (directory / "words.arpa").write_text(ARPA)
    export_model(directory, tmp_path / "small", "int8")
    assert (tmp_path / "small" / "words.arpa").read_text() == ARPA
    assert len(asr.load(tmp_path / "small").search.scorer.parts) == 2


def test_an_export_with_another_search(make_model, tmp_path: Path, call) -> None:
    (tmp_path / "any.arpa").write_text(ARPA)
    code, _, err = call(
        "export", make_model(), tmp_path / "out", "--beam", 3, "--lm", tmp_path / "any.arpa",
        "--search", "fusion.lm_weight=0.7",
    )  # fmt: skip
    assert code == 0, err
    (tmp_path / "any.arpa").unlink()
    recognizer = asr.load(tmp_path / "out")
    assert recognizer.search_config.beam == 3
    fusion = recognizer.search_config.fusion
    assert (Path(fusion.lm).name, fusion.lm_weight) == ("words.safetensors", 0.7)
    assert NgramModel.read(fusion.lm).words
    # On, with its own, which stays as it is.
    again = tmp_path / "again"
    assert call("export", tmp_path / "out", again, "--search", "beam=5")[0] == 0
    assert (again / "words.safetensors").read_bytes() == (tmp_path / "out" / "words.safetensors").read_bytes()
    assert asr.load(again).search_config.beam == 5
    code, _, err = call("export", again, tmp_path / "none", "--beam", 2, "--lm", tmp_path / "missing.arpa")
    assert code != 0
    assert "missing.arpa" in err
    assert not (tmp_path / "none").exists()


def test_an_export_writes_nothing_elsewhere(make_model, tmp_path: Path) -> None:
    """Whatever a model directory that somebody made says where its language model is."""
    directory = with_language_model(make_model(), "../words.arpa")
    (directory.parent / "words.arpa").write_text(ARPA)
    (tmp_path / "other").mkdir()
    export_model(directory, tmp_path / "other" / "small", "int8")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["small"]


def test_fine_tuning_begins_without_the_language_model(make_model) -> None:
    directory = with_language_model(make_model(), "words.arpa")
    search = finetune_recipe(directory).search
    assert (search.method, search.fusion) == ("beam", FusionConfig())
