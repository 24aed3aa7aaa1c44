from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from asr.errors import ModelError
from asr.lms.ngram import NgramModel

WORDS = ["<s>", "</s>", "<unk>", "a", "b", "c"]
LN10 = math.log(10)


@pytest.mark.parametrize("order", [1, 2, 3, 6])
def test_sentences_score_as_the_format_defines(tmp_path: Path, arpas, order: int) -> None:
    ngrams = arpas.make(order, WORDS, 80, seed=order)
    model = NgramModel.read(arpas.write(tmp_path / "lm.arpa", ngrams))
    assert model.order == order
    assert not model.closed
    rng = random.Random(order)
    for _ in range(20):
        sentence = [rng.choice([*"abc", "other"]) for _ in range(rng.randrange(9))]
        words = ["<s>", *(word if word in WORDS else "<unk>" for word in sentence), "</s>"]
        expected = [LN10 * arpas.log10(ngrams, words[:i], words[i]) for i in range(1, len(words))]
        assert model.log_prob(sentence) == pytest.approx(expected, abs=1e-5)


def test_rows_of_a_batch_do_not_know_each_other(tmp_path: Path, arpas) -> None:
    ngrams = arpas.make(4, WORDS, 100)
    model = NgramModel.read(arpas.write(tmp_path / "lm.arpa", ngrams))
    rng = random.Random(1)
    histories = [[rng.choice(WORDS) for _ in range(rng.randrange(6))] for _ in range(40)]
    context = torch.zeros(40, dtype=torch.int64)
    for i, history in enumerate(histories):
        for word in history:
            one = model.find(context[i : i + 1], torch.tensor([model.ids[word]]))
            context[i] = model.follow(one)[0]
    words = torch.tensor([rng.randrange(len(WORDS)) for _ in histories])
    edges = model.find(context, words)
    expected = [
        LN10 * arpas.log10(ngrams, history, WORDS[word])
        for history, word in zip(histories, words.tolist(), strict=True)
    ]
    torch.testing.assert_close(model.score(context, edges), torch.tensor(expected), atol=1e-5, rtol=0)
    alone = [model.find(context[i : i + 1], words[i : i + 1]) for i in range(40)]
    assert torch.equal(edges, torch.cat(alone))
    assert model.find(context[:0], words[:0]).shape == (0,)


def test_a_model_worked_out_by_hand(tmp_path: Path, arpas) -> None:
    half, third = math.log10(1 / 2), math.log10(1 / 3)
    ngrams = [
        {("<s>",): (-99, half), ("</s>",): (third, 0), ("a",): (third, third), ("b",): (third, 0)},
        {("<s>", "a"): (half, third), ("a", "a"): (half, 0)},
        {("<s>", "a", "b"): (half, 0)},
    ]
    model = NgramModel.read(arpas.write(tmp_path / "lm.arpa", ngrams))
    # <s> a: listed. <s> a b: listed. a b </s>: neither "a b" nor "b </s>" is listed, b weighs nothing.
    assert model.log_prob(["a", "b"]) == pytest.approx([math.log(1 / 2), math.log(1 / 2), math.log(1 / 3)])
    # <s> a a: from <s> a (1/3) to a a (1/2). a a </s>: from a a (1) to a (1/3) to </s> (1/3).
    assert model.log_prob(["a", "a"]) == pytest.approx([math.log(1 / 2), math.log(1 / 6), math.log(1 / 9)])
    assert model.log_prob(["b"]) == pytest.approx([math.log(1 / 6), math.log(1 / 3)])


def test_contexts_that_tell_nothing_are_passed_over(tmp_path: Path, arpas) -> None:
    ngrams = [
        {("a",): (-1, -0.5), ("b",): (-1, 0)},
        {("a", "a"): (-1, 0), ("a", "b"): (-1, -0.3), ("b", "a"): (-1, 0)},
        {("b", "a", "a"): (-1, 0)},
    ]
    model = NgramModel.read(arpas.write(tmp_path / "lm.arpa", ngrams))

    def after(text: str) -> int:
        context = torch.zeros(1, dtype=torch.int64)
        for word in text:
            context = model.follow(model.find(context, torch.tensor([model.ids[word]])))
        return int(context)

    assert after("aa") == after("a") == after("aaaa")
    assert len({after("a"), after("ab"), after("ba"), after("b")}) == 4


def test_a_vocabulary_without_unknown_words(tmp_path: Path, arpas) -> None:
    ngrams = arpas.make(2, ["a", "b"], 3)
    model = NgramModel.read(arpas.write(tmp_path / "lm.arpa", ngrams))
    assert model.closed
    assert model.log_prob(["a", "x"])[1] == -math.inf
    assert len(model.log_prob(["a", "x"])) == 2  # there is no </s>
    opened = model.with_unknown(-7.0)
    assert not opened.closed
    assert opened.log_prob(["a", "x", "b"])[1] == pytest.approx(-7 + LN10 * ngrams[0][("a",)][1])
    assert opened.log_prob(["a", "x", "b"])[2] == pytest.approx(LN10 * ngrams[0][("b",)][0])
    assert model.closed


