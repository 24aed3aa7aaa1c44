from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from asr import state as states
from asr.errors import ConfigError
from asr.lms.ngram import NgramModel
from asr.lms.tokens import TokenNgram, TokenNgramConfig
from asr.text.tokenizer import TokenizerConfig, train_tokenizer

TOKENIZER = train_tokenizer(TokenizerConfig(kind="char"), ["ab cd"])
WORDS = ["<s>", "</s>", "<unk>", "a", "b", "c", "▁", "other"]
"""The label d is not among them."""
LN10 = math.log(10)


def said(labels: list[int]) -> list[str]:
    return [piece if piece in WORDS else "<unk>" for piece in TOKENIZER.pieces(labels)]


@pytest.mark.parametrize("order", [1, 2, 3, 6])
def test_every_score_is_the_backoff_recursion(tmp_path: Path, arpas, order: int) -> None:
    ngrams = arpas.make(order, WORDS, 300, seed=order)
    scorer = TokenNgram(NgramModel.read(arpas.write(tmp_path / "lm.arpa", ngrams)), TOKENIZER)
    rng = random.Random(order)
    state, sequences = scorer.initial_state(12), [[] for _ in range(12)]
    for _ in range(9):
        scores, ends = scorer.score(state), scorer.end(state)
        assert scores.dtype == torch.float32
        assert not scores[:, 0].any()
        for row, labels in enumerate(sequences):
            history = ["<s>", *said(labels)]
            expected = [
                LN10 * arpas.log10(ngrams, history, word)
                for word in [*said(range(1, TOKENIZER.vocab_size)), "</s>"]
            ]
            found = torch.cat([scores[row, 1:], ends[row, None]])
            torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)
            labels.append(rng.randrange(1, TOKENIZER.vocab_size))
        state = scorer.advance(state, torch.tensor([labels[-1] for labels in sequences]))


def test_rows_are_independent_and_states_fork(tmp_path: Path, arpas) -> None:
    ngrams = arpas.make(4, WORDS, 300)
    scorer = TokenNgram(NgramModel.read(arpas.write(tmp_path / "lm.arpa", ngrams)), TOKENIZER)
    state = scorer.initial_state(5)
    for labels in ([1, 2, 3, 4, 5], [5, 1, 1, 2, 3]):
        state = scorer.advance(state, torch.tensor(labels))
    whole = scorer.score(state)
    for row, alone in enumerate(states.split(state)):
        assert torch.equal(scorer.score(alone), whole[row : row + 1])
    forked = states.select(state, torch.tensor([3, 3, 0]))
    assert torch.equal(scorer.score(forked), whole[[3, 3, 0]])
    after = scorer.advance(forked, torch.tensor([1, 2, 4]))
    assert torch.equal(
        scorer.score(states.select(after, torch.tensor([2]))),
        scorer.score(scorer.advance(states.select(state, torch.tensor([0])), torch.tensor([4]))),
    )
    nobody = scorer.initial_state(0)
    assert scorer.score(nobody).shape == (0, TOKENIZER.vocab_size)
    assert scorer.end(scorer.advance(nobody, torch.zeros(0, dtype=torch.int64))).shape == (0,)


def test_labels_that_the_model_lacks(tmp_path: Path, arpas) -> None:
    words = [word for word in WORDS if word != "<unk>"]
    model = NgramModel.read(arpas.write(tmp_path / "lm.arpa", arpas.make(2, words, 30)))
    with pytest.raises(ConfigError, match=r"lacks 1 of the 5 labels \(d\) and <unk>; .* set unknown"):
        TokenNgram(model, TOKENIZER)
    scorer = TokenNgram(model, TOKENIZER, TokenNgramConfig(unknown=-9.0))
    state = scorer.initial_state(1)
    missing = TOKENIZER.encode("d")[0]
    weight = model.chain[model.begin]
    torch.testing.assert_close(scorer.score(state)[0, missing], weight - 9)


def test_without_signs_for_begin_and_end(tmp_path: Path, arpas) -> None:
    ngrams = arpas.make(3, ["a", "b", "c", "d", "▁"], 40)
    scorer = TokenNgram(NgramModel.read(arpas.write(tmp_path / "lm.arpa", ngrams)), TOKENIZER)
    state = scorer.initial_state(2)
    label = TOKENIZER.encode("b")[0]
    assert scorer.score(state)[0, label].item() == pytest.approx(LN10 * ngrams[0][("b",)][0], abs=1e-5)
    assert scorer.end(state).tolist() == [0, 0]
