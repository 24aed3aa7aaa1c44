"""Every recipe function gives a configuration that builds, keeps its promises and survives YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr.config import load_config, load_recipe, save_config
from asr.features.fbank import Fbank
from asr.model_directory import ModelConfig, build_network
from asr.train.recipe import Recipe

EGS = Path(__file__).parents[2] / "egs"
RECIPES = [
    f"{EGS / corpus / 'lstm.py'}:{name}"
    for corpus in ("digits", "yesno")
    for name in ("streaming", "bidirectional", "ctc")
] + [
    f"{EGS / 'digits' / 'attention.py'}:{name}"
    for name in ("conformer", "transformer", "funnel", "funnel_ctc")
]


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
        assert latency_s <= (0.31 if "attention.py" in reference else 0.24)


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