def test_probabilities_of_zero_stay(tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    path.write_text("\\data\\\nngram 1=2\n\\1-grams:\n-inf a\n-1e300 b\n\\end\\\n")
    assert NgramModel.read(path).log_prob(["a", "b"]) == [-math.inf, -math.inf]


def test_an_ngram_listed_twice(tmp_path: Path, arpas) -> None:
    ngrams = arpas.make(3, WORDS, 20)
    path = arpas.write(tmp_path / "lm.arpa", ngrams)
    lines = path.read_text().splitlines()
    first = lines.index("\\3-grams:") + 1
    lines.insert(first + 2, lines[first].replace("\t", "1\t", 1))
    count = len(ngrams[2])
    path.write_text("\n".join(lines).replace(f"ngram 3={count}", f"ngram 3={count + 1}") + "\n")
    text = lines[first].split("\t")[1]
    with pytest.raises(ModelError, match=f"lm.arpa:{first + 3}: expected every n-gram once, found '{text}'"):
        NgramModel.read(path)


def test_saved_and_read_again(tmp_path: Path, arpas) -> None:
    model = NgramModel.read(arpas.write(tmp_path / "lm.arpa", arpas.make(3, [*WORDS, "grün"], 50)))
    model.save(tmp_path / "lm.safetensors")
    again = NgramModel.read(tmp_path / "lm.safetensors")
    assert (again.order, again.words, again.begin) == (3, model.words, model.begin)
    for name in ("keys", "scores", "after", "suffix", "chain"):
        assert torch.equal(getattr(again, name), getattr(model, name))
    assert again.log_prob(["grün", "a"]) == model.log_prob(["grün", "a"])


def test_saved_in_half_the_bytes(tmp_path: Path, arpas) -> None:
    model = NgramModel.read(arpas.write(tmp_path / "lm.arpa", arpas.make(3, [*WORDS, "grün"], 150)))
    for name, compact in (("plain", False), ("compact", True)):
        model.save(tmp_path / f"{name}.safetensors", compact=compact)
    again = NgramModel.read(tmp_path / "compact.safetensors")
    assert (again.order, again.words, again.begin) == (3, model.words, model.begin)
    for name in ("keys", "after", "suffix"):
        assert torch.equal(getattr(again, name), getattr(model, name))
    for name in ("scores", "chain"):
        assert torch.allclose(getattr(again, name), getattr(model, name), rtol=1 / 2048, atol=1e-6)
    arrays = [load_file(tmp_path / f"{name}.safetensors") for name in ("compact", "plain")]
    small, large = (sum(array.nbytes for array in file.values()) for file in arrays)
    assert small < 0.7 * large
    assert again.log_prob(["grün", "a"]) == pytest.approx(model.log_prob(["grün", "a"]), rel=1e-3)


@pytest.mark.parametrize(("name", "value"), [("edges", 1 << 30), ("edges", -1), ("next", 99), ("next", -1)])
def test_damaged_compact_files_are_refused(tmp_path: Path, arpas, name: str, value: int) -> None:
    model = NgramModel.read(arpas.write(tmp_path / "lm.arpa", arpas.make(3, WORDS, 50)))
    model.save(tmp_path / "whole", compact=True)
    tensors = load_file(tmp_path / "whole")
    tensors[name] = tensors[name].to(torch.int32)
    tensors[name][3] = value
    if name == "edges":  # whatever the number, their sum fits
        tensors[name][2] -= int(tensors[name].sum()) - len(tensors["next"])
    path = tmp_path / "lm.safetensors"
    save_file(tensors, path, {"format": "asr-ngram-2", "order": "3"})
    with pytest.raises(ModelError, match=r"lm\.safetensors: expected words and edges that fit"):
        NgramModel.read(path)


def damage(name: str, tensors: dict[str, torch.Tensor]) -> None:
    if name == "another dtype":
        tensors["after"] = tensors["after"].long()
    elif name == "a tensor less":
        del tensors["chain"]
    elif name == "another length":
        tensors["scores"] = tensors["scores"][1:]
    elif name == "keys in disorder":
        tensors["keys"][[-1, -2]] = tensors["keys"][[-2, -1]]
    elif name == "a key beyond all contexts":
        tensors["keys"][-1] = 1 << 60
    elif name == "a context beyond all":
        tensors["after"][0] = len(tensors["suffix"])
    elif name == "a negative context":
        tensors["after"][0] = -1
    elif name == "a circle of suffixes":
        tensors["suffix"][3] = 3
    elif name == "a negative suffix":
        tensors["suffix"][3] = -2
    elif name == "no number":
        tensors["scores"][1] = math.nan
    elif name == "an infinite chain":
        tensors["chain"][1] = math.inf
    elif name == "words that are no text":
        tensors["words"][0] = 255
    elif name == "a word twice":
        tensors["words"] = torch.frombuffer(bytearray(b"<unk>\na\na\nb\nc\nd"), dtype=torch.uint8)
    elif name == "no <unk>":
        tensors["words"] = torch.frombuffer(bytearray(b"a\nb\nc\nd\ne\nf"), dtype=torch.uint8)


@pytest.mark.parametrize(
    "name",
    [
        "another dtype",
        "a tensor less",
        "another length",
        "keys in disorder",
        "a key beyond all contexts",
        "a context beyond all",
        "a negative context",
        "a circle of suffixes",
        "a negative suffix",
        "no number",
        "an infinite chain",
        "words that are no text",
        "a word twice",
        "no <unk>",
        "order",
        "format",
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, arpas, name: str) -> None:
    NgramModel.read(arpas.write(tmp_path / "lm.arpa", arpas.make(3, WORDS, 50))).save(tmp_path / "whole")
    tensors = load_file(tmp_path / "whole")
    damage(name, tensors)
    metadata = {
        "format": "x" if name == "format" else "asr-ngram-1",
        "order": "0" if name == "order" else "3",
    }
    path = tmp_path / "lm.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(ModelError, match=r"lm\.safetensors: ") as caught:
        NgramModel.read(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="missing"):
        NgramModel.read(tmp_path / "missing.safetensors")
    (tmp_path / "lm.safetensors").write_bytes(b"\\data\\")
    with pytest.raises(ModelError, match="not a readable n-gram model"):
        NgramModel.read(tmp_path / "lm.safetensors")
