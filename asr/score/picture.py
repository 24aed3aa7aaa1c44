"""Pictures: what a model heard and wrote when, and how training went. PNG files, no window, no global state.

`draw_transcript` shows, from top to bottom, the tokens at their emission times, the log-mel features, and the
words as bars from start to end, darker where the model was more confident. `draw_training` shows loss,
learning rate, gradient norm and dev word error rate over steps. `draw_reliability` shows how many words were
right of those of each confidence.

matplotlib is used through Figure and the Agg canvas, never pyplot, so drawing works in threads and without a
display and leaves nothing behind.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from asr.config import write_atomically
from asr.score.confidence import ConfidenceReport
from asr.text.tokenizer import BOUNDARY

DPI = 150
INCHES_PER_SECOND = 1.8
WIDTH_RANGE = (9.0, 40.0)
"""Inches; a longer recording is compressed, and a very long one is better drawn in parts."""
MAX_COLUMNS = 6000
"""Spectrogram frames drawn at most, about the pixels of the widest picture; longer ones are averaged."""
TOKEN_ROWS = 5
ROW_INCHES = 0.21
CHARACTER_INCHES = 0.085
"""Width of a character of the labels, for placing them before anything is rendered."""

INK = "#1b1f3b"
FAINT = "#8a8fa8"
TOKEN = "#12c8ea"
WORD = "#2c4a8c"
SYNTHETIC = "#b00020"
COLORMAP = "magma"
FONTS = ("DejaVu Sans", "Noto Sans", "Noto Sans CJK JP", "Noto Sans Devanagari", "Noto Sans Arabic")
"""Tried in order for every character, as far as they are installed."""
CURVES = ("#3d5a98", "#c2571a", "#5b8c5a", "#8a3d7c")


class TokenMark(NamedTuple):
    """A token, when it was emitted (seconds) and its confidence in 0..1."""

    piece: str
    time_s: float
    confidence: float


class WordMark(NamedTuple):
    """A word, its start and end in seconds and its confidence in 0..1."""

    text: str
    start_s: float
    end_s: float
    confidence: float


def draw_transcript(
    path: Path | str,
    features: npt.NDArray[np.floating[Any]],
    frame_shift_s: float,
    tokens: Sequence[TokenMark],
    words: Sequence[WordMark],
    title: str,
    *,
    synthetic: bool = False,
) -> None:
    """Draw a recording's log-mel features (T, M), its tokens and its words into a PNG file.

    Works for T = 0 and for no words. `synthetic` marks speech that no human spoke. The file is written aside
    and renamed.
    """
    duration_s = max(
        [len(features) * frame_shift_s, 0.1, *(t.time_s for t in tokens), *(w.end_s for w in words)]
    )
    width = float(np.clip(INCHES_PER_SECOND * duration_s, *WIDTH_RANGE))
    seconds_per_inch = duration_s / width
    labels = [_label(token.piece) for token in tokens]
    rows = _rows([token.time_s for token in tokens], labels, seconds_per_inch)
    above = ROW_INCHES * (1.4 + max((row for row in rows if row is not None), default=-1))
    heights = [max(above, 0.05), 2.7, 0.55]
    figure = Figure(figsize=(width, sum(heights) + 1.1), dpi=DPI, layout="constrained", facecolor="white")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": heights})
    figure.get_layout_engine().set(h_pad=0.02, hspace=0.0)  # type: ignore[union-attr,call-arg]
    _draw_features(middle, features, frame_shift_s)
    top.set_ylim(0, heights[0] / ROW_INCHES)
    _draw_tokens(top, middle, tokens, labels, rows)
    _draw_words(bottom, words, seconds_per_inch)
    bottom.set_xlim(0, duration_s)
    bottom.set_xlabel("time (s)", color=INK)
    bottom.xaxis.set_major_locator(MaxNLocator(nbins=int(min(width * 1.4, 40)), steps=[1, 2, 5, 10]))
    _draw_title(figure, title, synthetic)
    _save(figure, path)


def draw_training(path: Path | str, records: Iterable[Mapping[str, Any]], title: str = "training") -> None:
    """Draw training curves from log records into a PNG file.

    A record has `step` and any of `loss`, `lr`, `grad_norm`, `dev_loss`, `dev_wer` (a fraction) or of a
    language model `dev_perplexity`; others, and values that are not finite numbers, are left out.
    """
    records = [record for record in records if _number(record.get("step")) is not None]
    figure = Figure(figsize=(10.0, 6.0), dpi=DPI, layout="constrained", facecolor="white")
    axes = figure.subplots(2, 2, sharex=True)
    loss, error, rate, norm = axes.flat
    _draw_curve(loss, records, "loss", "training", CURVES[0], smooth=True)
    _draw_curve(loss, records, "dev_loss", "dev", CURVES[1], marker="o")
    language = any("dev_perplexity" in record for record in records)
    if language:
        _draw_curve(error, records, "dev_perplexity", "dev", CURVES[1], marker="o")
    else:
        _draw_curve(error, records, "dev_wer", "dev", CURVES[1], marker="o", scale=100.0)
    _draw_curve(rate, records, "lr", "_lr", CURVES[2])
    _draw_curve(norm, records, "grad_norm", "_norm", CURVES[3], smooth=True)
    _finish_curves(loss, "loss")
    _finish_curves(error, f"dev {'perplexity' if language else 'WER (%)'}{_best(error)}")
    _finish_curves(rate, "learning rate")
    _finish_curves(norm, "gradient norm")
    rate.set_xlabel("step", color=INK)
    norm.set_xlabel("step", color=INK)
    _draw_title(figure, title, synthetic=False)
    _save(figure, path)


def draw_reliability(path: Path | str, reports: Mapping[str, ConfidenceReport], title: str) -> None:
    """Draw the share of right words over their confidence, and how many words there are, into a PNG file.

    Of each report, by name: a point for every bin that has words, on the diagonal if its confidences are
    what they promise.
    """
    figure = Figure(figsize=(4.6, 5.6), dpi=80, layout="constrained", facecolor="white")
    share, count = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    share.plot([0, 1], [0, 1], color=FAINT, lw=1, ls="--", label="_diagonal")
    for number, (name, report) in enumerate(reports.items()):
        color, bins = CURVES[number % len(CURVES)], [b for b in report.bins if b.words]
        share.plot([b.confidence for b in bins], [b.right for b in bins], color=color, marker="o", label=name)
        edges = np.linspace(0, 1, len(report.bins) + 1)
        count.stairs([b.words for b in report.bins], edges, color=color, lw=1.4)
    share.set(xlim=(0, 1), ylim=(0, 1))
    share.set_ylabel("share of words right", color=INK)
    count.set_ylabel("words", color=INK)
    count.set_xlabel("confidence", color=INK)
    figure.legend(frameon=False, labelcolor=INK, fontsize=8, loc="outside lower center")
    for axis in (share, count):
        _style(axis)
        axis.grid(True, color="#e3e5ee", lw=0.7)
        axis.set_axisbelow(True)
    _draw_title(figure, title, synthetic=False)
    _save(figure, path)


def _draw_features(axis: Axes, features: npt.NDArray[np.floating[Any]], frame_shift_s: float) -> None:
    axis.set_ylabel("mel band", color=INK)
    _style(axis)
    if not features.size:
        axis.set_yticks([])
        axis.text(0.5, 0.5, "no audio", transform=axis.transAxes, ha="center", va="center", color=FAINT)
        return
    pooled = _pool(np.nan_to_num(np.asarray(features, dtype=np.float32)))
    # Silence of exactly zero lies far below any speech and would take the colours; percentiles leave it out.
    low, high = np.percentile(pooled, [5, 99.7])
    axis.imshow(
        pooled.T,
        aspect="auto",
        origin="lower",
        cmap=COLORMAP,
        vmin=low,
        vmax=max(high, low + 1e-3),
        interpolation="bilinear",
        extent=(0.0, len(features) * frame_shift_s, 0.0, features.shape[1]),
    )


def _pool(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Average neighbouring frames so that at most MAX_COLUMNS are left."""
    group = math.ceil(len(features) / MAX_COLUMNS)
    if group == 1:
        return features
    starts = np.arange(0, len(features), group)
    sizes = np.diff(np.append(starts, len(features)))
    return np.asarray(np.add.reduceat(features, starts, axis=0) / sizes[:, None], dtype=np.float32)


