"""Tokenizers: characters, words and SentencePiece (BPE, unigram) between transcripts and label ids.

Ids: 0 is always `<blank>`; with `unk` 1 is `<unk>`; the learned symbols follow. Every kind writes its
symbols as SentencePiece does, with '▁' (U+2581) where a space or the start of the text is, so that for
any label ids and any kind

    decode(ids) == "".join(pieces(ids)).replace("▁", " ").strip()  (white space collapsed)

===========  =====================================  =================================
kind         symbols                                "two one" is
===========  =====================================  =================================
char         each character; the space is '▁'       t w o ▁ o n e
word         each word, '▁' before it               ▁two ▁one
bpe          SentencePiece byte-pair encoding       for example  ▁t wo ▁one
unigram      SentencePiece unigram language model   for example  ▁two ▁o ne
===========  =====================================  =================================

Before training and encoding, text is put in Unicode normal form C (one code for 'é', however typed) and
its white space is collapsed; nothing else changes, in particular not case, so decode(encode(text)) is
`clean(text)` in any language. SentencePiece runs with its identity normaliser for the same reason.

Sources: Sennrich et al. 2016 (BPE), Kudo 2018 (unigram), Kudo and Richardson 2018 (SentencePiece).
Departures: SentencePiece's `<s>` and `</s>` are off, and its `<unk>` becomes `<blank>` (no `unk`) or
moves up to 1 behind `<blank>`, so that no id is wasted.

On disk: `tokenizer.yaml` (the configuration, the size and the SHA-256 of the other file) beside
`tokenizer.txt` (one symbol a line, the line number from 0 is the id) or `tokenizer.model` (SentencePiece).
"""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import model_validator

from asr.config import Config, load_config, save_config, write_atomically
from asr.errors import ConfigError, DataError, ModelError, TokenError

BLANK = "<blank>"
UNKNOWN = "<unk>"
BOUNDARY = "▁"

UNKNOWN_REMEDY = "correct the text, train the tokenizer on text that holds it, or set tokenizer.unk=true"
"""What the error of an unknown symbol ends with."""

MAX_SYMBOLS_BYTES = 64_000_000
"""A million words or a SentencePiece model of a million pieces stay below this."""

SYMBOLS_FILE = "tokenizer.txt"
SENTENCEPIECE_FILE = "tokenizer.model"

TokenizerKind = Literal["char", "word", "bpe", "unigram"]


class TokenizerConfig(Config):
    """Which symbols a model writes."""

    kind: TokenizerKind = "char"
    vocab_size: int | None = None
    """bpe and unigram: number of ids with `<blank>` (and `<unk>`). The other kinds find their own size."""
    unk: bool = False
    """Write `<unk>` for symbols outside the vocabulary, which otherwise are errors."""

    @model_validator(mode="after")
    def _size_belongs_to_sentencepiece(self) -> TokenizerConfig:
        learned = self.kind in {"bpe", "unigram"}
        if learned and (self.vocab_size is None or self.vocab_size < 3):
            raise ValueError(f"kind {self.kind} needs vocab_size of at least 3, found {self.vocab_size}")
        if not learned and self.vocab_size is not None:
            raise ValueError(f"kind {self.kind} finds its own vocab_size; remove {self.vocab_size}")
        return self


class WordSpan(NamedTuple):
    """A word and the range of tokens that spell it: ids[start:stop]. Bare '▁' tokens belong to no word."""

    text: str
    start: int
    stop: int


