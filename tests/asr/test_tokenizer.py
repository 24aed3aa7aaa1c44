import itertools
import pickle
import unicodedata

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asr.errors import ConfigError, DataError, ModelError, TokenError
from asr.text.tokenizer import TokenizerConfig, WordSpan, clean, load_tokenizer, train_tokenizer

KINDS = ["char", "word", "bpe", "unigram"]
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEXTS = [f"{a} {b} {c}" for a in DIGITS for b in DIGITS[::2] for c in DIGITS[::3]]


def config_of(kind, unk=False, size=24):
    return TokenizerConfig(kind=kind, unk=unk, vocab_size=size if kind in {"bpe", "unigram"} else None)


@pytest.fixture(scope="module", params=[(kind, unk) for kind in KINDS for unk in (False, True)], ids=str)
def tokenizer(request):
    return train_tokenizer(config_of(*request.param), TEXTS)


def test_blank_is_zero_and_unk_is_one(tokenizer):
    assert tokenizer.symbols[0] == "<blank>"
    assert tokenizer.unk_id == (1 if tokenizer.config.unk else None)
    assert tokenizer.symbols[1].endswith("<unk>") == tokenizer.config.unk
    assert len(set(tokenizer.symbols)) == tokenizer.vocab_size
    if tokenizer.config.vocab_size:
        assert tokenizer.vocab_size == tokenizer.config.vocab_size
    used = {index for text in TEXTS for index in tokenizer.encode(text)}
    assert min(used) == (2 if tokenizer.config.unk else 1)
    assert max(used) < tokenizer.vocab_size


@given(
    words=st.lists(st.sampled_from(DIGITS), max_size=12), gap=st.sampled_from([" ", "  ", "\t\n", "\u00a0"])
)
@settings(max_examples=60, deadline=None)
def test_round_trip_on_known_words(tokenizer, words, gap):
    text = gap.join(words)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == " ".join(words)
    assert [word.text for word in tokenizer.words(ids)] == words
    assert "".join(tokenizer.pieces(ids)).replace("▁", " ").strip() == " ".join(words)


