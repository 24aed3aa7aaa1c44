"""Lattices by k2 (https://github.com/k2-fsa/k2), where the user has installed it, and paths through them.

Transducer: k2's RNN-T streams (`k2.RnntDecodingStreams`: icefall's "fast beam search") over a trivial graph,
in which any label may follow any other. k2 keeps the last labels of a hypothesis as all its history, so it
takes stateless predictors, and every symbol consumes a frame. CTC: frames intersected with the CTC topology.

k2 is imported when a lattice is asked for and never needed. Logarithms are natural, frames encoder frames.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from asr.errors import ConfigError
from asr.predictors.stateless import StatelessPredictor, StatelessState
from asr.transducer import Transducer

STATES_PER_HYPOTHESIS = 8
"""States of the graph that k2 keeps per frame, for every history."""
OUTPUT_SHARE = 0.5
"""Of the margin: how much worse than the best a path of a CTC lattice may be."""
MOST_STATES = 10_000
"""Of a CTC lattice, per frame."""


class Path(NamedTuple):
    """A path through a lattice: one symbol for each frame."""

    symbols: list[int]
    """Label or blank of each frame."""
    emitted: list[int]
    """What is said with it, 0 for nothing: of a label that is held the first frame says it."""
    log_probs: list[float]


class Pruning(NamedTuple):
    """What may be given up."""

    beam: int
    """Histories that are kept per frame."""
    margin: float
    """Nats below the best."""


def library() -> ModuleType:
    """k2; raises ConfigError if it is not installed."""
    if importlib.util.find_spec("k2") is None:
        raise ConfigError(
            "search.method=lattice needs k2, which is not installed "
            "(https://k2-fsa.github.io/k2/installation); use search.method=beam, which needs nothing"
        )
    return importlib.import_module("k2")


def transducer_lattice(model: Transducer, encoded: Tensor, lengths: Tensor, pruning: Pruning) -> Any:
    """k2's lattices (an FsaVec) of frames (B, T, E), of which lengths (B,), one at least, count."""
    k2, predictor = library(), model.predictor
    assert isinstance(predictor, StatelessPredictor)
    config = k2.RnntDecodingConfig(
        vocab_size=model.vocab_size,
        decoder_history_len=predictor.context,
        beam=pruning.margin,
        max_states=STATES_PER_HYPOTHESIS * pruning.beam,
        max_contexts=pruning.beam,
    )
    graph = k2.trivial_graph(model.vocab_size - 1, encoded.device)
    streams = k2.RnntDecodingStreams([k2.RnntDecodingStream(graph) for _ in encoded], config)
    # The arc into the final state takes a frame too: without one more the last would count for nothing.
    projected = functional.pad(model.joiner.encoder(encoded), (0, 0, 0, 1))
    for t in range(projected.shape[1]):
        shape, contexts = streams.get_contexts()
        stream, labels = shape.row_ids(1).long(), contexts.long()
        spoken = predictor(labels[:, -1:], StatelessState(labels[:, :-1])).y[:, 0]
        logits = model.joiner.combine(projected[stream, t], model.joiner.predictor(spoken))
        streams.advance(logits.float().log_softmax(dim=-1))
    streams.terminate_and_flush_to_streams()
    return streams.format_output((lengths + 1).tolist())


def ctc_lattice(model: Transducer, encoded: Tensor, lengths: Tensor, pruning: Pruning) -> Any:
    """k2's lattices of the CTC head; lengths (B,) have to fall."""
    k2 = library()
    assert model.ctc is not None
    log_probs = model.ctc(encoded).float().log_softmax(dim=-1)
    segments = torch.stack((torch.arange(len(lengths)), torch.zeros(len(lengths)), lengths.cpu()), dim=1)
    return k2.intersect_dense_pruned(
        k2.ctc_topo(model.vocab_size - 1, False, encoded.device),
        k2.DenseFsaVec(log_probs, segments.to(torch.int32)),
        search_beam=pruning.margin,
        output_beam=OUTPUT_SHARE * pruning.margin,
        min_active_states=pruning.beam,
        max_active_states=MOST_STATES,
    )


def best_paths(lattice: Any, streams: int) -> list[Path | None]:
    """The most probable path of each stream; None where there is none."""
    best = library().shortest_path(lattice, use_double_scores=True)
    arcs = ((best[i].labels, best[i].aux_labels, best[i].scores) for i in range(streams))
    return [_path(*(x.tolist() for x in each)) for each in arcs]


def sampled_paths(lattice: Any, count: int) -> list[list[Path]]:
    """`count` paths of each stream, some of them equal, drawn by their probabilities."""
    found = library().random_paths(lattice, use_double_scores=True, num_paths=count).tolist()
    columns = [x.tolist() for x in (lattice.labels, lattice.aux_labels, lattice.scores)]
    drawn = [[_path(*([x[arc] for arc in arcs] for x in columns)) for arcs in paths] for paths in found]
    return [[path for path in paths if path is not None] for paths in drawn]


def _path(symbols: Sequence[int], emitted: Sequence[int], log_probs: Sequence[float]) -> Path | None:
    """Without its last arc, which enters the final state."""
    return Path(list(symbols[:-1]), list(emitted[:-1]), list(log_probs[:-1])) if symbols else None
