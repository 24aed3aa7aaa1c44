"""Several models as one: the mean of their weights, and what else the new one has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import asr
from asr.average import Member, average_models
from asr.config import load_config, save_config
from asr.encoders import ConformerEncoderConfig, LstmEncoderConfig
from asr.errors import ConfigError, ModelError
from asr.model_directory import ModelConfig, load_model, save_model
from asr.search import SearchConfig
from asr.text.tokenizer import TokenizerConfig, train_tokenizer


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


def test_weights_are_averaged_and_all_else_is_the_first_one_s(make_model, call, tmp_path: Path) -> None:
    one, two, three = (make_model(kind="hybrid", seed=seed) for seed in range(3))
    config = load_config(one / "config.yaml", ModelConfig)
    save_config(config.model_copy(update={"search": SearchConfig(max_symbols=5)}), one / "config.yaml")
    (one / "LICENSE").write_text("as you like")
    out = tmp_path / "out"
    assert call("average", f"{one}:3", two, f"{three}:0.5", "--out", out) == (0, f"model: {out}\n", "")
    parts = [weights(each) for each in (one, two, three)]
    for name, found in weights(out).items():
        x, y, z = (part[name].double() for part in parts)
        torch.testing.assert_close(found.double(), (3 * x + y + 0.5 * z) / 4.5, rtol=1e-6, atol=1e-7)
    assert asr.load(out).search_config.max_symbols == 5
    assert (out / "LICENSE").read_text() == "as you like"
    card = (out / "README.md").read_text()
    assert card.startswith("# card\n")
    assert f"average: 66.7 % of {one}, 22.2 % of {two}, 11.1 % of {three}" in card


@pytest.mark.parametrize("shares", [(0.3, 0.4), (1e308, 1e308), (1e-320, 1e-320)])
def test_the_average_of_a_model_is_the_model(make_model, tmp_path: Path, shares) -> None:
    model = make_model()
    average_models([Member(model, share) for share in shares], tmp_path / "out")
    for name, expected in weights(model).items():
        torch.testing.assert_close(weights(tmp_path / "out")[name], expected, rtol=1e-6, atol=0)


def test_what_heard_synthetic_speech_says_so(make_model, tmp_path: Path) -> None:
    one, two = make_model(), make_model(seed=1)
    config = load_config(two / "config.yaml", ModelConfig)
    save_config(config.model_copy(update={"synthetic": True}), two / "config.yaml")
    average_models([Member(one), Member(two)], tmp_path / "out")
    assert load_model(tmp_path / "out").config.synthetic


def test_a_recipe_that_cannot_be_read_leaves_nothing_behind(make_model, tmp_path: Path) -> None:
    model = make_model()
    (model / "recipe.yaml").write_text("name: [")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: not valid YAML"):
        average_models([Member(model), Member(model)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_of_one_shape_may_mean_different_things(make_model, tmp_path: Path) -> None:
    one, two = (
        make_model(encoder=ConformerEncoderConfig(dim=32, heads=heads, layers=1), seed=heads)
        for heads in (2, 4)
    )
    with pytest.raises(ConfigError, match=r"encoder\.heads: expected 2 as in .*, found 4; average models"):
        average_models([Member(one), Member(two)], tmp_path / "out")
    average_models([Member(one), Member(two)], tmp_path / "out", ["joiner"])


def test_a_part_alone(make_model, tmp_path: Path) -> None:
    """Of a model that has other labels and no predictor."""
    one, other = make_model(), make_model(kind="ctc", seed=1)
    config, network, _ = load_model(other)
    labels = train_tokenizer(TokenizerConfig(kind="word"), ["five six seven eight nine"])
    save_model(other, config, network, labels, "")
    average_models([Member(one), Member(other)], tmp_path / "out", ["encoder.lstms", "norm"])
    before, after, theirs = weights(one), weights(tmp_path / "out"), weights(other)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("encoder.lstms.")}  # they hear alike
    for name in moved:
        torch.testing.assert_close(after[name], (before[name] + theirs[name]) / 2)
    assert asr.load(tmp_path / "out").tokenizer.vocab_size == 6


def test_what_cannot_be_averaged_says_why(make_model, call, tmp_path: Path) -> None:
    one, out = make_model(), tmp_path / "out"
    other = make_model(seed=1, encoder=LstmEncoderConfig(hidden=16, layers=2, lookahead=2))
    config, network, tokenizer = load_model(make_model(seed=2))
    labels = train_tokenizer(TokenizerConfig(kind="word"), ["five six seven eight nine"])
    save_model(tmp_path / "labels", config, network, labels, "")
    deaf = config.model_copy(update={"features": config.features.model_copy(update={"low_freq": 100.0})})
    save_model(tmp_path / "features", deaf, network, tokenizer, "")
    for models, parts, message in (
        ([one], [], "expected two models or more to average, found 1"),
        ([f"{one}:0", one], [], "expected a weight above 0"),
        ([one, f"{one}:inf"], [], "expected a weight above 0"),
        ([one, f"{one}:nan"], [], "expected a weight above 0"),
        ([one, tmp_path / "none"], [], "expected a model directory, found nothing there"),
        ([one, other], [], r"hidden: expected 24 as in .*, found 16; average models of one network"),
        ([one, tmp_path / "labels"], [], "expected the labels of .*average the encoder alone"),
        ([one, tmp_path / "labels"], ["encoder", "joiner"], "expected the labels of"),
        ([one, tmp_path / "features"], ["encoder"], "expected features as"),
        ([one, one], ["encoder.", "enc"], "expected a part of the network .*norm, encoder"),
    ):
        options = [option for part in parts for option in ("--part", part)]
        code, _, error = call("average", *models, "--out", out, *options)
        assert code == 1
        assert re.search(message, error), error
        assert error.count("\n") == 1
        assert not out.exists()
    with pytest.raises(ConfigError, match="expected another directory than those of the models"):
        average_models([Member(one), Member(other)], one)
    (tmp_path / "labels" / "config.yaml").unlink()
    with pytest.raises(ModelError, match=r"found no config\.yaml"):
        average_models([Member(one), Member(tmp_path / "labels")], out)
