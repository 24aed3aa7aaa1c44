"""A word n-gram for a recogniser that writes letters or pieces of words, as a Scorer.

What a word costs is known when it ends, which is late: a search has long dropped what it should have kept, or
kept what it should have dropped. So every label pays in advance. With a(n) the look-ahead of node n of the
lexicon (the most, or the sum, of the unigram probabilities of the words that go through it; 0 at the root), c
the words before and w the word that ends at n,

    a label within a word from node m to node n:    a(n) - a(m)
    the end of the word:                            log p(w | c) - a(n)

and over a whole word it is log p(w | c), exactly. The end of a word is a label '▁', a label that begins with
it, or the end of the utterance, which adds log p(</s> | c). An empty word ('▁' at the beginning, or two of
them) costs nothing and is none.

What is not in the lexicon is an unknown word: after k labels it has cost log p(<unk>) + k * penalty, and when
it ends log p(<unk> | c) + k * penalty. Where the model has no `<unk>`, its least probable word stands in. A
beginning of a word that ends too early is an unknown word as well.

Source: look-ahead of unigrams in a prefix tree, Steinbiss et al. 1994 and Ortmanns et al. 1996.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from asr.config import Config
from asr.errors import ConfigError
from asr.lms.lexicon import Case, Lexicon, build_lexicon, spellings
from asr.lms.ngram import BEGIN, END, UNKNOWN_WORDS, NgramModel
from asr.lms.ways import TABLE_ENTRIES, make_ways
from asr.text.tokenizer import Tokenizer


class WordNgramConfig(Config):
    """How words of a language model score labels. Logarithms are natural."""

    ahead: Literal["max", "sum"] = "max"
    """Of the words that a label leads to, the most probable or all together."""
    case: Case = "keep"
    """How the recogniser writes the model's words; of words that become one the most probable is taken."""
    open: bool = True
    """Words outside the lexicon may be written; else they are forbidden."""
    unknown: float | None = Field(default=None, le=0)
    """Log-probability of an unknown word without a context, in place of that of the model's `<unk>`."""
    penalty: float = Field(default=-1.0, le=0)
    """What every label of an unknown word costs besides."""


@dataclass(frozen=True)
class WordNgramState:
    """Where hypotheses are in the lexicon and in the language model.

    Two tensors, as a search copies states more often than it looks into them.
    """

    places: Tensor
    """(N, 4) int64: the context of the language model before the word that is being written, the node of the
    lexicon, the labels of the word, and the context when it has ended."""
    costs: Tensor
    """(N, 2) float32: what these labels have cost, and what it costs to end the word, 0 for an empty one."""


class WordNgram:
    """Scores of labels by a word n-gram; a Scorer (asr.lms.base), on the device of the model."""

    lexicon: Lexicon

    def __init__(
        self,
        model: NgramModel,
        tokenizer: Tokenizer,
        config: WordNgramConfig | None = None,
        *,
        table_entries: int = TABLE_ENTRIES,
    ) -> None:
        """`table_entries`: see asr.lms.ways.

        Raises ConfigError if the recogniser can write none of the words.
        """
        self.config = config or WordNgramConfig()
        self.vocab_size = tokenizer.vocab_size
        special = {BEGIN, END, *UNKNOWN_WORDS}
        listed = zip(range(len(model.words)), model.words, model.unigrams.tolist(), strict=True)
        entries, self.unspelled = spellings(
            (word for word in listed if word[1] not in special), tokenizer, self.config.case
        )
        """Words of the model that the recogniser cannot write, as the model has them."""
        if not entries:
            raise ConfigError(
                f"{tokenizer} can write none of the {len(self.unspelled)} words of the language model "
                f"({' '.join(self.unspelled[:5])}, ...); set case to lower or upper, or take another model"
            )
        self.word_count = len(entries)
        unknown = self.config.unknown
        if unknown is None and model.closed:
            unknown = min(entry.log_prob for entry in entries if math.isfinite(entry.log_prob))
        self.model = model if unknown is None else model.with_unknown(unknown)
        self._unknown = float(self.model.unigrams[model.unknown])
        self.lexicon = Lexicon(
            *(
                part.to(model.keys.device)
                for part in build_lexicon(entries, tokenizer, model.unknown, self.config.ahead)
            )
        )
        start, lost = self.lexicon.start_node[self.lexicon.starts], self.lexicon.lost
        first = self._unknown + self.config.penalty if self.config.open else -math.inf
        self._start_scores = torch.where(start == lost, first, self.lexicon.ahead[start])
        self._ways = make_ways(self.lexicon, table_entries)
        self._is_start = self.lexicon.is_start
        self._end = model.ids.get(END)

    def report(self) -> str:
        """One line: how many words the lexicon has, and which the recogniser cannot write."""
        line = f"{self.word_count} words"
        if self.unspelled:
            shown = " ".join(self.unspelled[:5]) + (" ..." if len(self.unspelled) > 5 else "")
            line += f", and {len(self.unspelled)} that the recogniser cannot write ({shown})"
        return line

    def initial_state(self, batch: int, device: torch.device | None = None) -> WordNgramState:
        """State of `batch` hypotheses that have said nothing, behind `<s>`."""
        device, begin = device or self.model.keys.device, self.model.begin
        places = torch.tensor([[begin, 0, 0, begin]], device=device).repeat(batch, 1)
        return WordNgramState(places, torch.zeros(batch, 2, device=device))

    def score(self, state: WordNgramState) -> Tensor:
        """(N, V) what every label would pay; 0 for blank."""
        (_, node, length, _), (paid, ending) = state.places.unbind(1), state.costs.unbind(1)
        scores = self._ways.worth(node)
        if self.config.open:
            scores = torch.where(scores == -math.inf, self._lost(length + 1)[:, None], scores)
        scores -= paid[:, None]
        scores.index_copy_(1, self.lexicon.starts, ending[:, None] + self._start_scores)
        scores[:, 0] = 0
        return scores

    def advance(self, state: WordNgramState, labels: Tensor) -> WordNgramState:
        """State after labels (N,)."""
        context, node, length, behind = state.places.unbind(1)
        starts = self._is_start.index_select(0, labels)
        context = torch.where(starts, behind, context)
        node = self._ways.follow(node, labels)
        length = length.masked_fill(starts, 0) + (node > 0)
        return self._state(context, node, length)

    def end(self, state: WordNgramState) -> Tensor:
        """(N,) what it costs to end the word and the sentence."""
        behind, ending = state.places[:, 3], state.costs[:, 1]
        if self._end is None:
            return ending
        edges = self.model.find(behind, torch.full_like(behind, self._end))
        return ending + self.model.score(behind, edges)

    def _state(self, context: Tensor, node: Tensor, length: Tensor) -> WordNgramState:
        words = self.lexicon.words.index_select(0, node)
        unknown = self._lost(length)
        paid = torch.where(node == self.lexicon.lost, unknown, self.lexicon.ahead.index_select(0, node))
        edges = self.model.find(context, words)
        ending = self.model.score(context, edges) - paid
        if self.config.open:
            extra = unknown - self._unknown
            ending = torch.where(words == self.model.unknown, ending + extra, ending)
        else:
            ending = ending.masked_fill(words == self.model.unknown, -math.inf)
        empty = node == 0
        behind = torch.where(empty, context, self.model.follow(edges))
        costs = torch.stack((paid, ending.masked_fill(empty, 0)), dim=1)
        return WordNgramState(torch.stack((context, node, length, behind), dim=1), costs)

    def _lost(self, length: Tensor) -> Tensor:
        """What unknown words have paid after some labels."""
        return self._unknown + length * self.config.penalty