def train_largest(kind, text):
    """The size that a deliberately impossible request names."""
    with pytest.raises(ConfigError, match="at most") as caught:
        train_tokenizer(config_of(kind, size=5000), [text])
    return train_tokenizer(config_of(kind, size=int(str(caught.value).split()[-1])), [text])


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(st.characters(exclude_characters="▁▅\0", exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=60, deadline=None)
def test_round_trip_of_any_language(kind, text):
    """A tokenizer trained on a text gives it back, whatever its script.

    `<unk>` is SentencePiece's own sign, which cannot be learnt as text.
    """
    assume("<unk>" not in text)
    expected = " ".join(unicodedata.normalize("NFC", text).split())
    if not expected:
        return
    learned = kind in {"bpe", "unigram"}
    tokenizer = train_largest(kind, text) if learned else train_tokenizer(config_of(kind), [text])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == clean(text) == expected
    assert 0 not in ids


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_words_of_any_label_sequence_join_to_its_text(tokenizer, data):
    """A model may write any labels, for example two spaces in a row or a piece that continues no word."""
    ids = data.draw(st.lists(st.integers(1, tokenizer.vocab_size - 1), max_size=20))
    spans = tokenizer.words(ids)
    assert " ".join(span.text for span in spans) == tokenizer.decode(ids)
    for span, following in itertools.pairwise(spans):
        assert span.start < span.stop <= following.start
    for span in spans:
        assert "".join(tokenizer.pieces(ids[span.start : span.stop])).replace("▁", "") == span.text


def test_word_spans_leave_the_space_out():
    tokenizer = train_tokenizer(config_of("char"), ["two one"])
    ids = tokenizer.encode("two one")
    assert tokenizer.pieces(ids) == list("two▁one")
    assert tokenizer.words(ids) == [WordSpan("two", 0, 3), WordSpan("one", 4, 7)]


def test_pieces_of_words_and_of_blank():
    tokenizer = train_tokenizer(config_of("word"), ["two one"])
    assert tokenizer.symbols == ("<blank>", "▁one", "▁two")
    assert tokenizer.pieces([0, 2]) == ["<blank>", "▁two"]


@pytest.mark.parametrize("kind", KINDS)
def test_out_of_vocabulary_names_utterance_and_symbol(kind):
    tokenizer = train_tokenizer(config_of(kind), TEXTS)
    symbol = "naïve" if kind == "word" else "ï"
    with pytest.raises(TokenError, match=f"utterance u-17: .*'{symbol}'.*tokenizer.unk=true"):
        tokenizer.encode("one naïve" if kind == "word" else "one nïne", "u-17")


@pytest.mark.parametrize("kind", KINDS)
def test_out_of_vocabulary_becomes_unk(kind):
    tokenizer = train_tokenizer(config_of(kind, unk=True), TEXTS)
    ids = tokenizer.encode("one ï two")
    assert ids.count(tokenizer.unk_id) == 1
    assert tokenizer.decode(ids) == "one <unk> two"
    assert [word.text for word in tokenizer.words(ids)] == ["one", "<unk>", "two"]


def test_characters_of_single_words_still_know_the_space():
    tokenizer = train_tokenizer(config_of("char"), ["one"])
    assert tokenizer.decode(tokenizer.encode("one one")) == "one one"


def test_the_word_unk_in_a_text_is_the_unknown_symbol():
    tokenizer = train_tokenizer(config_of("word", unk=True), ["one <unk> two"])
    assert tokenizer.symbols == ("<blank>", "▁<unk>", "▁one", "▁two")


def test_normal_form_c_joins_both_spellings():
    tokenizer = train_tokenizer(config_of("char"), ["cafe\u0301"])
    assert tokenizer.encode("café") == tokenizer.encode("cafe\u0301")
    assert tokenizer.decode(tokenizer.encode("cafe\u0301")) == "café"


@pytest.mark.parametrize("text", ["a▁b", "a\ud800b", "a\0b"])
def test_text_that_cannot_be_represented_is_refused(text):
    tokenizer = train_tokenizer(config_of("char"), ["ab"])
    with pytest.raises(TokenError, match="utterance u1: text"):
        tokenizer.encode(text, "u1")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_text_that_sentencepiece_would_drop_is_refused(kind):
    with pytest.raises(TokenError, match=r"U\+2585"):
        train_tokenizer(config_of(kind), [*TEXTS, "one ▅ two"])


@pytest.mark.parametrize("ids", [[0], [1, 0], [-1], [9999]])
def test_decode_refuses_what_is_no_label(tokenizer, ids):
    with pytest.raises(TokenError):
        tokenizer.decode(ids)


def test_empty_text(tokenizer):
    assert tokenizer.encode(" ") == []
    assert tokenizer.decode([]) == ""
    assert tokenizer.words([]) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_training_on_nothing_is_an_error(kind, texts):
    with pytest.raises(DataError, match="at least one text"):
        train_tokenizer(config_of(kind), texts)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_the_corpus_reader_passes_unchanged(kind):
    def texts():
        yield "one"
        raise DataError("text:2: broken")

    with pytest.raises(DataError, match=r"^text:2: broken$"):
        train_tokenizer(config_of(kind), texts())


@pytest.mark.parametrize("unk", [False, True])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("size", [5, 5000])
def test_infeasible_size_names_one_that_works(kind, size, unk):
    with pytest.raises(ConfigError) as caught:
        train_tokenizer(config_of(kind, unk, size), TEXTS)
    message = str(caught.value)
    assert "\n" not in message
    feasible = int(message.split("at most " if size == 5000 else "at least ")[1].split()[0])
    assert train_tokenizer(config_of(kind, unk, feasible), TEXTS).vocab_size == feasible
    with pytest.raises(ConfigError):
        train_tokenizer(config_of(kind, unk, feasible + (1 if size == 5000 else -1)), TEXTS)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece_training_is_deterministic_and_silent(kind, capfd):
    first, second = (train_tokenizer(config_of(kind), iter(TEXTS)) for _ in range(2))
    with pytest.raises(ConfigError):
        train_tokenizer(config_of(kind, size=5000), TEXTS)
    assert first.symbols == second.symbols
    assert [first.encode(text) for text in TEXTS] == [second.encode(text) for text in TEXTS]
    assert capfd.readouterr() == ("", "")


def test_a_very_long_text_is_not_dropped():
    tokenizer = train_tokenizer(config_of("bpe"), [*TEXTS, "x" + " one" * 5000])
    assert "x" in tokenizer.symbols


@pytest.mark.parametrize(
    "values", [{"kind": "bpe"}, {"kind": "char", "vocab_size": 9}, {"kind": "unigram", "vocab_size": 2}]
)
def test_vocab_size_goes_with_the_kind(values):
    with pytest.raises(ValueError, match="vocab_size"):
        TokenizerConfig(**values)


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.config == tokenizer.config
    assert loaded.symbols == tokenizer.symbols
    assert [loaded.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert len(list(tmp_path.iterdir())) == 2


def test_pickles_for_data_workers(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(TEXTS[7]) == tokenizer.encode(TEXTS[7])


def test_symbols_that_yaml_or_lines_could_spoil_survive(tmp_path):
    tokenizer = train_tokenizer(config_of("word"), ["no null 1e3 # - '\" \\n ~ <blank> <unk> 你好"])
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).symbols == tokenizer.symbols


def damage_yaml(directory, **changes):
    path = directory / "tokenizer.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_damaged_or_missing_files_are_named(kind, tmp_path):
    with pytest.raises(ModelError, match=r"tokenizer\.yaml"):
        load_tokenizer(tmp_path)
    tokenizer = train_tokenizer(config_of(kind), TEXTS)
    tokenizer.save(tmp_path)
    path = tmp_path / ("tokenizer.txt" if kind == "char" else "tokenizer.model")
    whole = path.read_bytes()
    for content in (whole[:-1], b"", whole + b"\nx"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=path.name):
            load_tokenizer(tmp_path)
    path.unlink()
    with pytest.raises(ModelError, match=path.name):
        load_tokenizer(tmp_path)
    path.write_bytes(whole)
    damage_yaml(tmp_path, vocab_size=7)
    with pytest.raises(ModelError, match="expected 7 symbols"):
        load_tokenizer(tmp_path)
    damage_yaml(tmp_path, config={"kind": "emoji"})
    with pytest.raises(ModelError, match=r"tokenizer\.yaml: config\.kind"):
        load_tokenizer(tmp_path)


def test_a_file_that_lies_about_its_kind(tmp_path):
    """The checksum matches, so only the content itself can tell."""
    import hashlib

    for kind, name in (("bpe", "tokenizer.model"), ("char", "tokenizer.txt")):
        train_tokenizer(config_of(kind), TEXTS).save(tmp_path)
        (tmp_path / name).write_bytes(b"\xff\xfenot this")
        damage_yaml(tmp_path, sha256=hashlib.sha256(b"\xff\xfenot this").hexdigest())
        with pytest.raises(ModelError, match=name):
            load_tokenizer(tmp_path)


def test_oversized_files_are_not_read(tmp_path, monkeypatch):
    train_tokenizer(config_of("char"), TEXTS).save(tmp_path)
    monkeypatch.setattr("asr.text.tokenizer.MAX_SYMBOLS_BYTES", 8)
    with pytest.raises(ModelError, match="at most 8 bytes"):
        load_tokenizer(tmp_path)
