from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from asr import state as states
from asr.errors import ConfigError
from asr.lms.ngram import NgramModel
from asr.lms.ways import TABLE_ENTRIES
from asr.lms.words import WordNgram, WordNgramConfig
from asr.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

TEXTS = ["a an and ant bad band ban dab dan"]
SPECIAL = ["<s>", "</s>", "<unk>"]
LEXICON = ["a", "an", "and", "ant", "band", "dab"]
LN10 = math.log(10)
PENALTY, SUM = -0.7, "sum"

TOKENIZERS = {
    "char": train_tokenizer(TokenizerConfig(kind="char"), TEXTS),
    "bpe": train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=14), TEXTS),
    "word": train_tokenizer(TokenizerConfig(kind="word"), TEXTS),
    "unk": train_tokenizer(TokenizerConfig(kind="char", unk=True), TEXTS),
}


def spelled(tokenizer: Tokenizer, labels: list[int]) -> list[tuple[str, int, bool]]:
    """Words, how many labels each has, and whether it has ended."""
    words: list[tuple[str, int, bool]] = []
    for piece in tokenizer.pieces(labels):
        if piece.startswith("▁"):
            words = [(text, count, True) for text, count, _ in words]
            piece = piece[1:]
            if not piece:
                continue
        if words and not words[-1][2]:
            words[-1] = (words[-1][0] + piece, words[-1][1] + 1, False)
        else:
            words.append((piece, 1, False))
    return words


class Oracle:
    """What a sequence of labels has cost, by enumeration."""

    def __init__(self, arpas, ngrams, kind: str) -> None:
        self.arpas, self.ngrams, self.kind = arpas, ngrams, kind

    def ending(self, history: list[str], text: str, count: int) -> tuple[str, float]:
        word = text if text in LEXICON else "<unk>"
        extra = PENALTY * count if word == "<unk>" else 0.0
        return word, LN10 * self.arpas.log10(self.ngrams, history, word) + extra

    def cost(self, words: list[tuple[str, int, bool]]) -> float:
        total, history = 0.0, ["<s>"]
        for text, count, ended in words:
            if ended:
                word, price = self.ending(history, text, count)
                history.append(word)
                total += price
                continue
            through = [math.exp(LN10 * self.ngrams[0][(w,)][0]) for w in LEXICON if w.startswith(text)]
            if through:
                total += math.log(sum(through) if self.kind == SUM else max(through))
            else:
                total += LN10 * self.ngrams[0][("<unk>",)][0] + PENALTY * count
        return total

    def sentence(self, words: list[tuple[str, int, bool]]) -> float:
        history, total = ["<s>"], 0.0
        for text, count, _ in words:
            word, price = self.ending(history, text, count)
            history.append(word)
            total += price
        return total + LN10 * self.arpas.log10(self.ngrams, history, "</s>")


