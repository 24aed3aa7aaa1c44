r"""Back-off n-gram language models, asked by the batch.

The probability of a word w behind the words h, of which no more count than the order allows:

    log p(w | h) = log_prob(h w)                      if the n-gram h w is listed
                   backoff(h) + log p(w | h')         otherwise; h' is h without its first word

where backoff(h) is 0 for an h that is not listed. Every word of the vocabulary is listed alone, so this ends.

The listed n-grams are the edges of a trie whose nodes are contexts. Node 0 is the empty context; behind an
edge (h, w) is the context h w. Edges are sorted by order and then by (context, word), and in this one order
edge e of less than the highest order leads to node e + 1, so that a trie is five arrays::

    keys    (E,) int64    context * words + word, ascending: finding an edge is a binary search
    scores  (E,) float32  log_prob less the chain of the context, see below
    after   (E,) int32    the context that the next word needs to know: the longest suffix of h w that is one
    suffix  (C,) int32    the longest proper suffix of a context that is a context itself
    chain   (C,) float32  the sum of the backoff weights of a context and of all that it backs off to

The n-gram that decides log p(w | h) is the edge of w from the first of h, suffix(h), suffix(suffix(h)), ...
that has one, and with that edge, whatever context it leaves from,

    log p(w | h) = chain(h) + scores(edge)            and after(edge) is the context behind w.

Contexts that tell nothing (no n-gram goes on from them and their weight is 0) are passed over by `after`.
Logarithms are natural here. `<unk>` is in every vocabulary; where the file has none, its probability is 0.

Source: Katz 1987 (back-off); the trie of contexts with suffix links is that of Aho and Corasick 1975.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from asr.errors import ModelError
from asr.lms.arpa import MAX_ORDER, read_arpa
from asr.lms.ngram_file import ARRAYS, NgramFile, read_ngram, write_ngram
from asr.lms.trie import MAX_EDGES, build_trie

BEGIN, END = "<s>", "</s>"
UNKNOWN_WORDS = ("<unk>", "<UNK>")
"""How files write the word that stands for all others, the usual one first."""


@dataclass(frozen=True)
class NgramModel:
    """A back-off language model; see the module docstring. Immutable; a word is known by its index."""

    order: int
    words: tuple[str, ...]
    keys: Tensor
    scores: Tensor
    after: Tensor
    suffix: Tensor
    chain: Tensor

    @cached_property
    def ids(self) -> dict[str, int]:
        """The index of every word."""
        return {word: index for index, word in enumerate(self.words)}

    @cached_property
    def unknown(self) -> int:
        """The index of the word that stands for all that are not in the vocabulary."""
        return next(self.ids[word] for word in UNKNOWN_WORDS if word in self.ids)

    @property
    def closed(self) -> bool:
        """Whether unknown words have probability 0."""
        return math.isinf(float(self.scores[self.unknown]))

    @cached_property
    def begin(self) -> int:
        """The context at the beginning of a sentence."""
        return int(self.after[self.ids[BEGIN]]) if BEGIN in self.ids else 0

    @property
    def unigrams(self) -> Tensor:
        """(words,) natural logarithm of the probability of every word without a context."""
        return self.scores[: len(self.words)]

    def find(self, context: Tensor, words: Tensor) -> Tensor:
        """The n-grams that decide: edges (N,) int64 of words (N,) int64 behind contexts (N,) int64."""
        if self.order == 1:
            return words
        wanted = self.chains(context) * len(self.words) + words
        at = torch.searchsorted(self.keys, wanted).clamp_(max=len(self.keys) - 1)
        listed = self.keys.index_select(0, at.view(-1)).view_as(at) == wanted
        # Edges of longer contexts have larger numbers, and that of the word alone is the smallest.
        return torch.where(listed, at, words).amax(0)

    def chains(self, context: Tensor) -> Tensor:
        """(order - 1, N) int64: contexts (N,) int64 and, in turn, what they back off to."""
        chain = [context]
        for _ in range(self.order - 2):
            chain.append(self.suffix.index_select(0, chain[-1]))
        return torch.cat(chain).view(len(chain), -1)

    def score(self, context: Tensor, edges: Tensor) -> Tensor:
        """Natural logarithms of probability, float32 shaped like the edges (N,) that `find` gave."""
        return self.chain.index_select(0, context) + self.scores.index_select(0, edges)

    def follow(self, edges: Tensor) -> Tensor:
        """The contexts (N,) int64 behind edges (N,)."""
        return self.after.index_select(0, edges).long()

    def log_prob(self, sentence: list[str]) -> list[float]:
        """Log-probability (natural) of every word of a sentence, and of its end, given those before.

        Words that are not in the vocabulary are unknown words. Without `</s>` in the file the end has none.
        """
        words = [self.ids.get(word, self.unknown) for word in sentence]
        if END in self.ids:
            words.append(self.ids[END])
        context, found = torch.tensor([self.begin], device=self.keys.device), []
        for word in words:
            edge = self.find(context, torch.tensor([word], device=context.device))
            found.append(float(self.score(context, edge)))
            context = self.follow(edge)
        return found

    def with_unknown(self, log_prob: float) -> NgramModel:
        """The model with another probability (natural logarithm) of an unknown word without a context."""
        scores = self.scores.clone()
        scores[self.unknown] = log_prob
        return replace(self, scores=scores)

    def to(self, device: torch.device | str) -> NgramModel:
        """The model on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ARRAYS})

    def save(self, path: Path | str, *, compact: bool = False) -> None:
        """Write a safetensors file, aside and renamed; it loads much faster than an ARPA file.

        Compact, it takes about half the bytes, and scores are rounded to float16.
        """
        arrays = {name: getattr(self, name) for name in ARRAYS}
        write_ngram(Path(path), NgramFile(self.order, self.words, arrays), compact)

    @staticmethod
    def read(path: Path | str) -> NgramModel:
        """Read an ARPA file, gzipped or not, or what `save` wrote (a name that ends in .safetensors).

        Raises ModelError, which names the file, and of an ARPA file the line.
        """
        return _load(Path(path)) if Path(path).suffix == ".safetensors" else _from_arpa(Path(path))


