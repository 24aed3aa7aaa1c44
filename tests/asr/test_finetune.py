"""Fine-tuning: it begins with the model, keeps what belongs to its weights, measures what was forgotten."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from asr.config import load_config, load_yaml, override, save_config
from asr.data.batches import BatchesConfig
from asr.data.manifests import load_card, save_card
from asr.data.plan import Dealing
from asr.encoders import ConformerEncoderConfig, LstmEncoderConfig
from asr.errors import ConfigError, DataError, ManifestError, TrainingError
from asr.evaluate import evaluate
from asr.features.fbank import FbankConfig
from asr.features.specaugment import SpecAugmentConfig
from asr.forgetting import find_check
from asr.joiner import JoinerConfig
from asr.losses import CtcLossConfig, LossConfig, TopologyConfig, TransducerLossConfig
from asr.model_directory import LoadedModel, ModelConfig, build_network, load_model
from asr.predictors import (
    LstmPredictorConfig,
    PredictorConfig,
    StatelessPredictorConfig,
    TransformerPredictorConfig,
)
from asr.text.tokenizer import Tokenizer, TokenizerConfig, extend_tokenizer, load_tokenizer, train_tokenizer
from asr.train import metrics
from asr.train.card import with_fact
from asr.train.distributed import World
from asr.train.finetune import finetune_recipe
from asr.train.initial import Initial, copy_weights, label_sized
from asr.train.loop import train
from asr.train.metrics import read_log
from asr.train.optim import OptimizerConfig, learning_rate
from asr.train.preflight import preflight
from asr.train.recipe import Recipe, TrainingConfig
from asr.train.setup import RunInfo, is_run, open_run, start_run
from asr.transducer import TransducerConfig

RATE = 8000
TONES = {"low": 400.0, "mid": 1100.0, "high": 2600.0}
OTHER_TONES = {"high": 2500.0, "deep": 200.0}
COUNTS = {"train": 6, "dev": 2, "test": 2}
"""Recordings of each word."""
ALONE = World(torch.device("cpu"))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, write_tones) -> Path:
    return write_tones(tmp_path_factory.mktemp("corpora") / "old", TONES, COUNTS, name="old")


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory, write_tones) -> Path:
    """One word that the model knows, one that it does not."""
    return write_tones(tmp_path_factory.mktemp("corpora") / "new", OTHER_TONES, COUNTS, name="new")


@pytest.fixture(scope="module")
def model(old: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the old corpus, trained with all that comes in stages."""
    recipe = Recipe(
        features=FbankConfig(sample_rate=RATE, num_mel_bins=20),
        specaugment=SpecAugmentConfig(probability=0),
        tokenizer=TokenizerConfig(kind="word"),
        batches=BatchesConfig(max_utterances=3, num_buckets=2, num_workers=0, curriculum_epochs=1),
        network=TransducerConfig(
            encoder=LstmEncoderConfig(hidden=16, layers=2, lookahead=1, dropout=0.1, layer_steps=2),
            predictor=StatelessPredictorConfig(dim=16, context=1),
            joiner=JoinerConfig(dim=16),
            loss=LossConfig(ctc=CtcLossConfig(weight=0.3)),
        ),
        optimizer=OptimizerConfig(lr=1e-2, warmup_steps=5),
        training=TrainingConfig(epochs=16, keep_best=1),
    )
    exp = tmp_path_factory.mktemp("exp") / "model"
    train(recipe, old, exp, console=Console(quiet=True))
    return exp


def initial(model: Path, **options: object) -> Initial:
    return Initial(model=str(model.resolve()), **options)  # type: ignore[arg-type]


