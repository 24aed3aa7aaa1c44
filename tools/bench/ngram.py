"""What n-gram models cost a search: one step of 64 hypotheses, beside the joiner of the packaged model.

    python tools/bench/ngram.py LM.arpa          # a word n-gram, e.g. the trigram that pocketsphinx carries

A step is `score` of all labels and `advance` by one. The peer of the n-gram over letters (order 6, random
weights, of the spelling of the LM's words) is the definition, a recursion over dictionaries; of the word
n-gram KenLM, if it is installed, asked for as many words. What is compared must first agree, to 1e-4. One
thread; the contestants take turns; times are medians; only ratios are printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measure import in_turn

from asr.lms.base import Scorer
from asr.lms.ngram import NgramModel
from asr.lms.tokens import TokenNgram
from asr.lms.words import WordNgram
from asr.model_directory import LoadedModel, load_model
from asr.text.tokenizer import Tokenizer

ENGLISH = Path(__file__).parents[2] / "asr/pretrained/english"
ROWS, ORDER, LETTER_WORDS, TOLERANCE = 64, 6, 20_000, 1e-4
Ngrams = list[dict[tuple[str, ...], tuple[float, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("arpa", type=Path)
    parser.add_argument("--repeats", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(ENGLISH)
    with tempfile.TemporaryDirectory() as folder:
        model = reading(arguments.arpa, Path(folder))
        letters = spelling_ngrams(model.words)
        lm = NgramModel.read(write(Path(folder) / "letters.arpa", letters))
    joiner = joining(loaded)
    rng = random.Random(0)
    text = " ".join(word for word in rng.choices(model.words, k=2000) if word.isalpha() and word.islower())
    labels = loaded.tokenizer.encode(text)
    starts = [rng.randrange(len(labels) - 40) for _ in range(ROWS)]
    steps = torch.tensor([labels[start : start + 40] for start in starts])
    for name, scorer, peer in (
        ("letters", TokenNgram(lm, loaded.tokenizer), definition(letters, loaded.tokenizer, steps)),
        ("words", WordNgram(model, loaded.tokenizer), kenlm_words(arguments.arpa, model, text.split())),
    ):
        times = in_turn(arguments.repeats, joiner, step(scorer, steps), *([peer] if peer else []))
        line = f"{name}: a step of {ROWS} rows takes {times[1] / times[0]:.1f} times as long as the joiner"
        print(line + (f"; the peer {times[2] / times[1]:.2f} times as long as the step" if peer else ""))


def reading(arpa: Path, folder: Path) -> NgramModel:
    start = time.process_time()
    model = NgramModel.read(arpa)
    text = time.process_time() - start
    model.save(folder / "lm.safetensors")
    start = time.process_time()
    NgramModel.read(folder / "lm.safetensors")
    ratio = text / (time.process_time() - start)
    print(f"{len(model.keys)} n-grams: the ARPA file takes {ratio:.0f} times as long as what save() wrote")
    return model


def joining(loaded: LoadedModel) -> Callable[[], object]:
    joiner = loaded.network.joiner
    frames, spoken = torch.randn(2, ROWS, joiner.config.dim)
    return torch.inference_mode()(lambda: joiner.combine(frames, spoken).log_softmax(-1))


def step(scorer: Scorer, steps: torch.Tensor) -> Callable[[], object]:
    """One label further at every call, from the beginning again at the end."""
    at, state = 0, scorer.initial_state(ROWS)

    def call() -> None:
        nonlocal at, state
        if at == steps.shape[1]:
            at, state = 0, scorer.initial_state(ROWS)
        scorer.score(state)
        state, at = scorer.advance(state, steps[:, at]), at + 1

    return torch.inference_mode()(call)


def spelling_ngrams(words: Sequence[str]) -> Ngrams:
    """All n-grams of letters in the words of a vocabulary, and weights by chance."""
    rng = random.Random(0)
    ngrams: Ngrams = [{("<s>",): (-99.0, -0.5), ("</s>",): (-2.0, 0.0), ("<unk>",): (-3.0, 0.0)}]
    ngrams += [{} for _ in range(ORDER - 1)]
    for word in sorted(words)[: 2 * LETTER_WORDS : 2]:
        for text in ("<s>", *word), ("▁", *word, "▁"), (*word, "</s>"):
            for n in range(1, ORDER + 1):
                for i in range(len(text) - n + 1):
                    if text[i : i + n] not in ngrams[n - 1]:
                        ngrams[n - 1][text[i : i + n]] = (-2 * rng.random(), -rng.random())
    return ngrams


def write(path: Path, ngrams: Ngrams) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.write("\\data\\\n" + "".join(f"ngram {n}={len(part)}\n" for n, part in enumerate(ngrams, 1)))
        for n, part in enumerate(ngrams, 1):
            file.write(f"\n\\{n}-grams:\n")
            file.writelines(f"{p}\t{' '.join(words)}\t{b}\n" for words, (p, b) in part.items())
        file.write("\n\\end\\\n")
    return path


def definition(ngrams: Ngrams, tokenizer: Tokenizer, steps: torch.Tensor) -> Callable[[], object]:
    """All labels of all rows by recursion, behind as many labels as the n-gram looks back."""

    def log10(context: tuple[str, ...], word: str) -> float:
        if (*context, word) in ngrams[len(context)]:
            return ngrams[len(context)][(*context, word)][0]
        return ngrams[len(context) - 1].get(context, (0.0, 0.0))[1] + log10(context[1:], word)

    contexts = [tuple(tokenizer.pieces(row)) for row in steps[:, : ORDER - 1].tolist()]
    vocabulary = [label if (label,) in ngrams[0] else "<unk>" for label in tokenizer.symbols[1:]]

    def call() -> torch.Tensor:
        return torch.tensor([[log10(context, word) for word in vocabulary] for context in contexts])

    with tempfile.TemporaryDirectory() as folder:
        scorer = TokenNgram(NgramModel.read(write(Path(folder) / "lm.arpa", ngrams)), tokenizer)
    state = scorer.initial_state(ROWS)
    for at in range(ORDER - 1):
        state = scorer.advance(state, steps[:, at])
    torch.testing.assert_close(
        scorer.score(state)[:, 1:], call() * math.log(10), atol=TOLERANCE, rtol=TOLERANCE
    )
    return call


def kenlm_words(arpa: Path, model: NgramModel, words: list[str]) -> Callable[[], object] | None:
    """A word of every row by KenLM, if there is one."""
    if importlib.util.find_spec("kenlm") is None:
        print("kenlm is not installed: the word n-gram has no peer")
        return None
    import kenlm

    peer = kenlm.Model(str(arpa))
    sentence = words[:50]
    theirs = [math.log(10) * score for score, _, _ in peer.full_scores(" ".join(sentence))]
    torch.testing.assert_close(
        torch.tensor(model.log_prob(sentence)), torch.tensor(theirs), atol=TOLERANCE, rtol=TOLERANCE
    )
    states = [kenlm.State() for _ in range(ROWS + 1)]
    peer.BeginSentenceWrite(states[0])

    def call() -> None:
        for row in range(ROWS):
            peer.BaseScore(states[row], words[row], states[row + 1])

    return call


if __name__ == "__main__":
    main()
