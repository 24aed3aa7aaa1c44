"""Every recipe function gives a configuration that builds, keeps its promises and survives YAML."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asr.config import load_config, load_recipe, override, save_config
from asr.features.fbank import Fbank
from asr.lms import build_neural_lm
from asr.model_directory import ModelConfig, build_network
from asr.train.kinds import load_any_recipe
from asr.train.lm_recipe import LmRecipe
from asr.train.recipe import Recipe

EGS = Path(__file__).parents[2] / "egs"
RECIPES = (
    [
        f"{EGS / corpus / 'lstm.py'}:{name}"
        for corpus in ("digits", "yesno")
        for name in ("streaming", "bidirectional", "ctc")
    ]
    + [
        f"{EGS / 'digits' / 'attention.py'}:{name}"
        for name in ("conformer", "transformer", "funnel", "funnel_ctc")
    ]
    + [f"{EGS / 'digits' / 'recurrent.py'}:{name}" for name in ("recurrent", "griffin")]
    + [f"{EGS / 'english' / 'conformer.py'}:streaming"]
)


@pytest.mark.parametrize("reference", RECIPES)
def test_recipe(reference: str, tmp_path: Path) -> None:
    recipe = load_recipe(reference, Recipe)
    save_config(recipe, tmp_path / "recipe.yaml")
    assert load_config(tmp_path / "recipe.yaml", Recipe) == recipe
    network = build_network(ModelConfig(features=recipe.features, network=recipe.network, vocab_size=12))
    assert network.encoder.streaming == ("bidirectional" not in reference and "funnel" not in reference)
    assert network.has_transducer == ("ctc" not in reference)
    if network.encoder.streaming:
        latency_s = network.encoder.algorithmic_latency_s + Fbank(recipe.features).lookahead_s
        assert latency_s <= (
            0.33 if "former.py" in reference else 0.31 if "attention.py" in reference else 0.24
        )


@pytest.mark.parametrize("name", ["awd", "awd_nt_asgd", "small", "transformer"])
def test_recipe_of_a_language_model(name: str, tmp_path: Path) -> None:
    recipe = load_any_recipe(f"{EGS / 'english' / 'lm_neural.py'}:{name}")
    assert isinstance(recipe, LmRecipe)
    save_config(recipe, tmp_path / "recipe.yaml")
    assert load_any_recipe(str(tmp_path / "recipe.yaml")) == recipe
    parameters = sum(p.numel() for p in build_neural_lm(recipe.network, 29).parameters())
    assert 5e5 < parameters < 4e6


def test_the_conformer_has_the_latencies_of_its_table() -> None:
    recipe = load_recipe(f"{EGS / 'digits' / 'attention.py'}:conformer", Recipe)
    network = build_network(ModelConfig(features=recipe.features, network=recipe.network, vocab_size=12))
    assert network.encoder.context.chunk == 6
    frame_s = 1 / network.encoder.frame_rate
    chunks = [context.chunk for context in recipe.network.encoder.contexts]
    assert [chunk and round(1000 * chunk * frame_s) for chunk in chunks] == [240, 80, 560, 1120, None]


def test_the_funnel_ends_at_320_ms() -> None:
    recipe = load_recipe(f"{EGS / 'digits' / 'attention.py'}:funnel", Recipe)
    network = build_network(ModelConfig(features=recipe.features, network=recipe.network, vocab_size=12))
    assert 1 / network.encoder.frame_rate == pytest.approx(0.32)


def test_every_lever_changes_the_recipe() -> None:
    """Those of english/levers.sh, each one way to train, and all accepted."""
    recipe = load_recipe(f"{EGS / 'english' / 'whisper.py'}:streaming", Recipe)
    recipe = override(recipe, ["training.epochs=1"])
    script = (EGS / "english" / "levers.sh").read_text()
    (listed,) = re.findall(r"names=\(([a-z -]+)\)", script)
    settings = dict(re.findall(r'\[([a-z-]+)\]="([^"]*)"', script))
    assert set(listed.split()) == set(settings)
    for name, changes in settings.items():
        assert (override(recipe, changes.split()) == recipe) == (name == "base"), name


def test_every_mixer_has_three_million_parameters() -> None:
    """Those of mixers.sh, which has all there are."""
    recipe = load_recipe(f"{EGS / 'digits' / 'recurrent.py'}:recurrent", Recipe)
    script = (EGS / "digits" / "mixers.sh").read_text()
    widths = re.findall(r"^ {2}\[(\w+)\]=(\d+)$", script, re.MULTILINE)
    mixers = (EGS.parent / "asr" / "encoders" / "mixers").glob("[!_]*.py")
    assert {name for name, _ in widths} == {path.stem for path in mixers} - {"base"}
    settings = [
        [f"network.encoder.mixer.kind={name}", f"network.encoder.dim={width}"] for name, width in widths
    ]
    recipes = {name: override(recipe, setting) for (name, _), setting in zip(widths, settings, strict=True)}
    recipes["griffin"] = load_recipe(f"{EGS / 'digits' / 'recurrent.py'}:griffin", Recipe)
    for name, config in recipes.items():
        network = build_network(ModelConfig(features=config.features, network=config.network, vocab_size=17))
        count = sum(parameter.numel() for parameter in network.parameters())
        assert 2.85e6 < count < 3.15e6, f"{name}: {count}"