@pytest.mark.parametrize("kind", ["max", SUM])
@pytest.mark.parametrize("entries", [0, TABLE_ENTRIES], ids=["listed", "table"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_score_against_enumeration(tmp_path: Path, arpas, name: str, entries: int, kind) -> None:
    tokenizer = TOKENIZERS[name]
    ngrams = arpas.make(3, [*SPECIAL, *LEXICON], 150)
    model = NgramModel.read(arpas.write(tmp_path / "lm.arpa", ngrams))
    config = WordNgramConfig(ahead=kind, penalty=PENALTY)
    scorer = WordNgram(model, tokenizer, config, table_entries=entries)
    oracle, rng, count = Oracle(arpas, ngrams, kind), random.Random(0), 16
    sequences: list[list[int]] = [[] for _ in range(count)]
    known = [tokenizer.encode(" ".join(rng.choices(LEXICON, k=9))) for _ in range(count // 2)]
    state, sums = scorer.initial_state(count), torch.zeros(count)
    for step in range(8):
        scores, ends = scorer.score(state), scorer.end(state)
        assert not scores[:, 0].any()
        for row, labels in enumerate(sequences):
            words = spelled(tokenizer, labels)
            before = oracle.cost(words)
            expected = [
                oracle.cost(spelled(tokenizer, [*labels, label])) - before
                for label in range(1, tokenizer.vocab_size)
            ]
            torch.testing.assert_close(scores[row, 1:], torch.tensor(expected), atol=2e-5, rtol=0)
            whole = sums[row].item() + ends[row].item()
            assert whole == pytest.approx(oracle.sentence(words), abs=1e-4)
            # Half of them say words of the model, the others anything.
            random_label = rng.randrange(1, tokenizer.vocab_size)
            labels.append(known[row][step] if row < len(known) else random_label)
        chosen = torch.tensor([labels[-1] for labels in sequences])
        sums += scores.gather(1, chosen[:, None])[:, 0]
        state = scorer.advance(state, chosen)
    assert sum(text in LEXICON for labels in sequences for text, _, _ in spelled(tokenizer, labels)) > 10


def test_a_sentence_costs_what_the_model_says_however_it_is_cut(tmp_path: Path, arpas) -> None:
    model = NgramModel.read(
        arpas.write(tmp_path / "lm.arpa", arpas.make(3, [*SPECIAL, *LEXICON], 150, seed=3))
    )
    tokenizer = TOKENIZERS["bpe"]
    scorer = WordNgram(model, tokenizer)
    letters = {symbol: label for label, symbol in enumerate(tokenizer.symbols)}
    text = "band an ant a dab"
    cuts = [tokenizer.encode(text), [letters[c] for c in "▁" + text.replace(" ", "▁")]]
    assert cuts[0] != cuts[1]
    for labels in cuts:
        state, total = scorer.initial_state(1), 0.0
        for label in labels:
            total += scorer.score(state)[0, label].item()
            state = scorer.advance(state, torch.tensor([label]))
        assert total + scorer.end(state).item() == pytest.approx(sum(model.log_prob(text.split())), abs=1e-4)


def test_empty_words_cost_nothing(tmp_path: Path, arpas) -> None:
    model = NgramModel.read(arpas.write(tmp_path / "lm.arpa", arpas.make(3, [*SPECIAL, *LEXICON], 150)))
    tokenizer = TOKENIZERS["char"]
    scorer = WordNgram(model, tokenizer)
    boundary = tokenizer.symbols.index("▁")
    state = scorer.initial_state(1)
    assert scorer.end(state).item() == pytest.approx(model.log_prob([])[0], abs=1e-5)
    for label in (boundary, boundary, *tokenizer.encode("ant"), boundary, boundary):
        cost = scorer.score(state)[0, label].item()
        was_empty = state.places[0, 2].item() == 0
        state = scorer.advance(state, torch.tensor([label]))
        if label == boundary and was_empty:
            assert cost == 0
    assert scorer.end(state).item() == pytest.approx(model.log_prob(["ant"])[1], abs=1e-5)


def test_rows_are_independent_and_states_fork(tmp_path: Path, arpas) -> None:
    model = NgramModel.read(arpas.write(tmp_path / "lm.arpa", arpas.make(3, [*SPECIAL, *LEXICON], 150)))
    scorer = WordNgram(model, TOKENIZERS["bpe"])
    state = scorer.initial_state(5)
    for labels in ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]):
        state = scorer.advance(state, torch.tensor(labels))
    whole = scorer.score(state)
    for row, alone in enumerate(states.split(state)):
        assert torch.equal(scorer.score(alone), whole[row : row + 1])
        assert torch.equal(scorer.end(alone), scorer.end(state)[row : row + 1])
    forked = states.select(state, torch.tensor([4, 1, 1]))
    assert torch.equal(scorer.score(forked), whole[[4, 1, 1]])
    assert states.batch_size(states.stack([state, forked])) == 8
    nobody = scorer.advance(scorer.initial_state(0), torch.zeros(0, dtype=torch.int64))
    assert scorer.score(nobody).shape == (0, TOKENIZERS["bpe"].vocab_size)


def test_a_closed_vocabulary_forbids_other_words(tmp_path: Path, arpas) -> None:
    model = NgramModel.read(arpas.write(tmp_path / "lm.arpa", arpas.make(2, [*SPECIAL, *LEXICON], 60)))
    tokenizer = TOKENIZERS["char"]
    scorer = WordNgram(model, tokenizer, WordNgramConfig(open=False))
    state = scorer.initial_state(1)
    allowed = scorer.score(state)[0].isfinite()
    shown = "".join(tokenizer.symbols[label] for label in torch.nonzero(allowed)[1:, 0].tolist())
    assert shown == "abd▁"
    state = scorer.advance(state, torch.tensor(tokenizer.encode("b")))
    assert scorer.end(state).item() == -math.inf  # b is no word
    for label in tokenizer.encode("nx".replace("x", "b")):  # bnb leaves the tree
        state = scorer.advance(state, torch.tensor([label]))
        scores = scorer.score(state)
        assert not scores.isnan().any()
        assert (scores[:, 1:] == -math.inf).all()
    assert scorer.end(state).item() == -math.inf


def test_words_that_become_one_and_words_that_cannot_be_written(tmp_path: Path, arpas) -> None:
    ngrams = [{(word,): (-1.0, 0.0) for word in [*SPECIAL, "an", "AN", "An", "Ünder", "dan"]}]
    ngrams[0][("AN",)] = (-0.5, 0.0)
    model = NgramModel.read(arpas.write(tmp_path / "lm.arpa", ngrams))
    scorer = WordNgram(model, TOKENIZERS["char"], WordNgramConfig(case="lower"))
    assert scorer.word_count == 2
    assert scorer.unspelled == ["Ünder"]
    assert scorer.report() == "2 words, and 1 that the recogniser cannot write (Ünder)"
    state = scorer.initial_state(1)
    for label in TOKENIZERS["char"].encode("an"):
        state = scorer.advance(state, torch.tensor([label]))
    assert state.costs.sum().item() == pytest.approx(-0.5 * LN10)
    with pytest.raises(ConfigError, match=r"can write none of the 5 words .*\(an AN An Ünder dan, ...\)"):
        WordNgram(model, TOKENIZERS["char"], WordNgramConfig(case="upper"))


def test_unknown_words_where_the_model_has_none(tmp_path: Path, arpas) -> None:
    ngrams = [{("<s>",): (-99.0, -0.2), ("</s>",): (-0.5, 0.0), ("an",): (-0.3, -0.1), ("a",): (-2.0, -0.4)}]
    ngrams.append({("a", "an"): (-0.1, 0.0)})
    model = NgramModel.read(arpas.write(tmp_path / "lm.arpa", ngrams))
    tokenizer = TOKENIZERS["char"]
    for unknown, expected in ((None, -2.0 * LN10), (-5.0, -5.0)):
        scorer = WordNgram(model, tokenizer, WordNgramConfig(unknown=unknown, penalty=-1.0))
        state, total = scorer.initial_state(1), 0.0
        for label in tokenizer.encode("a bb an"):
            total += scorer.score(state)[0, label].item()
            state = scorer.advance(state, torch.tensor([label]))
        # <s> a, then bb at the weight of a and a penalty for each letter, then an behind nothing known.
        first, other = (-0.2 - 2.0) * LN10, -0.4 * LN10 + expected - 2
        last = (-0.3 - 0.1 - 0.5) * LN10
        assert total + scorer.end(state).item() == pytest.approx(first + other + last, abs=1e-4)


def test_probabilities_of_zero_do_not_spoil_the_sums(tmp_path: Path, arpas) -> None:
    ngrams = [{(word,): (-1.0, 0.0) for word in [*SPECIAL, "an", "and"]}]
    ngrams[0][("and",)] = (-math.inf, 0.0)
    model = NgramModel.read(arpas.write(tmp_path / "lm.arpa", ngrams))
    tokenizer = TOKENIZERS["char"]
    scorer = WordNgram(model, tokenizer)
    state = scorer.initial_state(1)
    for label in tokenizer.encode("and"):
        scores = scorer.score(state)
        assert scores.isfinite().all()
        state = scorer.advance(state, torch.tensor([label]))
    assert scorer.end(state).item() == -math.inf