def _label(piece: str) -> str:
    """Return what is shown for a token: a sign for the bare space, other word starts without their mark."""
    return "␣" if piece == BOUNDARY else piece.removeprefix(BOUNDARY)


def _draw_tokens(
    axis: Axes, below: Axes, tokens: Sequence[TokenMark], labels: Sequence[str], rows: Sequence[int | None]
) -> None:
    axis.set_axis_off()
    for token, label, row in zip(tokens, labels, rows, strict=True):
        strength = 0.35 + 0.65 * float(np.clip(token.confidence, 0, 1))
        below.axvline(token.time_s, color=TOKEN, lw=1.2, alpha=strength)
        if row is None:
            continue
        (stem,) = axis.plot([token.time_s] * 2, [-0.5, row + 0.25], color=TOKEN, lw=1.2, alpha=strength)
        stem.set(clip_on=False, in_layout=False)  # it bridges the gap to the line below
        axis.text(
            token.time_s,
            row + 0.3,
            label,
            ha="center",
            va="bottom",
            fontsize=9,
            fontfamily=_fonts(),
            color=INK,
            alpha=0.3 + 0.7 * strength,
            parse_math=False,
            bbox={"boxstyle": "square,pad=0.05", "fc": "white", "ec": "none", "alpha": 0.8},
        )


