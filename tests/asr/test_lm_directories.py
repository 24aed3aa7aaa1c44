"""What commands make of a neural language model's directory: perplexity, info, export, fine-tuning."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

import asr
from asr.config import load_config, save_config
from asr.errors import ConfigError, TrainingError
from asr.export import export_model
from asr.lm_directory import load_lm
from asr.lms.evaluation import neural_perplexity
from asr.model_directory import CONFIG, ModelConfig
from asr.search import FusionConfig, SearchConfig
from asr.train import checkpoint
from asr.train.initial import Initial
from asr.train.language import LmRunInfo
from asr.train.lm_finetune import finetune_lm_recipe
from asr.train.lm_recipe import LmRecipe
from asr.train.loop import train
from asr.weights import read_weights
from tests.asr.test_fusion import ARPA
from tests.asr.test_neural_fusion import WORDS, write_lm
from tests.asr.test_train_lm import recipe, run, stop_at

LETTERS = "abcdefgh ij"
BATCHES = ["batches.dev_every=4", "batches.max_labels=60"]
TEXT = ["bade cab", "dad face fed", "gab head"]


@pytest.fixture
def lm(tmp_path: Path) -> Path:
    return write_lm(tmp_path / "lm", "char", LETTERS)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join([*TEXT, "a dog", ""]))
    return path


def cells(out: str) -> list[str]:
    return out.splitlines()[1].split()


def test_perplexity(call, lm: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a sentence after the other, by the model asked for each alone; lines it cannot write are counted."""
    monkeypatch.setenv("COLUMNS", "300")
    code, out, _ = call("lm", "perplexity", lm, text)
    assert code == 0
    network, tokenizer = load_lm(lm)[1:]
    nats = 0.0
    with torch.no_grad():
        for line in TEXT:
            ids = tokenizer.encode(line)
            rows = network.whole(torch.tensor([ids]))[0]
            nats -= float(sum(row[label] for row, label in zip(rows, [*ids, 0], strict=True)))
    labels, ends = sum(len(tokenizer.encode(line)) for line in TEXT), len(TEXT)
    characters = sum(len(line) + 1 for line in TEXT)
    perplexity = f"{math.exp(nats / (labels + ends)):.2f}"
    bits = f"{nats / math.log(2) / characters:.3f}"
    assert cells(out) == [str(text), "3", str(labels), "0.00", "%", perplexity, perplexity, bits]
    assert f"left out: 1 lines, the first {text}:4: the tokenizer has no symbol 'o'" in out.replace("\n", "")


def test_perplexity_of_a_model_that_adapts(call, lm: Path, text: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    plain = cells(call("lm", "perplexity", lm, text)[1])
    found = set()
    for options in (
        ["--cache", "--set", "cache.size=5", "--set", "cache.weight=0.4"],
        ["--dynamic", "--set", "dynamic.lr=0.5"],
        ["--dynamic", "--set", "dynamic.kind=rms", "--set", "dynamic.lr=0.01", "--training-text", text],
    ):
        code, out, err = call("lm", "perplexity", lm, text, *options)
        assert code == 0, err
        assert cells(out)[:3] == plain[:3]
        found.add(cells(out)[-1])
    assert len(found | {plain[-1]}) == 4
    still = call("lm", "perplexity", lm, text, "--dynamic", "--set", "dynamic.lr=0")[1]
    assert cells(still) == plain


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["LM", "TEXT", "--tokens", "LM"], "has its own tokenizer; leave the option out"),
        (["LM", "TEXT", "--cache", "--dynamic"], "expected a cache or dynamic evaluation, found both"),
        (["LM", "TEXT", "--set", "dynamic.lr=1"], "--set dynamic.lr=1: there is no section 'dynamic'"),
        (["LM", "TEXT", "--dynamic", "--set", "dynamic.kind=rms"], "needs the training text"),
        (["LM", "TEXT", "--training-text", "TEXT"], "is for dynamic evaluation of kind rms"),
        (["TEXT", "TEXT", "--cache"], "expected the directory of a neural language model with --cache"),
        ([".", "TEXT"], "found no model.safetensors and no config.yaml"),
    ],
)
def test_what_perplexity_cannot_be_asked(call, lm: Path, text: Path, monkeypatch, options, told: str) -> None:
    monkeypatch.chdir(text.parent)
    names = {"LM": lm, "TEXT": text}
    code, _, err = call("lm", "perplexity", *(names.get(option, option) for option in options))
    assert code == 1
    assert told in err
    assert err.count("\n") == 1


