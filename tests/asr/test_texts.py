"""Batches of sentences: what is in them, how large they are, and that nothing is lost in windows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from asr.config import validate
from asr.data import texts
from asr.data.plan import Dealing
from asr.data.texts import TextBatch, TextBatches, TextBatchesConfig
from asr.errors import ConfigError, DataError, TokenError, TrainingError
from asr.text.tokenizer import TokenizerConfig, train_tokenizer

TOKENIZER = train_tokenizer(TokenizerConfig(), ["abcde fghij"])


def write(path: Path, count: int = 200, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    lines = ["".join(rng.choice(list("abcdefghij   "), rng.integers(1, 40))) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n\n  \n")
    return path


def batches(*files: Path, side: str = "train", training: bool = True, **settings: object) -> TextBatches:
    config = TextBatchesConfig(**{"max_labels": 120, "num_buckets": 4, "dev_every": 5, **settings})
    return TextBatches(files, config, TOKENIZER, side=side, training=training)  # type: ignore[arg-type]


def sentences(found: list[TextBatch]) -> list[str]:
    rows = (zip(batch.labels.tolist(), batch.lengths.tolist(), strict=True) for batch in found)
    return [TOKENIZER.decode(row[:length]) for batch in rows for row, length in batch]


def wanted(path: Path) -> list[str]:
    return [text for line in path.read_text().splitlines() if (text := " ".join(line.split()))]


@pytest.mark.parametrize("window_mb", [0.0001, 0.001, 8.0])
def test_every_sentence_once_in_an_epoch_within_bounds(tmp_path: Path, window_mb: float) -> None:
    files = [write(tmp_path / "a.txt"), write(tmp_path / "b.txt", 50, seed=1)]
    made = batches(*files, side="all", window_mb=window_mb)
    assert (len(made._windows) > 2) == (window_mb < 1)
    for _ in range(2):
        found = list(made)
        assert Counter(sentences(found)) == Counter(wanted(files[0]) + wanted(files[1]))
        for batch in found:
            rows, longest = batch.labels.shape
            assert rows * (longest + 1) <= 120
            assert longest == int(batch.lengths.max())
            assert (batch.labels[torch.arange(longest) >= batch.lengths[:, None]] == 0).all()
            assert batch.words == sum(len(text.split()) for text in sentences([batch]))
    assert len(made._kept) <= 2


def test_order_is_of_the_seed_and_the_epoch(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt")
    one, two, other = batches(file), batches(file), batches(file, seed=1)
    first, again = list(one), list(two)
    assert [b.labels.tolist() for b in first] == [b.labels.tolist() for b in again]
    assert [b.seed for b in first] == [b.seed for b in again]
    assert [b.labels.tolist() for b in first] != [b.labels.tolist() for b in one]  # the next epoch
    assert [b.labels.tolist() for b in first] != [b.labels.tolist() for b in other]
    still = batches(file, training=False, side="dev")
    assert sentences(list(still)) == sentences(list(still))


def test_held_out_sentences_are_never_learnt(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt")
    twice = tmp_path / "twice.txt"
    twice.write_text(file.read_text() + file.read_text().replace(" ", "  "))
    learnt = set(sentences(list(batches(twice))))
    held_out = set(sentences(list(batches(twice, side="dev"))))
    assert learnt | held_out == set(wanted(file))
    assert not learnt & held_out
    assert len(held_out) == pytest.approx(len(wanted(file)) / 5, rel=0.5)


def test_it_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt")
    whole, part = batches(file, window_mb=0.001), batches(file, window_mb=0.001)
    all_of_it = [*whole, *whole]
    iterator = part.steps()
    begun = [batch for _ in range(3) for batch in next(iterator)]
    again = batches(file, window_mb=0.001)
    again.load_state_dict(part.state_dict())
    rest = [*again, *again]
    assert [b.seed for b in begun + rest] == [b.seed for b in all_of_it]
    file.write_text(file.read_text().replace("a", "b", 1))
    with pytest.raises(TrainingError, match="found others"):
        batches(file, window_mb=0.001).load_state_dict(part.state_dict())


def test_processes_share_the_batches_of_one(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt")
    together = []
    for rank in range(3):
        own = batches(file)
        own.deal(Dealing(rank, 3, 3))
        together += [batch.seed for step in own.steps() for batch in step]
    assert Counter(together) == Counter(batch.seed for batch in batches(file))


def test_texts_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    with pytest.raises(DataError, match=r"a.txt: expected a text file"):
        batches(file)
    for content in (b"", b"\n \n"):
        file.write_bytes(content)
        with pytest.raises(DataError, match="no sentence to learn from"):
            len(batches(file))
    file.write_bytes(b"ab\nab x\n")
    with pytest.raises(TokenError, match=r"a.txt:2: the tokenizer has no symbol 'x'"):
        len(batches(file, side="all"))
    file.write_bytes(b"ab\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"a.txt:2: expected text in UTF-8"):
        len(batches(file, side="all"))
    file.write_bytes(b"ab\n" + b"abc" * 10 + b"\n")
    with pytest.raises(DataError, match=r"a.txt:2: expected a sentence of at most 29 labels, found 30"):
        len(batches(file, side="all", max_length=29))
    monkeypatch.setattr(texts, "MAX_LINE_BYTES", 1000)
    file.write_bytes(b"ab\nab\n" + b"a" * 5000)
    with pytest.raises(DataError, match=r"a.txt:3: expected lines of at most 1000 bytes"):
        batches(file, side="all", window_mb=0.0001)
    with pytest.raises(ConfigError, match="dev_every"):
        validate({"dev_every": 1}, TextBatchesConfig, "x.yaml")


def test_a_sentence_longer_than_a_batch_is_one_by_itself(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("ab\n" + "abc" * 50 + "\nab")
    found = list(batches(file, side="all"))
    assert sorted(len(batch.labels) for batch in found) == [1, 2]
