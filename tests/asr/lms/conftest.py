"""N-gram models made at random, and what they say, by recursion over dictionaries."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

Ngrams = list[dict[tuple[str, ...], tuple[float, float]]]


class Arpas:
    """Of every order, from 1: n-gram to (log10 probability, log10 back-off weight)."""

    @staticmethod
    def make(order: int, words: Sequence[str], count: int, seed: int = 0) -> Ngrams:
        """Every word alone, and up to `count` n-grams of every other order, whose contexts may be missing."""
        rng = random.Random(seed)
        ngrams: Ngrams = [{(word,): (-3 * rng.random(), -rng.random()) for word in words}]
        for n in range(2, order + 1):
            drawn = [tuple(rng.choice(words) for _ in range(n)) for _ in range(count)]
            ngrams.append({g: (-3 * rng.random(), rng.choice([0.0, 0.4, -rng.random()])) for g in drawn})
        return ngrams

    @staticmethod
    def write(path: Path, ngrams: Ngrams) -> Path:
        lines = ["\\data\\", *(f"ngram {n}={len(part)}" for n, part in enumerate(ngrams, 1))]
        for n, part in enumerate(ngrams, 1):
            lines += ["", f"\\{n}-grams:"]
            for words, (prob, backoff) in part.items():
                weight = f"\t{backoff!r}" if backoff and n < len(ngrams) else ""
                lines.append(f"{prob!r}\t{' '.join(words)}{weight}")
        path.write_text("\n".join([*lines, "", "\\end\\", ""]), encoding="utf-8")
        return path

    @classmethod
    def whole(cls, order: int, words: Sequence[str], count: int, seed: int = 0) -> Ngrams:
        """The same, with probabilities of 1 together behind every context; `<s>` is never predicted."""
        rng = random.Random(seed)
        predicted = len(set(words) - {"<s>"})
        ngrams = [
            {g: (-99.0, 0.0) for g in part if g[-1] != "<s>" or len(g) == 1}
            for part in cls.make(order, words, count, seed)
        ]
        for part in ngrams:
            for context in sorted({g[:-1] for g in part}):
                followers = sorted(g for g in part if g[:-1] == context and g[-1] != "<s>")
                left = 0.0 if len(followers) == predicted else 0.1 + rng.random()
                shares = [0.1 + rng.random() for _ in followers]
                for g, share in zip(followers, shares, strict=True):
                    part[g] = (math.log10(share / (sum(shares) + left)), 0.0)
                if left:
                    lower = sum(10 ** cls.log10(ngrams, context[1:], g[-1]) for g in followers)
                    weight = math.log10(left / (sum(shares) + left) / (1 - lower))
                    # A context that is not listed would have no weight; listed so, it changes no other sum.
                    log_p = cls.log10(ngrams, context[:-1], context[-1])
                    ngrams[len(context) - 1][context] = (log_p, weight)
        return ngrams

    @classmethod
    def log10(cls, ngrams: Ngrams, history: Sequence[str], word: str) -> float:
        """log10 p(word | history), as the ARPA format defines it."""
        context = tuple(history)[len(history) - min(len(history), len(ngrams) - 1) :]
        listed = ngrams[len(context)].get((*context, word))
        if listed:
            return listed[0]
        weight = ngrams[len(context) - 1].get(context, (0.0, 0.0))[1]
        return weight + cls.log10(ngrams, context[1:], word)


@pytest.fixture(scope="session")
def arpas() -> type[Arpas]:
    return Arpas