def test_info_says_what_it_is(call, lm: Path) -> None:
    code, out, _ = call("info", lm)
    assert code == 0
    network = load_lm(lm).network
    assert f"{sum(p.numel() for p in network.parameters()):,}" in out
    assert "language model        awd-lstm; takes part in a search as --lm" in out
    code, _, err = call("info", lm, "--latency", "240")
    assert code == 1
    assert "is a language model: leave it out" in err


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_an_export_predicts_as_well(call, lm: Path, tmp_path: Path, storage: str) -> None:
    save_config(LmRecipe(name="own"), lm / "recipe.yaml")
    code, out, _ = call("export", lm, tmp_path / "small", "--weights", storage)
    assert code == 0
    assert f"({storage})" in out
    before, after = load_lm(lm), load_lm(tmp_path / "small", load_lm(lm).tokenizer)
    measured = [neural_perplexity(each.network, each.tokenizer, TEXT).nats for each in (before, after)]
    assert measured[1] == pytest.approx(measured[0], rel=1e-6 if storage == "float32" else 0.02)
    assert (measured[0] == measured[1]) == (storage == "float32")
    assert (tmp_path / "small" / "README.md").read_text() == (lm / "README.md").read_text()
    assert load_config(tmp_path / "small" / "recipe.yaml", LmRecipe).name == "own"


def test_an_export_takes_a_recognisers_language_models_along(make_model, tmp_path: Path) -> None:
    directory = make_model()
    for name in ("inside", "other"):
        write_lm(directory / name)
    write_lm(directory.parent / "outside", text=WORDS)
    config = load_config(directory / CONFIG, ModelConfig)
    more = tuple({"lm": name} for name in ("other", "../outside"))
    fusion = FusionConfig.model_validate({"lm": "inside", "more_lms": more})
    search = SearchConfig(method="beam", fusion=fusion)
    save_config(config.model_copy(update={"search": search}), directory / CONFIG)
    small = tmp_path / "elsewhere" / "small"
    export_model(directory, small, "int8")
    assert {path.name for path in small.iterdir() if path.is_dir()} == {"inside", "other"}
    assert [path.name for path in small.parent.iterdir()] == ["small"]
    only = ["fusion.more_lms=[{lm: other}]"]
    # The first part is phrases, of which streams may bring some.
    assert len(asr.load(small, settings=only).search.scorer.parts[1:]) == 2


def test_an_export_takes_new_language_models_along(call, make_model, tmp_path: Path) -> None:
    """Each under a name of its own, also if two of them have the same."""
    lms = [write_lm(tmp_path / folder / "letters") for folder in "ab"]
    (tmp_path / "any.arpa").write_text(ARPA)
    chosen = [f"{tmp_path / 'any.arpa'}:0.5", f"{lms[0]}:0.2", str(lms[1])]
    small = tmp_path / "small"
    options = [part for each in chosen for part in ("--lm", each)]
    code, _, err = call("export", make_model(), small, "--beam", 3, *options)
    assert code == 0, err
    named = [(lm.lm, lm.weight) for lm in load_config(small / CONFIG, ModelConfig).search.fusion.lms]
    assert named == [("words.safetensors", 0.5), ("letters", 0.2), ("more-letters", 0.3)]
    assert len(asr.load(small).search.scorer.parts[1:]) == 3
    other = write_lm(tmp_path / "other", "char", LETTERS)
    code, _, err = call("export", make_model(), tmp_path / "none", "--beam", 3, "--lm", other)
    assert code == 1
    assert "expected the labels of the recogniser" in err
    assert not (tmp_path / "none").exists()
    code, _, err = call("export", other, tmp_path / "none", "--beam", 3)
    assert code == 1
    assert "found a language model" in err


