"""The file of an n-gram model that is read much faster than ARPA: safetensors, in two forms.

`asr-ngram-1`   the five arrays of asr.lms.ngram as they are
`asr-ngram-2`   compact, about half the bytes: of every edge its word alone, of every context how many edges
                leave it, which together are the keys, since these ascend; scores and chains as float16, which
                in a logarithm of 10 is off by 0.004 at most

and the words, one a line, as `words` (bytes). What is read may be anything: it is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from asr.config import write_atomically
from asr.errors import ModelError
from asr.lms.trie import MAX_EDGES

PLAIN, COMPACT = "asr-ngram-1", "asr-ngram-2"
ARRAYS = {
    "keys": torch.int64,
    "scores": torch.float32,
    "after": torch.int32,
    "suffix": torch.int32,
    "chain": torch.float32,
}
_SHORT = (torch.int32, torch.uint16)
"""Counts and words are kept in 16 bits where they fit."""
_FORMS: dict[str, dict[str, tuple[torch.dtype, ...]]] = {
    PLAIN: {name: (dtype,) for name, dtype in ARRAYS.items()},
    COMPACT: {
        "next": _SHORT,
        "edges": _SHORT,
        "scores": (torch.float16,),
        "after": (torch.int32,),
        "suffix": (torch.int32,),
        "chain": (torch.float16,),
    },
}
"""The dtypes that each array may have."""


class NgramFile(NamedTuple):
    """What a file holds."""

    order: int
    words: tuple[str, ...]
    arrays: dict[str, Tensor]
    """As in `ARRAYS`."""


def write_ngram(path: Path, content: NgramFile, compact: bool) -> None:
    """Write a file, aside and renamed."""
    arrays = {name: content.arrays[name].cpu().contiguous() for name in ARRAYS}
    tensors = _packed(arrays, len(content.words)) if compact else arrays
    text = "\n".join(content.words).encode()
    tensors["words"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    metadata = {"format": COMPACT if compact else PLAIN, "order": str(content.order)}
    write_atomically(path, save(tensors, metadata))


def read_ngram(path: Path) -> NgramFile:
    """Read what `write_ngram` wrote; raises ModelError, naming the file, if its form is another one.

    What the numbers say is not checked here.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata, names = file.metadata() or {}, set(file.keys())
            form = metadata.get("format", "")
            if form not in _FORMS or names != {*_FORMS[form], "words"}:
                raise ModelError(f"{path}: expected an n-gram model ({PLAIN}, {COMPACT}), found another file")
            tensors = {name: file.get_tensor(name) for name in names}
            order = int(metadata["order"])
            words = tuple(tensors.pop("words").numpy().tobytes().decode().split("\n"))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a readable n-gram model ({error}); make it again") from error
    for name, dtypes in _FORMS[form].items():
        if tensors[name].dtype not in dtypes or tensors[name].dim() != 1:
            raise ModelError(f"{path}: expected {name} of {dtypes[0]}, found {tensors[name].dtype}")
    if form == COMPACT:
        tensors = _unpacked(path, tensors, len(words))
    return NgramFile(order, words, tensors)


def _packed(arrays: Mapping[str, Tensor], words: int) -> dict[str, Tensor]:
    keys, contexts = arrays["keys"], len(arrays["suffix"])
    edges = torch.bincount(keys // words, minlength=contexts)
    return {
        "next": _short(keys % words),
        "edges": _short(edges),
        "scores": arrays["scores"].half(),
        "after": arrays["after"],
        "suffix": arrays["suffix"],
        "chain": arrays["chain"].half(),
    }


def _short(numbers: Tensor) -> Tensor:
    return numbers.to(torch.uint16 if int(numbers.max()) < 1 << 16 else torch.int32)


def _unpacked(path: Path, tensors: Mapping[str, Tensor], words: int) -> dict[str, Tensor]:
    word, edges = tensors["next"].long(), tensors["edges"].long()
    # Before anything is made as large as these numbers say.
    fits = len(word) <= MAX_EDGES and int(edges.sum()) == len(word) and len(edges) > 0
    if not fits or int(edges.min()) < 0 or int(word.min()) < 0 or int(word.max()) >= words:
        raise ModelError(f"{path}: expected words and edges that fit, found others; make it again")
    context = torch.repeat_interleave(torch.arange(len(edges)), edges)
    return {
        "keys": context * words + word,
        "scores": tensors["scores"].float(),
        "after": tensors["after"],
        "suffix": tensors["suffix"],
        "chain": tensors["chain"].float(),
    }