def test_the_first_step_has_the_loss_of_the_model(model: Path, old: Path, tmp_path: Path) -> None:
    """And the run writes down where it began."""
    dropouts = ["network.encoder.dropout=0", "network.predictor.dropout=0"]
    recipe = finetune_recipe(model, [*dropouts, "training.epochs=1"])
    exp, first = tmp_path / "exp", initial(model)
    train(recipe, old, exp, initial=first, console=Console(quiet=True))
    run = open_run(exp)
    run.batches.deal(Dealing(0, 1, 1))
    (batch,) = next(run.batches.steps())
    network = load_model(model).network
    with torch.inference_mode():
        encoded = network.encode(batch.features, batch.feature_lengths)
        losses = network.losses(encoded.y, encoded.y_lengths, batch.targets, batch.target_lengths).total
    loss = next(r["loss"] for r in read_log(exp) if r["kind"] == "train")
    assert loss == pytest.approx(float(losses.sum() / batch.target_lengths.sum()), rel=1e-5)
    assert load_config(exp / "run.yaml", RunInfo).initial == first
    assert "- began as: model\n" in (exp / "README.md").read_text()
    assert is_run(exp, recipe, [old], first)
    assert not is_run(exp, recipe, [old])


def test_weights_and_statistics_are_the_models_after_the_preflight(
    model: Path, old: Path, new: Path, tmp_path: Path
) -> None:
    weights, fresh = load_file(model / "model.safetensors"), 0
    setup = start_run(finetune_recipe(model), [old], tmp_path / "same", ALONE, initial(model))
    preflight(setup)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in setup.network.state_dict().items())
    options = {"new_tokens": True}
    recipe = finetune_recipe(model, **options)
    setup = start_run(recipe, [new], tmp_path / "more", ALONE, initial(model, **options))
    preflight(setup)
    assert setup.tokenizer.symbols == (*load_tokenizer(model).symbols, "▁deep")
    for name, tensor in setup.network.state_dict().items():
        assert torch.equal(tensor[: len(weights[name])], weights[name])
        fresh += tensor.shape != weights[name].shape
    assert fresh == 5  # embedding, joiner.output and ctc with a bias each
    assert load_tokenizer(tmp_path / "more").symbols == setup.tokenizer.symbols


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM when the log shows a step."""
    write = metrics.RunLog.write

    def counted(log: object, kind: str, at: int, **values: object) -> None:
        write(log, kind, at, **values)  # type: ignore[arg-type]
        if kind == "train" and at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(metrics.RunLog, "write", counted)


def finetune(exp: Path, model: Path, *arguments: object) -> list[object]:
    settings = ["training.epochs=2", "optimizer.lr=5e-3"]
    return ["finetune", model, "--exp", exp, *arguments, *(w for s in settings for w in ("--set", s))]


def test_the_command_resumes_exactly_and_says_what_was_forgotten(
    call, model: Path, old: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    begun = tmp_path / "begun"
    begun.symlink_to(model)
    options = ("--data", new, "--new-tokens", "--check")
    code, out, err = call(*finetune(whole, model, *options, old))
    assert (code, err) == (0, "")
    with monkeypatch.context() as patch:
        stop_at(6, patch)  # in the middle of the second epoch
        code, stopped, _ = call(*finetune(parts, begun, *options, "test"))  # a split of the model's corpus
    assert f"resume: asr train --resume --exp {parts}" in stopped.splitlines()
    assert load_yaml(parts / "forgetting.yaml")["after"] is None
    code, resumed, _ = call("train", "--resume", "--exp", parts)
    a, b = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
    statistics = load_file(model / "model.safetensors")
    assert all(torch.equal(a[name], statistics[name]) for name in ("norm.mean", "norm.scale"))
    # What the check says is what decoding says.
    before = evaluate(model, str(old / "test.jsonl.gz"), tmp_path / "decoded-before")
    after = evaluate(whole, str(old / "test.jsonl.gz"), tmp_path / "decoded-after")
    points = 100 * (after.report.wer - before.report.wer)
    line = (
        f"forgetting: WER {100 * before.report.wer:.2f} % before, {100 * after.report.wer:.2f} % after "
        f"({points:+.2f} points) on old-test"
    )
    assert points  # numbers that could be exchanged for each other would show little
    for exp, printed in ((whole, out), (parts, resumed)):
        lines = printed.splitlines()
        assert f"before: {before.lines[0]}, {model}" in lines
        assert f"after:  {after.lines[0]}, {exp}" in lines
        assert line in lines
        assert f"- {line}" in (exp / "README.md").read_text().splitlines()
        found = load_yaml(exp / "forgetting.yaml")
        assert found["before"]["wer"] == before.report.wer
        assert found["after"]["wer"] == after.report.wer
        assert found["difference"] == pytest.approx(points / 100)
    # A finished run is left alone, unless its check was not made.
    assert "forgetting" not in call("finetune", "--resume", "--exp", parts)[1]
    (parts / "forgetting.yaml").unlink()
    assert line in call("train", "--resume", "--exp", parts)[1].splitlines()
    assert (parts / "README.md").read_text().count("- forgetting: ") == 1


PREDICTORS = [
    StatelessPredictorConfig(dim=8),
    LstmPredictorConfig(dim=8, layers=2),
    TransformerPredictorConfig(dim=8, heads=2, layers=1, history=4),
]
TDT, BIG = TopologyConfig(name="tdt"), TopologyConfig(name="multi_blank")
HEADS = {
    "transducer": (LossConfig(), []),
    "ctc": (LossConfig(ctc=CtcLossConfig(weight=1)), ["ctc.weight", "ctc.bias"]),
    "tdt": (LossConfig(transducer=TransducerLossConfig(topology=TDT)), []),
    "multi_blank": (LossConfig(transducer=TransducerLossConfig(topology=BIG)), []),
    "pruned": (
        LossConfig(transducer=TransducerLossConfig(kind="pruned")),
        ["simple_encoder.weight", "simple_encoder.bias", "simple_predictor.weight"],
    ),
}
EXTRA = {"tdt": 5, "multi_blank": 2}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda config: config.kind)
@pytest.mark.parametrize(
    "words", ["a b c d e f g", "b d x", "d x a b c z y"], ids=["same", "fewer", "as many"]
)
def test_rows_of_shared_symbols_are_copied_wherever_labels_are(
    predictor: PredictorConfig, head: str, words: str
) -> None:
    """The widths are the number of labels, so that no size tells a row of a label from another."""
    loss, names = HEADS[head]
    network = TransducerConfig(
        encoder=LstmEncoderConfig(hidden=8, layers=1),
        predictor=predictor,
        joiner=JoinerConfig(dim=8),
        loss=loss,
    )
    before = train_tokenizer(TokenizerConfig(kind="word"), ["a b c d e f g"])
    after = train_tokenizer(TokenizerConfig(kind="word"), [words])

    def config(tokenizer: Tokenizer) -> ModelConfig:
        features = FbankConfig(sample_rate=RATE, num_mel_bins=8)
        return ModelConfig(features=features, network=network, vocab_size=tokenizer.vocab_size)

    model = LoadedModel(config(before), build_network(config(before)), before)
    torch.manual_seed(1)
    fresh = {name: t.clone() for name, t in build_network(config(after)).state_dict().items()}
    torch.manual_seed(1)
    made = build_network(config(after))
    copy_weights(model, made, after)
    weights, labels = model.network.state_dict(), ["joiner.output.weight", "joiner.output.bias"]
    labels += ["predictor.embedding.weight", *names]
    assert label_sized(config(after)) == set(labels)
    for name, tensor in made.state_dict().items():
        if name not in labels:
            assert torch.equal(tensor, weights[name]), name
            continue
        for id, symbol in enumerate(after.symbols):
            known = symbol in before.symbols
            row = weights[name][before.symbols.index(symbol)] if known else fresh[name][id]
            assert torch.equal(tensor[id], row), (name, symbol)
        extra = EXTRA.get(head, 0) if name.startswith("joiner") else 0
        assert len(tensor) == after.vocab_size + extra
        assert torch.equal(tensor[after.vocab_size :], weights[name][before.vocab_size :])


@pytest.mark.parametrize("kind", ["char", "word"])
@pytest.mark.parametrize("unk", [False, True])
def test_symbols_keep_their_ids(kind: str, unk: bool) -> None:
    config = TokenizerConfig(kind=kind, unk=unk)
    before = train_tokenizer(config, ["mid tone"])
    after = extend_tokenizer(before, config, ["a mid tune"])
    assert after.symbols[: before.vocab_size] == before.symbols
    new = ["a", "u"] if kind == "char" else ["▁a", "▁tune"]
    assert list(after.symbols[before.vocab_size :]) == new
    assert after.decode(after.encode("a tune")) == "a tune"
    assert Initial(model="m").tokenizer(before, config, ["a"]) is before
    asked = TokenizerConfig(kind=kind, unk=True)
    moved = Initial(model="m", new_tokens=True).tokenizer(before, asked, ["a mid tune"])
    assert moved.symbols[2:] == after.symbols[1 + unk :]
    with pytest.raises(DataError, match="at least one text"):
        extend_tokenizer(before, config, [""])


def test_word_pieces_are_made_anew() -> None:
    config = TokenizerConfig(kind="bpe", vocab_size=12)
    before = train_tokenizer(config, ["low mid low mid"])
    after = Initial(model="m", new_tokens=True).tokenizer(before, config, ["deep high deep high"])
    assert after.symbols == train_tokenizer(config, ["deep high deep high"]).symbols != before.symbols


def test_what_the_user_does_not_set_is_gentle(model: Path, new: Path, tmp_path: Path, make_model) -> None:
    recipe = finetune_recipe(model)
    assert recipe.optimizer.lr == pytest.approx(2e-3)
    assert (recipe.optimizer.warmup_steps, recipe.optimizer.warmup_share) == (5, 0.1)
    assert recipe.batches.curriculum_epochs == 0
    assert recipe.training.epochs == 10
    assert recipe.network.encoder.layer_steps == 0
    chosen = ["optimizer.warmup_steps=300", "optimizer.lr=0.1", "training.epochs=20"]
    recipe = finetune_recipe(model, chosen)
    assert (recipe.optimizer.warmup_steps, recipe.optimizer.warmup_share) == (300, 1)
    assert (recipe.optimizer.lr, recipe.training.epochs) == (0.1, 20)
    # A model that was fine-tuned has the rate of fine-tuning; one without a recipe that of the defaults.
    again = tmp_path / "again"
    start_run(finetune_recipe(model), [new], again, ALONE, initial(model, new_tokens=True))
    for file in ("model.safetensors", "config.yaml", "tokenizer.txt", "tokenizer.yaml"):
        (again / file).write_bytes((model / file).read_bytes())
    assert finetune_recipe(again).optimizer.lr == pytest.approx(2e-3)
    alone = make_model(encoder=ConformerEncoderConfig(dim=16, heads=2, layers=1, kernel=3))
    recipe = finetune_recipe(alone)
    assert recipe.optimizer.lr == pytest.approx(OptimizerConfig().lr / 5)
    assert (recipe.optimizer.warmup_steps, recipe.training.epochs) == (100, 10)
    assert recipe.network.encoder.context_warmup_steps == 0
    assert recipe.tokenizer.kind == "word"


def test_the_warm_up_takes_at_most_its_share() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=100, warmup_share=0.1, final_lr=0.1)
    assert learning_rate(config, 4, 100) == pytest.approx(0.5)
    assert learning_rate(config, 10, 100) == pytest.approx(1.0)
    assert learning_rate(config, 49, 2000) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("features.num_mel_bins=40", r"features\.num_mel_bins: expected what the model has \(20\), found 40"),
        ("network.encoder.hidden=32", r"network\.encoder\.hidden: .* \(16\), found 32; .*\(asr train\)"),
        ("network.encoder.kind=conformer", r"network\.encoder\.kind"),
        ("network.predictor.context=2", r"network\.predictor\.context"),
        ("network.joiner.activation=relu", r"network\.joiner\.activation"),
        ("network.loss.ctc.weight=0", r"network\.loss\.ctc\.weight: .* \(0\.3\), found 0"),
        ("network.loss.transducer.topology.name=tdt", r"network\.loss\.transducer\.topology\.name"),
        ("network.loss.transducer.kind=pruned", r"network\.loss\.transducer\.kind"),
        ("tokenizer.kind=char", r"tokenizer\.kind: .* \(word\), found char; .*--new-tokens"),
    ],
)
def test_settings_that_do_not_fit_the_weights_are_named(model: Path, setting: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^--set {reason}"):
        finetune_recipe(model, ["optimizer.lr=1e-4", setting])


@pytest.mark.parametrize(
    "setting",
    [
        "network.encoder.dropout=0.3",
        "network.encoder.hidden=16",
        "network.loss.ctc.weight=0.5",
        "network.loss.transducer.fastemit=0.01",
        "network.loss.transducer.topology.name=monotonic",
        "search.max_symbols=3",
    ],
)
def test_other_settings_may_change(model: Path, setting: str) -> None:
    finetune_recipe(model, [setting])


def test_the_kind_of_symbols_may_change_with_new_tokens(model: Path) -> None:
    assert finetune_recipe(model, ["tokenizer.kind=char"], new_tokens=True).tokenizer.kind == "char"


def test_unknown_words_are_named_and_a_run_can_be_started_after_all(
    call, model: Path, new: Path, tmp_path: Path
) -> None:
    exp = tmp_path / "exp"
    code, _, err = call("finetune", model, "--data", new, "--exp", exp, "--check", "test")
    assert code == 1
    unknown = "utterance deep-train-0: the tokenizer has no word 'deep'"
    assert err == f"asr: {unknown}; correct the text, or add --new-tokens\n"
    assert not (exp / "checkpoints").exists()
    assert not (exp / "forgetting.yaml").exists()
    start_run(finetune_recipe(model), [new], exp, ALONE, initial(model, new_tokens=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "--exp", "{exp}"], "expected a model directory and --data"),
        (["--data", "{new}", "--exp", "{exp}"], "expected a model directory and --data"),
        (["{model}", "--exp", "{exp}", "--resume"], "--resume goes on with the run"),
        (["--exp", "{exp}", "--resume"], "no run to resume here"),
        (["{new}", "--data", "{new}", "--exp", "{exp}"], "expected a model directory, found no model.safe"),
        (["{model}", "--data", "{new}", "--exp", "{exp}", "--check", "{exp}"], "does not know|expected one"),
        (["{model}", "--data", "{new}", "--exp", "{exp}", "--check", "{model}"], "test.jsonl.gz or test.sha"),
    ],
)
def test_the_command_says_in_one_line_what_it_needs(
    call, model: Path, new: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    exp = tmp_path / "exp"
    code, _, err = call("finetune", *(a.format(model=model, new=new, exp=exp) for a in arguments))
    assert code == 1
    assert err.count("\n") == 1
    assert any(part in err for part in message.split("|"))
    assert not exp.exists()


def test_a_model_is_not_overwritten_by_its_own_fine_tuning(model: Path, old: Path) -> None:
    with pytest.raises(TrainingError, match="this is the model to begin with"):
        start_run(finetune_recipe(model), [old], model / ".." / "model", ALONE, initial(model))


def test_a_test_set_is_named_as_for_decoding(model: Path, old: Path, tmp_path: Path) -> None:
    for check in (str(old), str(old / "test.jsonl.gz"), "test"):
        assert find_check(model, check) == old / "test.jsonl.gz"
    assert find_check(model, "dev") == old / "dev.jsonl.gz"
    with pytest.raises(ManifestError, match=r"none\.jsonl\.gz"):
        find_check(model, str(tmp_path / "none.jsonl.gz"))


@pytest.mark.parametrize("people", [False, True])
def test_a_model_is_synthetic_until_it_has_heard_people(
    model: Path, old: Path, tmp_path: Path, people: bool
) -> None:
    copied = tmp_path / "model"
    copied.mkdir()
    for file in ("model.safetensors", "tokenizer.txt", "tokenizer.yaml"):
        (copied / file).symlink_to(model / file)
    config = load_config(model / "config.yaml", ModelConfig)
    save_config(config.model_copy(update={"synthetic": True}), copied / "config.yaml")
    machine = tmp_path / "machine"
    machine.mkdir()
    for part in ("train",) if people else ("train", "dev"):
        (machine / f"{part}.jsonl.gz").symlink_to(old / f"{part}.jsonl.gz")
    save_card(load_card(old).model_copy(update={"name": "machine", "synthetic": True}), machine)
    data = [machine, old] if people else [machine]
    setup = start_run(finetune_recipe(copied), data, tmp_path / "exp", ALONE, initial(copied))
    assert setup.model_config.synthetic is not people
    assert setup.info.corpus == ("machine (synthetic) + old" if people else "machine")


def test_a_fact_joins_the_card_once() -> None:
    card = "# name\n\n- dev WER: 1 %\n- trained: here\n\nMore.\n"
    once = with_fact(card, "forgetting", "little")
    assert once == card.replace("here\n", "here\n- forgetting: little\n")
    assert with_fact(once, "forgetting", "much") == once.replace("little", "much")


@pytest.mark.parametrize("weights", ["float32", "float16", "int8"])
def test_a_model_is_exported_in_fewer_bytes(model: Path, old: Path, tmp_path: Path, call, weights) -> None:
    out = tmp_path / "small"
    code, said, err = call("export", model, out, "--weights", weights)
    assert code == 0, err
    assert said.startswith(f"model: {out}, model.safetensors ")
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "config.yaml", "model.safetensors", "recipe.yaml", "tokenizer.txt", "tokenizer.yaml",
    ]  # fmt: skip
    assert (out / "README.md").read_text() == (model / "README.md").read_text()
    share = (out / "model.safetensors").stat().st_size / (model / "model.safetensors").stat().st_size
    assert share == pytest.approx({"float32": 1, "float16": 0.5, "int8": 0.25}[weights], abs=0.1)
    whole, less = (load_model(directory).network.state_dict() for directory in (model, out))
    for name, tensor in whole.items():
        torch.testing.assert_close(less[name], tensor, rtol=0.01, atol=float(tensor.abs().max()) / 200)
    decoded = [evaluate(m, str(old / "test.jsonl.gz"), tmp_path / f"{i}") for i, m in enumerate((model, out))]
    assert decoded[0].report.overall.wer == decoded[1].report.overall.wer
    code, _, err = call("export", model, model)
    assert (code, err.count("\n")) == (1, 1)
    assert "expected another directory than the model's" in err


def test_an_unfinished_training_is_exported_as_far_as_it_is(model: Path, tmp_path: Path, call) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(model, run)
    (run / "model.safetensors").unlink()
    newest = sorted((run / "checkpoints").iterdir())[-1]
    older = {name: tensor + 1 for name, tensor in load_file(newest / "model.safetensors").items()}
    shutil.copytree(newest, run / "checkpoints" / "step-000001")
    save_file(older, run / "checkpoints" / "step-000001" / "model.safetensors")
    code, _, err = call("export", run, out, "--weights", "float32")
    assert code == 0, err
    exported = load_model(out).network.state_dict()
    saved = load_file(newest / "model.safetensors")
    assert all(torch.equal(exported[name], tensor) for name, tensor in saved.items())
    assert f"unfinished: step {int(newest.name[-6:])} of " in (out / "README.md").read_text()
    shutil.rmtree(run / "checkpoints")
    code, _, err = call("export", run, tmp_path / "none")
    assert (code, err.count("\n")) == (1, 1)
    assert "found no model.safetensors" in err


def test_an_exported_recipe_knows_no_files_of_this_machine(
    model: Path, old: Path, tmp_path: Path, call
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(model, run)
    recipe = load_config(model / "recipe.yaml", Recipe)
    banks = ("augment.noise", "augment.reverb")
    noisy = override(
        recipe, [f"{bank}.{key}" for bank in banks for key in ("probability=0.3", "source=/here")]
    )
    save_config(noisy, run / "recipe.yaml")
    (run / "LICENSES.txt").write_text("Keep this.\n")
    assert call("export", run, out)[0] == 0
    assert (out / "LICENSES.txt").read_text() == "Keep this.\n"
    assert "/here" not in (out / "recipe.yaml").read_text()
    expected = override(noisy, [f"{bank}.source=null" for bank in banks])
    expected = expected.model_copy(update={"search": load_model(model).config.search})
    assert load_config(out / "recipe.yaml", Recipe) == expected
    assert finetune_recipe(out).augment.noise.probability == 0.3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("finals=whole", "search.finals=whole"),
        ("synchronous=alignment", "expected beam search"),
        ("nbest=3", "expected beam with search.rescore"),
    ],
)
def test_what_a_model_cannot_do_is_not_exported(
    model: Path, tmp_path: Path, call, setting: str, message: str
) -> None:
    code, _, err = call("export", model, tmp_path / "out", "--search", setting)
    assert (code, err.count("\n")) == (1, 1)
    assert message in err
    assert not (tmp_path / "out").exists()