@pytest.fixture(scope="module", name="corpus")
def _corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n".join(f"{a} {b}" for a in TEXT for b in (*TEXT, "aa bb", "ee ee ff")) + "\n")
    return path


def test_fine_tuning_begins_with_the_weights_and_leaves_a_page(
    lm: Path, corpus: Path, tmp_path: Path
) -> None:
    save_config(recipe(tmp_path / "gone", epochs=30), lm / "recipe.yaml")
    found = finetune_lm_recipe(lm, [*BATCHES, "network.weight_drop=0"])
    assert (found.optimizer.lr, found.training.epochs) == (pytest.approx(2e-3), 10)
    assert found.network == load_lm(lm).config.network.model_copy(update={"weight_drop": 0.0})
    exp = tmp_path / "exp"
    initial = Initial(model=str(lm.resolve()))
    still = found.model_copy(
        update={
            "optimizer": found.optimizer.model_copy(update={"lr": 1e-12}),
            "training": found.training.model_copy(update={"epochs": 1}),
        }
    )
    assert run(still, corpus, exp, initial=initial).finished
    before, after = (dict(load_lm(each).network.named_parameters()) for each in (lm, exp))
    for name, tensor in before.items():
        assert torch.allclose(after[name], tensor, atol=1e-6), name
    assert load_config(exp / "run.yaml", LmRunInfo).initial == str(lm.resolve())
    assert "- began as: lm" in (exp / "README.md").read_text()
    page = (exp / "report.html").read_text()
    assert "per word" in page
    assert "Most errors first" not in page
    assert "data:image/png;base64," in page
    assert finetune_lm_recipe(exp).optimizer.lr == pytest.approx(1e-12)  # not a fifth again
    with pytest.raises(TrainingError, match="this is the language model's directory"):
        run(still, corpus, lm, initial=initial)


def test_an_export_of_a_run_that_has_not_ended(
    lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = finetune_lm_recipe(lm, [*BATCHES, "training.epochs=2"])
    exp, small = tmp_path / "stopped", tmp_path / "small"
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        assert not run(found, corpus, exp, initial=Initial(model=str(lm.resolve()))).finished
    export_model(exp, small, "float32")
    assert "- unfinished: step 3 of 10, 0 of 2 epochs" in (small / "README.md").read_text()
    stored = read_weights(checkpoint.latest(exp / "checkpoints") / "model.safetensors")
    assert all(torch.equal(stored[name], each) for name, each in load_lm(small).network.state_dict().items())
    assert train(None, None, exp, resume=True, console=Console(quiet=True)).finished


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("network.dim=7", r"--set network.dim: expected what the model has \(6\), found 7"),
        ("network.kind=transformer", "--set network.kind: expected what the model has"),
        ("recogniser=elsewhere", "--set recogniser: expected the labels of .*, found those of elsewhere"),
    ],
)
def test_what_fine_tuning_keeps(lm: Path, setting: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        finetune_lm_recipe(lm, [setting])


def test_fine_tuning_by_command(call, lm: Path, corpus: Path, tmp_path: Path) -> None:
    exp = tmp_path / "tuned"
    command = ["finetune", lm, "--data", corpus, "--exp", exp]
    for option, value in (("--new-tokens", []), ("--check", ["x"])):
        code, _, err = call(*command, option, *value)
        assert code == 1
        assert f"{option} is for recognisers" in err
    settings = [*BATCHES, "training.epochs=6", "optimizer.lr=0.05", "optimizer.warmup_steps=1"]
    code, _, err = call(*command, *(part for each in settings for part in ("--set", each)))
    assert code == 0, err
    lines = corpus.read_text().splitlines()
    before, after = load_lm(lm), load_lm(exp)
    nats = [neural_perplexity(each.network, each.tokenizer, lines).nats for each in (before, after)]
    assert nats[1] < 0.8 * nats[0]