class Tokenizer:
    """Text to label ids and back. Made by `train_`, `extend_` or `load_tokenizer`; immutable; pickles."""

    def __init__(self, config: TokenizerConfig, symbols: Sequence[str], model: bytes | None = None) -> None:
        self.config = config
        self.symbols: tuple[str, ...] = tuple(symbols)
        """The symbol of every id, `<blank>` first."""
        self._model = model
        self._processor = None if model is None else _processor(model)
        self._ids = {symbol: index for index, symbol in enumerate(self.symbols)}
        # Not a lookup: a text can hold the characters "<unk>" as its own word.
        self._unk_id = 1 if config.unk else None

    @property
    def vocab_size(self) -> int:
        """Number of ids, blank included."""
        return len(self.symbols)

    @property
    def unk_id(self) -> int | None:
        """Id of `<unk>`, None if unknown symbols are errors."""
        return self._unk_id

    def encode(self, text: str, utterance: str = "") -> list[int]:
        """Return the label ids of a text; an empty text has none.

        Raises TokenError, which names `utterance` and the symbol, if the text holds a symbol outside the
        vocabulary and the configuration has no `unk`.
        """
        try:
            text = clean(text)
        except TokenError as error:
            raise TokenError(f"{_prefix(utterance)}{error}") from None
        if self._processor is not None:
            return self._encode_sentencepiece(text, utterance)
        ids = self._ids
        return [ids.get(unit) or self._unknown(unit, utterance) for unit in _units(text, self.config.kind)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of label ids (1 to vocab_size - 1); raises TokenError for any other id."""
        self._check_labels(ids)
        return " ".join("".join(self.pieces(ids)).replace(BOUNDARY, " ").split())

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the symbol of each id, as displayed; `<blank>` for 0. Raises TokenError if out of range."""
        size = self.vocab_size
        for index in ids:
            if not 0 <= index < size:
                raise TokenError(
                    f"expected ids from 0 to {size - 1}, found {index}; is this another model's?"
                )
        return [self.symbols[index] for index in ids]

    def words(self, ids: Sequence[int]) -> list[WordSpan]:
        """Group label ids into words; joined by spaces they are `decode(ids)`. Raises TokenError like it."""
        self._check_labels(ids)
        words: list[WordSpan] = []
        open_word = False
        for position, piece in enumerate(self.pieces(ids)):
            open_word = open_word and not piece.startswith(BOUNDARY)
            text = piece.removeprefix(BOUNDARY)
            if open_word:
                word = words[-1]
                words[-1] = WordSpan(word.text + text, word.start, position + 1)
            elif text:
                words.append(WordSpan(text, position, position + 1))
                open_word = True
        return words

    def save(self, directory: Path | str) -> None:
        """Write `tokenizer.yaml` and the symbols into a model directory, each aside and renamed."""
        directory = Path(directory)
        content = self._model if self._model is not None else "\n".join(self.symbols).encode()
        write_atomically(directory / _content_file(self.config.kind), content)
        digest = hashlib.sha256(content).hexdigest()
        # Last, because it vouches for the file above.
        card = _Card(config=self.config, vocab_size=self.vocab_size, sha256=digest)
        save_config(card, directory / "tokenizer.yaml")

    def __repr__(self) -> str:
        return f"Tokenizer(kind={self.config.kind!r}, vocab_size={self.vocab_size}, unk={self.config.unk})"

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "symbols": self.symbols, "model": self._model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Tokenizer.__init__(self, **state)

    def _encode_sentencepiece(self, text: str, utterance: str) -> list[int]:
        raw: list[int] = self._processor.encode(text)  # type: ignore[union-attr]
        if 0 not in raw:
            return [index + 1 for index in raw] if self.config.unk else raw
        if not self.config.unk:
            spelled: list[str] = self._processor.encode(text, out_type=str)  # type: ignore[union-attr]
            self._unknown(spelled[raw.index(0)][0], utterance)
        return [index + 1 for index in raw]

    def _unknown(self, unit: str, utterance: str) -> int:
        if self._unk_id is not None:
            return self._unk_id
        kind, symbol = ("word", unit[1:]) if self.config.kind == "word" else ("symbol", unit)
        shown = "' ' (the space)" if symbol == BOUNDARY else repr(symbol)
        code = f" (U+{ord(symbol):04X})" if kind == "symbol" and not symbol.isascii() else ""
        raise TokenError(f"{_prefix(utterance)}the tokenizer has no {kind} {shown}{code}; {UNKNOWN_REMEDY}")

    def _check_labels(self, ids: Sequence[int]) -> None:
        if 0 in ids:
            raise TokenError("expected label ids, found the blank (0); remove blanks before decoding to text")


def clean(text: str) -> str:
    """Return the text in Unicode normal form C, white space collapsed: what a round trip gives back.

    Raises TokenError if the text holds '▁' (U+2581), which stands for the space, a NUL character or a lone
    surrogate, which no text file can hold.
    """
    if "\0" in text:
        raise TokenError(f"text may not hold a NUL character (number {text.index(chr(0))}); remove it")
    if BOUNDARY in text:
        raise TokenError(
            f"text may not hold {BOUNDARY!r} (U+2581), the sign for a space in symbols; remove it"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenError(f"text is not valid Unicode: lone surrogate at character {error.start}") from None
    return " ".join(unicodedata.normalize("NFC", text).split())


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Find the symbols of a corpus: the same texts give the same tokenizer.

    Raises DataError if all texts are empty, ConfigError naming the feasible size if `vocab_size` is too
    large or too small for the texts, TokenError for text that `clean` refuses.
    """
    cleaned = (text for text in map(clean, texts) if text)
    if config.kind in {"bpe", "unigram"}:
        # A list, because SentencePiece would wrap an error raised while it iterates in one of its own.
        return _from_sentencepiece(config, _train_sentencepiece(config, [*map(_check_reserved, cleaned)]))
    return Tokenizer(config, [*_special(config), *_new_symbols(config, cleaned, _special(config))])


def extend_tokenizer(tokenizer: Tokenizer, config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """The symbols of a `char` or `word` tokenizer, in place, and behind them the new ones of a corpus.

    `config` is of the same kind; where only it asks for `unk`, ids move up by one. Raises like
    `train_tokenizer`.
    """
    assert config.kind == tokenizer.config.kind not in {"bpe", "unigram"}
    special, own = _special(config), tokenizer.symbols[len(_special(tokenizer.config)) :]
    kept = [*special, *(symbol for symbol in own if symbol not in special)]
    cleaned = (text for text in map(clean, texts) if text)
    return Tokenizer(config, [*kept, *_new_symbols(config, cleaned, kept)])


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """Read the tokenizer of a model directory; raises ModelError naming a missing or damaged file."""
    directory = Path(directory)
    try:
        card = load_config(directory / "tokenizer.yaml", _Card)
    except ConfigError as error:
        raise ModelError(f"{error}; is {directory} a model directory?") from error
    path = directory / _content_file(card.config.kind)
    content = _read_bounded(path)
    if hashlib.sha256(content).hexdigest() != card.sha256:
        raise ModelError(f"{path}: damaged or of another model (its SHA-256 is not that of tokenizer.yaml)")
    if card.config.kind in {"bpe", "unigram"}:
        try:
            tokenizer = _from_sentencepiece(card.config, content)
        except RuntimeError as error:
            raise ModelError(f"{path}: expected a SentencePiece model, found something else") from error
    else:
        tokenizer = _from_lines(card.config, content, path)
    if tokenizer.vocab_size != card.vocab_size:
        raise ModelError(f"{path}: expected {card.vocab_size} symbols, found {tokenizer.vocab_size}")
    return tokenizer


class _Card(Config):
    """`tokenizer.yaml`."""

    config: TokenizerConfig
    vocab_size: int
    sha256: str


def _units(text: str, kind: TokenizerKind) -> list[str]:
    if kind == "word":
        return [BOUNDARY + word for word in text.split()]
    return list(text.replace(" ", BOUNDARY))


def _new_symbols(config: TokenizerConfig, texts: Iterable[str], known: Sequence[str]) -> list[str]:
    """Symbols of clean texts that are not known yet, in order."""
    found = {unit for text in texts for unit in _units(text, config.kind)}
    if not found:
        raise DataError("a tokenizer needs at least one text that is not empty, found none")
    # Texts of one word each have no space, but utterances that are joined from them do.
    return sorted((found | {BOUNDARY} if config.kind == "char" else found).difference(known))


def _special(config: TokenizerConfig) -> list[str]:
    """Symbols of the first ids. An unknown word, like any word, starts with the boundary."""
    unknown = BOUNDARY + UNKNOWN if config.kind == "word" else UNKNOWN
    return [BLANK, unknown] if config.unk else [BLANK]


def _content_file(kind: TokenizerKind) -> str:
    return SENTENCEPIECE_FILE if kind in {"bpe", "unigram"} else SYMBOLS_FILE


def _prefix(utterance: str) -> str:
    return f"utterance {utterance}: " if utterance else ""


def _check_reserved(text: str) -> str:
    # SentencePiece's trainer marks unknown stretches with this block and drops texts that hold it.
    if "▅" in text:
        raise TokenError("bpe and unigram cannot learn from a text with '▅' (U+2585); remove it")
    return text


def _train_sentencepiece(config: TokenizerConfig, texts: list[str]) -> bytes:
    import sentencepiece

    assert config.vocab_size is not None
    model = io.BytesIO()
    extra = len(_special(config)) - 1  # our <blank> takes the place of SentencePiece's own <unk>
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size - extra,
            normalization_rule_name="identity",
            character_coverage=1.0,
            max_sentence_length=1 << 24,  # bytes; the default drops longer texts without a word
            num_threads=1,  # sums in one order, hence one result
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _training_error(str(error), config, extra) from error
    return model.getvalue()


def _training_error(message: str, config: TokenizerConfig, extra: int) -> ConfigError | DataError:
    """Put SentencePiece's complaint in terms of the setting that mends it."""
    asked = f"tokenizer.vocab_size: found {config.vocab_size} for {config.kind}, but these texts"
    if match := re.search(r"<= (\d+)", message.rsplit("Vocabulary size too high", maxsplit=1)[-1]):
        return ConfigError(f"{asked} allow at most {int(match[1]) + extra}")
    if match := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return ConfigError(f"{asked} need at least {int(match[1]) + extra} (one for each character)")
    if "sentences_.empty()" in message:
        return DataError("a tokenizer needs at least one text that is not empty, found none")
    return DataError(f"SentencePiece cannot learn from these texts: {' '.join(message.split())}")


def _from_sentencepiece(config: TokenizerConfig, model: bytes) -> Tokenizer:
    processor = _processor(model)
    pieces = [processor.id_to_piece(index) for index in range(1, processor.get_piece_size())]
    return Tokenizer(config, [*_special(config), *pieces], model)


def _processor(model: bytes) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)


def _from_lines(config: TokenizerConfig, content: bytes, path: Path) -> Tokenizer:
    try:
        symbols = content.decode().split("\n")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: expected one symbol a line in UTF-8, found other bytes") from error
    special = _special(config)
    if symbols[: len(special)] != special or len(set(symbols)) != len(symbols) or "" in symbols:
        raise ModelError(f"{path}: expected {' '.join(special)} and then different symbols, one a line")
    return Tokenizer(config, symbols)


def _read_bounded(path: Path) -> bytes:
    if not path.is_file():
        raise ModelError(f"{path}: missing; the tokenizer needs it beside tokenizer.yaml")
    if path.stat().st_size > MAX_SYMBOLS_BYTES:
        raise ModelError(f"{path}: expected at most {MAX_SYMBOLS_BYTES} bytes, found more")
    return path.read_bytes()
