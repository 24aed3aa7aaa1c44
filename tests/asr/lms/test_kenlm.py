from __future__ import annotations

import importlib.util
import math
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from asr import state as states
from asr.errors import ConfigError, MissingExtraError, ModelError
from asr.lms.kenlm import MAGIC, KenlmConfig, KenlmTokens, is_kenlm
from asr.lms.ngram import NgramModel
from asr.lms.tokens import TokenNgram
from asr.text.tokenizer import TokenizerConfig, train_tokenizer

TOKENIZER = train_tokenizer(TokenizerConfig(kind="char"), ["ab cd"])
WORDS = ["<s>", "</s>", "<unk>", "a", "b", "c", "▁"]
"""The label d is not among them."""
LN10 = math.log(10)


@pytest.fixture(params=["stand-in", "kenlm"])
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, arpas):
    """What is imported: KenLM itself, or what behaves alike, so that the rest is tested without it."""
    if request.param == "kenlm":
        if importlib.util.find_spec("kenlm") is None:
            pytest.skip("kenlm is not installed: pip install kenlm")
        return
    loaded: dict[str, list] = {}

    class State:
        said: tuple[str, ...] = ()

    class Model:
        def __init__(self, path: str, config: object) -> None:
            self.ngrams = loaded[path]
            self.order = len(self.ngrams)

        def __contains__(self, word: str) -> bool:
            return word != "<unk>" and (word,) in self.ngrams[0]

        def NullContextWrite(self, state: State) -> None:  # noqa: N802
            state.said = ()

        def BeginSentenceWrite(self, state: State) -> None:  # noqa: N802
            state.said = ("<s>",)

        def BaseScore(self, state: State, word: str, after: State) -> float:  # noqa: N802
            known = word if (word,) in self.ngrams[0] else "<unk>"
            after.said = (*state.said, known)
            if (known,) not in self.ngrams[0]:
                return -100.0
            return arpas.log10(self.ngrams, state.said, known)

    monkeypatch.setitem(
        sys.modules, "kenlm", SimpleNamespace(State=State, Model=Model, Config=SimpleNamespace)
    )
    write = arpas.write

    def remember(path: Path, ngrams: list) -> Path:
        loaded[str(path)] = ngrams
        return write(path, ngrams)

    monkeypatch.setattr(arpas, "write", remember)


def closed_under_prefixes(ngrams: list) -> list:
    """KenLM wants the contexts of what it is given."""
    for n in range(len(ngrams) - 1, 0, -1):
        for words in ngrams[n]:
            for part in (words[:-1], words[1:]):
                ngrams[n - 1].setdefault(part, (-1.0, -0.1))
    return [{w: (min(p, 0.0), min(b, 0.0)) for w, (p, b) in part.items()} for part in ngrams]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(("order", "memory"), [(2, 1 << 20), (4, 1 << 20), (4, 0), (4, 80)])
def test_it_says_what_our_own_reader_says(tmp_path: Path, arpas, order: int, memory: int) -> None:
    ngrams = closed_under_prefixes(arpas.make(order, WORDS, 100, seed=order))
    path = arpas.write(tmp_path / "lm.arpa", ngrams)
    ours = TokenNgram(NgramModel.read(path), TOKENIZER)
    theirs = KenlmTokens(path, TOKENIZER, KenlmConfig(memory_bytes=memory))
    rng = random.Random(0)
    one, other = ours.initial_state(9), theirs.initial_state(9)
    for _ in range(7):
        torch.testing.assert_close(theirs.score(other), ours.score(one), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(theirs.end(other), ours.end(one), atol=1e-4, rtol=1e-5)
        labels = torch.tensor([rng.randrange(1, TOKENIZER.vocab_size) for _ in range(9)])
        one, other = ours.advance(one, labels), theirs.advance(other, labels)
    chosen = states.select(other, torch.tensor([8, 8]))
    assert torch.equal(theirs.score(chosen), theirs.score(other)[[8, 8]])
    assert theirs.score(theirs.initial_state(0)).shape == (0, TOKENIZER.vocab_size)
    assert len(theirs._rows) <= memory // (4 * TOKENIZER.vocab_size)


@pytest.mark.usefixtures("package")
def test_labels_that_the_model_lacks(tmp_path: Path, arpas) -> None:
    ngrams = closed_under_prefixes(arpas.make(2, [word for word in WORDS if word != "<unk>"], 20))
    path = arpas.write(tmp_path / "lm.arpa", ngrams)
    with pytest.raises(ConfigError, match=r"lm\.arpa: .* lacks 1 of the 5 labels \(d\)"):
        KenlmTokens(path, TOKENIZER)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lm.binary"
    path.write_bytes(MAGIC + b" format version 5\n\0")
    assert is_kenlm(path)
    assert not is_kenlm(tmp_path)
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(MissingExtraError, match=r"lm\.binary: .* pip install 'asr-transducer\[kenlm\]'"):
        KenlmTokens(path, TOKENIZER)
    with pytest.raises(ModelError, match="missing: expected a language model"):
        KenlmTokens(tmp_path / "missing", TOKENIZER)


@pytest.mark.skipif(
    importlib.util.find_spec("kenlm") is None, reason="kenlm is not installed: pip install kenlm"
)
def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "lm.binary").write_bytes(MAGIC + b"\0" * 10)
    with pytest.raises(ModelError, match=r"lm\.binary: expected a model that KenLM can read") as caught:
        KenlmTokens(tmp_path / "lm.binary", TOKENIZER)
    assert "\n" not in str(caught.value)