def _rows(times_s: Sequence[float], labels: Sequence[str], seconds_per_inch: float) -> list[int | None]:
    """Place each label in the lowest row where it touches no neighbour; None where all rows are taken."""
    free_from = [-math.inf] * TOKEN_ROWS
    rows: list[int | None] = []
    for time_s, label in zip(times_s, labels, strict=True):
        half = (len(label) * CHARACTER_INCHES + 0.08) / 2 * seconds_per_inch
        row = next((row for row in range(TOKEN_ROWS) if free_from[row] <= time_s - half), None)
        if row is not None:
            free_from[row] = time_s + half
        rows.append(row)
    return rows


def _draw_words(axis: Axes, words: Sequence[WordMark], seconds_per_inch: float) -> None:
    _style(axis)
    axis.set_ylim(0, 1)
    axis.set_yticks([])
    axis.set_ylabel("words", color=INK)
    axis.spines["left"].set_visible(False)
    for word in words:
        confidence = float(np.clip(word.confidence, 0, 1))
        # A word emitted in one frame has no length of its own: give it one that can be seen.
        width = max(word.end_s - word.start_s, 0.03 * seconds_per_inch)
        fill = (*_rgb(WORD), 0.12 + 0.88 * confidence)
        axis.add_patch(Rectangle((word.start_s, 0.14), width, 0.72, fc=fill, ec=WORD, lw=0.8))
        inside = len(word.text) * CHARACTER_INCHES * seconds_per_inch <= width
        axis.text(
            word.start_s + width / 2,
            0.49,
            word.text,
            ha="center",
            va="center",
            fontsize=9.5,
            fontfamily=_fonts(),
            color="white" if inside and confidence > 0.55 else INK,
            parse_math=False,
            clip_on=True,
        )


def _draw_curve(
    axis: Axes,
    records: Sequence[Mapping[str, Any]],
    key: str,
    label: str,
    color: str,
    *,
    smooth: bool = False,
    marker: str = "",
    scale: float = 1.0,
) -> None:
    points = [(float(record["step"]), _number(record.get(key))) for record in records]
    found = np.array([(step, value * scale) for step, value in points if value is not None])
    if not len(found):
        return
    steps, values = found[:, 0], found[:, 1]
    if smooth and len(values) >= 20:
        axis.plot(steps, values, color=color, lw=0.7, alpha=0.25)
        values = _running_mean(values, len(values) // 40 + 1)
    axis.plot(steps, values, color=color, lw=1.6, marker=marker, ms=4, label=label)


def _running_mean(values: npt.NDArray[np.float64], half: int) -> npt.NDArray[np.float64]:
    """Average over the values up to `half` steps away, fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    start, stop = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return np.asarray((total[stop] - total[start]) / (stop - start), dtype=np.float64)


def _finish_curves(axis: Axes, name: str) -> None:
    _style(axis)
    axis.set_title(name, color=INK, fontsize=10, loc="left")
    axis.grid(True, color="#e3e5ee", lw=0.7)
    axis.set_axisbelow(True)
    axis.margins(x=0.02)
    if not axis.lines:
        axis.text(0.5, 0.5, "nothing logged", transform=axis.transAxes, ha="center", color=FAINT)
        return
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in axis.lines])
    if values.min() > 0 and values.max() / values.min() > 30:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    else:
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
        if values.min() >= 0:
            axis.set_ylim(bottom=0)
    if len([line for line in axis.lines if not str(line.get_label()).startswith("_")]) > 1:
        axis.legend(frameon=False, labelcolor=INK)


def _best(axis: Axes) -> str:
    """Name the lowest point of the first curve, for the title."""
    if not axis.lines:
        return ""
    steps, values = (np.asarray(data, dtype=np.float64) for data in axis.lines[0].get_data())
    best = int(np.argmin(values))
    return f", best {values[best]:.2f} at step {steps[best]:.0f}"


def _draw_title(figure: Figure, title: str, synthetic: bool) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, parse_math=False, fontfamily=_fonts())
    if not synthetic:
        return
    figure.text(
        0.992,
        0.975,
        "SYNTHETIC SPEECH",
        ha="right",
        va="top",
        fontsize=9,
        color="white",
        weight="bold",
        bbox={"boxstyle": "round,pad=0.35", "fc": SYNTHETIC, "ec": "none"},
    )


def _fonts() -> list[str]:
    installed = set(fontManager.get_font_names())
    return [font for font in FONTS if font in installed]


def _style(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(FAINT)
    axis.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _rgb(color: str) -> tuple[float, float, float]:
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def _save(figure: Figure, path: Path | str) -> None:
    content = io.BytesIO()
    with warnings.catch_warnings():
        # A character that no installed font has is drawn as a box; that is no reason to disturb a run.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasAgg(figure).print_png(content)
    write_atomically(Path(path), content.getvalue())
