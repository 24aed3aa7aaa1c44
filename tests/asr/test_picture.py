import threading

import numpy as np
import pytest
from matplotlib.image import imread

from asr.score import picture
from asr.score.picture import TokenMark, WordMark, draw_training, draw_transcript

RED = np.array([int(picture.SYNTHETIC[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def features(frames, bands=80, seed=0):
    return np.random.default_rng(seed).normal(size=(frames, bands)).astype(np.float32)


def share_of(image, color, tolerance=0.02):
    return float((np.abs(image[..., :3] - color) < tolerance).all(axis=-1).mean())


def marks(count, step=0.1):
    tokens = [TokenMark("▁seven", 0.1 + step * i, 0.9) for i in range(count)]
    return tokens, [WordMark("seven", t.time_s - 0.05, t.time_s, t.confidence) for t in tokens]


def test_transcript_is_drawn_and_synthetic_speech_is_marked(tmp_path):
    tokens, words = marks(4, 0.4)
    images = []
    for synthetic in (False, True):
        path = tmp_path / "pictures" / "a.png"
        draw_transcript(path, features(200), 0.01, tokens, words, "seven $x$", synthetic=synthetic)
        images.append(imread(path))
    plain, marked = images
    assert plain.shape == marked.shape
    assert plain.shape[1] == 9 * picture.DPI
    assert share_of(plain, RED) == 0
    assert share_of(marked, RED) > 0.002
    assert len(list((tmp_path / "pictures").iterdir())) == 1


def test_a_token_line_stands_at_its_time(tmp_path):
    """Between two drawings that differ in one token's time, the spectrogram changes in two places."""
    images = []
    for time_s in (0.5, 1.5):
        draw_transcript(tmp_path / "a.png", features(200), 0.01, [TokenMark("a", time_s, 1.0)], [], "t")
        images.append(imread(tmp_path / "a.png")[..., :3])
    height, width = images[0].shape[:2]
    changed = np.abs(images[0] - images[1]).sum(axis=-1)[height // 2 : int(height * 0.7)].mean(axis=0) > 0.05
    columns = np.flatnonzero(changed)
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 5) + 1)
    assert len(groups) == 2
    # A second apart of two seconds that span almost the width.
    assert 0.45 * width < groups[1].mean() - groups[0].mean() < 0.5 * width


@pytest.mark.parametrize(
    ("frames", "tokens", "words"),
    [
        (0, [], []),
        (1, [TokenMark("▁", 0.0, 0.0)], [WordMark("", 0.0, 0.0, 1.0)]),
        (
            60,
            [TokenMark("你好", 0.2, 0.5), TokenMark("\u0378", 0.3, 1.5)],
            [WordMark("你好", 0.2, 0.2, -1.0)],
        ),
    ],
)
def test_odd_input_is_drawn_without_warnings(tmp_path, frames, tokens, words):
    draw_transcript(tmp_path / "a.png", features(frames), 0.01, tokens, words, "題")
    assert imread(tmp_path / "a.png").std() > 0


def test_constant_and_non_finite_features(tmp_path):
    values = np.full((50, 20), -15.0, dtype=np.float32)
    values[3] = -np.inf
    draw_transcript(tmp_path / "a.png", values, 0.01, [], [], "silence")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_long_recordings_are_averaged(tmp_path):
    pooled = picture._pool(np.arange(15_000, dtype=np.float32)[:, None].repeat(2, axis=1))
    assert pooled.shape == (5_000, 2)
    np.testing.assert_array_equal(pooled[:2, 0], [1.0, 4.0])
    np.testing.assert_array_equal(picture._pool(np.ones((picture.MAX_COLUMNS + 1, 1), np.float32)), 1.0)


def test_crowded_labels_never_touch():
    times = np.sort(np.random.default_rng(0).uniform(0, 5, 200)).tolist()
    labels = ["abc" if i % 3 else "a" for i in range(200)]
    rows = picture._rows(times, labels, seconds_per_inch=0.5)
    assert None in rows
    assert {row for row in rows if row is not None} == set(range(picture.TOKEN_ROWS))
    ends = dict.fromkeys(range(picture.TOKEN_ROWS), -np.inf)
    for time_s, label, row in zip(times, labels, rows, strict=True):
        if row is not None:
            half = len(label) * picture.CHARACTER_INCHES * 0.5 / 2
            assert time_s - half > ends[row]
            ends[row] = time_s + half


RECORDS = [
    *({"step": i, "loss": 20.0 * 0.9**i, "lr": 1e-3, "grad_norm": 2.0, "epoch": 1} for i in range(60)),
    {"step": 30, "dev_wer": 0.25, "dev_loss": 3.0},
    {"step": 59, "dev_wer": 0.125},
    {"step": 40, "loss": float("nan"), "grad_norm": "inf"},
    {"kind": "skip", "step": 41, "why": "loss is not finite"},
    {"no": "step"},
]


@pytest.mark.parametrize("records", [RECORDS, [], RECORDS[:1], RECORDS[-4:-3]])
def test_training_curves_of_any_log(tmp_path, records):
    draw_training(tmp_path / "training.png", iter(records))
    assert imread(tmp_path / "training.png").std() > 0


def test_best_dev_error_is_named():
    axis = picture.Figure().subplots()
    picture._draw_curve(axis, RECORDS[:-1], "dev_wer", "dev", "red", scale=100.0)
    assert picture._best(axis) == ", best 12.50 at step 59"


def test_running_mean():
    values = np.array([1.0, 2.0, 6.0, 3.0])
    np.testing.assert_allclose(picture._running_mean(values, 1), [1.5, 3.0, 11 / 3, 4.5])


def test_drawing_in_a_thread_leaves_pyplot_alone(tmp_path):
    import sys

    thread = threading.Thread(target=draw_training, args=(tmp_path / "t.png", RECORDS))
    thread.start()
    thread.join()
    assert (tmp_path / "t.png").exists()
    assert "matplotlib.pyplot" not in sys.modules