def _from_arpa(path: Path) -> NgramModel:
    arpa = read_arpa(path)
    words = arpa.words
    if not set(words).intersection(UNKNOWN_WORDS):
        words = (*words, UNKNOWN_WORDS[0])
    trie = build_trie(arpa, len(words))
    arrays = {name: torch.from_numpy(array).to(ARRAYS[name]) for name, array in trie._asdict().items()}
    return NgramModel(len(arpa.sections), words, **arrays)


def _load(path: Path) -> NgramModel:
    """Read what `save` wrote; raises ModelError if it is anything else, so that no query reads elsewhere."""
    order, words, arrays = read_ngram(path)
    model = NgramModel(order, words, **arrays)
    wrong = _wrong(model)
    if wrong:
        raise ModelError(f"{path}: expected {wrong}, found otherwise; is the file damaged? Make it again")
    return model


def _wrong(model: NgramModel) -> str:
    """What does not hold of arrays that were read from a file, if anything."""
    edges, contexts, words = len(model.keys), len(model.suffix), len(model.words)
    if not 1 <= model.order <= MAX_ORDER or not words <= edges <= MAX_EDGES or contexts < 1:
        return "an order, words and contexts"
    if len(model.scores) != edges or len(model.after) != edges or len(model.chain) != contexts:
        return "arrays of one length"
    if len(model.ids) != words or not model.ids.keys() & set(UNKNOWN_WORDS):
        return "distinct words and <unk> among them"
    ascending = bool((model.keys[1:] > model.keys[:-1]).all()) and int(model.keys[-1]) < contexts * words
    if not ascending or not torch.equal(model.keys[:words], torch.arange(words)):
        return "ascending keys"
    backwards = bool((model.suffix[1:] < torch.arange(1, contexts)).all()) and int(model.suffix[0]) == 0
    if not backwards or int(model.suffix.min()) < 0:
        return "suffixes that lead back to the empty context"
    if not 0 <= int(model.after.min()) <= int(model.after.max()) < contexts:
        return "contexts behind every word"
    if not bool(model.chain.isfinite().all()) or bool(
        (model.scores.isnan() | (model.scores == math.inf)).any()
    ):
        return "scores that are numbers"
    return ""
