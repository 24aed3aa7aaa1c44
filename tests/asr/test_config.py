from __future__ import annotations

import sys
from pathlib import Path

import pytest

from asr.config import Config, load_config, load_recipe, override, save_config, write_atomically
from asr.errors import ConfigError


class Inner(Config):
    lr: float = 0.1
    names: tuple[str, ...] = ("a",)


class Outer(Config):
    inner: Inner = Inner()
    size: int = 3


def test_round_trip(tmp_path: Path) -> None:
    config = Outer(inner=Inner(lr=3e-5, names=("x", "y")), size=7)
    save_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml", Outer) == config


def test_overrides_reach_nested_settings() -> None:
    config = override(Outer(), ["inner.lr=1e-3", "size=9", "inner.names=[p, q]"])
    assert config == Outer(inner=Inner(lr=0.001, names=("p", "q")), size=9)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("inner.lr", "expected key=value"),
        ("nosuch.lr=1", "no section 'nosuch'"),
        ("inner.rl=1", "inner.rl: unknown setting"),
        ("size=large", "size: Input should be a valid integer"),
        ("size=[1", "cannot read the value"),
    ],
)
def test_bad_overrides_are_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(Outer(), [assignment])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1\n- 2", "expected a mapping"),
        ("size: 3\nextra: 1", "extra: unknown setting"),
        ("x: !!python/object/apply:os.system [echo]", "not valid YAML"),
        ("x: " + "a" * 2_000_000, "at most"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, Outer)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found nothing there"):
        load_config(tmp_path / "none.yaml", Outer)


def test_recipes_are_functions(tmp_path: Path) -> None:
    file = tmp_path / "r.py"
    file.write_text(
        "from asr.config import Config\n"
        "class Mine(Config):\n    size: int = 1\n"
        "def small() -> Mine:\n    return Mine(size=2)\n"
    )
    config = load_recipe(f"{file}:small", Config)
    assert config.model_dump() == {"size": 2}
    with pytest.raises(ConfigError, match=r"it has small$"):
        load_recipe(f"{file}:large", Config)
    with pytest.raises(ConfigError, match="expected a Outer"):
        load_recipe(f"{file}:small", Outer)
    with pytest.raises(ConfigError, match="there is no file"):
        load_recipe(f"{tmp_path / 'no.py'}:small", Config)
    with pytest.raises(ConfigError, match=r"expected FILE\.yaml or FILE\.py:FUNCTION"):
        load_recipe(str(file), Config)


def test_atomic_writes_leave_the_old_file_when_they_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def small(:", "SyntaxError"),
        ("import nosuchmodule", "ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("def small():\n    return 1 / 0", "ZeroDivisionError"),
        ("def small(x):\n    return x", "TypeError"),
        (
            "from asr.config import Config\nclass C(Config):\n    n: int\ndef small():\n    return C(n='x')",
            "n: Input",
        ),
    ],
)
def test_broken_recipes_are_one_line(tmp_path: Path, body: str, message: str) -> None:
    file = tmp_path / "r.py"
    file.write_text(body)
    with pytest.raises(ConfigError) as caught:
        load_recipe(f"{file}:small", Config)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{file}:small: ")
    assert "\n" not in str(caught.value)


def test_a_recipe_may_define_its_own_settings(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "from __future__ import annotations\nfrom asr.config import Config\n"
        "class Part(Config):\n    size: int = 1\nclass Whole(Config):\n    part: Part = Part()\n"
        "def mine() -> Whole:\n    return Whole()\n"
    )
    assert load_recipe(f"{file}:mine", Config).model_dump() == {"part": {"size": 1}}


def test_another_kind_begins_with_its_defaults() -> None:
    from asr.predictors import LstmPredictorConfig
    from asr.transducer import TransducerConfig

    config = override(TransducerConfig(), ["predictor.kind=lstm", "predictor.layers=2"])
    assert config.predictor == LstmPredictorConfig(layers=2)
    same = override(TransducerConfig(), ["predictor.dim=9", "predictor.kind=stateless"])
    assert same.predictor.dim == 9
    assert override(TransducerConfig(), ["predictor.layers=2", "predictor.kind=lstm"]) == config
    with pytest.raises(ConfigError, match=r"--set: predictor\.kind: expected .*'lstm'.*, found 'gru'$"):
        override(TransducerConfig(), ["predictor.kind=gru"])
    for section in ("probability", "model_fields"):  # what the class has beside its settings
        with pytest.raises(ConfigError, match=f"there is no section '{section}'"):
            override(TransducerConfig(), [f"loss.transducer.{section}.kind=pruned"])


def test_the_parts_of_another_kind_can_be_set() -> None:
    """Its parts are there, and have kinds of their own."""
    from asr.encoders import ConformerEncoderConfig, LstmEncoderConfig
    from asr.transducer import TransducerConfig

    start = TransducerConfig(encoder=LstmEncoderConfig())
    settings = ["encoder.subsampling.kind=stack", "encoder.subsampling.factor=8", "encoder.kind=conformer"]
    found = override(start, settings).encoder
    assert isinstance(found, ConformerEncoderConfig)
    assert (found.subsampling.kind, found.subsampling.factor) == ("stack", 8)
    assert found.dim == ConformerEncoderConfig().dim
    with pytest.raises(ConfigError, match=r"^--set: encoder\.subsampling\.factor: .*, found 3$"):
        override(start, [*settings, "encoder.subsampling.factor=3"])


def test_a_kind_among_other_settings_leaves_them_alone() -> None:
    from asr.transducer import TransducerConfig

    start = override(TransducerConfig(), ["loss.transducer.weight=0.5", "loss.transducer.pruned.range=3"])
    found = override(start, ["loss.transducer.kind=pruned", "loss.transducer.pruned.warmup_steps=30"])
    loss = found.loss.transducer
    assert (loss.kind, loss.weight, loss.pruned.range, loss.pruned.warmup_steps) == ("pruned", 0.5, 3, 30)


def test_recipes_may_import_the_files_beside_them(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "base.py").write_text(f"NAME = {name!r}\n")
        (folder / "r.py").write_text(
            "from asr.config import Config\nfrom base import NAME\n"
            "class Mine(Config):\n    name: str = ''\ndef mine() -> Mine:\n    return Mine(name=NAME)\n"
        )
    path = list(sys.path)
    for name in ("one", "two"):
        assert load_recipe(f"{tmp_path / name / 'r.py'}:mine", Config).model_dump() == {"name": name}
    assert sys.path == path
    assert "base" not in sys.modules
