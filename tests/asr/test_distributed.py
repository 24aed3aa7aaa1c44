"""Several processes train as one does, resume each other's runs exactly and survive the death of one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from asr.config import save_config
from asr.data.augment import AugmentConfig, SpeedConfig
from asr.data.batches import BatchesConfig
from asr.data.manifests import CorpusCard, file_recording, make_cut, read_cuts, save_card, write_cuts
from asr.data.plan import Dealing
from asr.data.shard_writer import write_shards
from asr.data.texts import TextBatchesConfig
from asr.encoders import ConformerEncoderConfig, EncoderConfig, LstmEncoderConfig
from asr.errors import TrainingError
from asr.features.fbank import FbankConfig
from asr.features.specaugment import SpecAugmentConfig
from asr.joiner import JoinerConfig
from asr.layers.context import ContextConfig
from asr.lms import AwdLstmConfig
from asr.losses import CtcLossConfig, LossConfig, MwerConfig, TransducerLossConfig
from asr.predictors import StatelessPredictorConfig
from asr.text.tokenizer import TokenizerConfig, train_tokenizer
from asr.train import checkpoint, preflight
from asr.train.distributed import World, read_world, started
from asr.train.finetune import finetune_recipe
from asr.train.gradients import divide_gradients, sum_gradients
from asr.train.initial import Initial
from asr.train.lm_recipe import LmRecipe
from asr.train.loop import train
from asr.train.metrics import read_log
from asr.train.optim import OptimizerConfig
from asr.train.recipe import Recipe, TrainingConfig
from asr.transducer import TransducerConfig

RATE = 8000
TONES = {"low": 400.0, "mid": 1100.0, "high": 2600.0}
TIMEOUT_S = 300
TORCHRUNS = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three words, each a tone: 24 recordings to learn from, and `odd`, too short for its text; 6 in dev."""
    directory, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)

    def cut(name: str, text: str, hertz: float, seconds: float) -> object:
        t = np.arange(round(seconds * RATE)) / RATE
        path = directory / f"{name}.wav"
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * t) * np.hanning(len(t)), RATE)
        return make_cut(file_recording(path, name), name, text, speaker="s")

    for split, count in (("train", 8), ("dev", 2)):
        cuts = [
            cut(f"{word}-{split}-{i}", word, hertz * rng.uniform(0.95, 1.05), rng.uniform(0.2, 0.35))
            for word, hertz in TONES.items()
            for i in range(count)
        ]
        if split == "train":
            cuts.append(cut("odd", "low low mid mid high high", 400.0, 0.05))
        write_cuts(cuts, directory / f"{split}.jsonl.gz")
    card = CorpusCard(name="tones", source="test", licence="none", sample_rate=RATE, synthetic=True)
    save_card(card, directory)
    return directory


LSTM = LstmEncoderConfig(hidden=16, layers=2, lookahead=1, dropout=0.1, layer_steps=3)
"""The second layer joins at step 3: until then it has no gradient on any process."""
CONFORMER = ConformerEncoderConfig(
    dim=16,
    heads=2,
    layers=2,
    kernel=3,
    contexts=(ContextConfig(chunk=4, left_chunks=2), ContextConfig()),
    context_warmup_steps=2,
)


def recipe(encoder: EncoderConfig = LSTM, **training: object) -> Recipe:
    """Batches of up to three utterances in two views. With LSTMs a CTC model, which has no finite loss for
    `odd`, with averaged weights; with Conformers a transducer that joins at step 3: until then no process has
    a gradient of it.
    """
    ema = 0.5 if encoder is LSTM else 0.0
    predictor = None if encoder is LSTM else StatelessPredictorConfig(dim=16, context=1)
    transducer = TransducerLossConfig(weight=0) if encoder is LSTM else TransducerLossConfig(after_steps=3)
    return Recipe(
        features=FbankConfig(sample_rate=RATE, num_mel_bins=20),
        specaugment=SpecAugmentConfig(probability=1, max_freq_width=4),
        tokenizer=TokenizerConfig(kind="word"),
        augment=AugmentConfig(speed=SpeedConfig(factors=(0.9, 1.0, 1.1))),
        batches=BatchesConfig(max_utterances=3, num_buckets=2, num_workers=0),
        network=TransducerConfig(
            encoder=encoder,
            predictor=predictor,
            joiner=JoinerConfig(dim=16),
            loss=LossConfig(transducer=transducer, ctc=CtcLossConfig(weight=1, consistency=0.2)),
        ),
        optimizer=OptimizerConfig(lr=3e-3, warmup_steps=5),
        training=TrainingConfig(**{"epochs": 2, "keep_best": 2, "ema": ema, **training}),  # type: ignore[arg-type]
    )


@pytest.fixture(autouse=True)
def _any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `odd`, whose loss is infinite, through to training; processes inherit it."""
    monkeypatch.setattr(preflight, "refuse_too_short", lambda *_: None)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def together(work: Callable[[int], None], processes: int = 2) -> list[int | None]:
    """Exit codes of processes that do `work` of their rank in torchrun's environment; forked: no imports."""
    port = free_port()

    def main(rank: int) -> None:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
        work(rank)

    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=main, args=(rank,)) for rank in range(processes)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        for worker in workers:
            worker.start()
    for worker in workers:
        worker.join(TIMEOUT_S)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    return codes


def train_together(
    config: Recipe | None, data: Path | None, exp: Path, processes: int = 2, **options: object
) -> None:
    def work(rank: int) -> None:
        train(config, data, exp, console=Console(quiet=True), **options)  # type: ignore[arg-type]

    assert together(work, processes) == [0] * processes


def records(exp: Path, kind: str = "train") -> list[dict[str, object]]:
    return [record for record in read_log(exp) if record["kind"] == kind]


def close(value: object) -> object:
    return pytest.approx(value, rel=1e-4) if isinstance(value, float) else value


def assert_same_curve(one: Path, other: Path) -> None:
    """Losses, gradients and dev results agree to 1e-4; so do the weights that were kept."""
    for kind in ("train", "skip", "dev"):
        assert [r["step"] for r in records(one, kind)] == [r["step"] for r in records(other, kind)]
        for a, b in zip(records(one, kind), records(other, kind), strict=True):
            assert a == {name: close(value) for name, value in b.items()}
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
@pytest.mark.parametrize("encoder", [LSTM, CONFORMER], ids=["lstm", "conformer"])
def test_two_processes_train_as_one_that_accumulates(
    corpus: Path, tmp_path: Path, encoder: EncoderConfig, sharding: str
) -> None:
    """With dropout, contexts, parts that join, an utterance without a finite loss, a tail for one alone."""
    one, two = tmp_path / "one", tmp_path / "two"
    train(recipe(encoder, accumulate=2), corpus, one, console=Console(quiet=True))
    train_together(recipe(encoder, accumulate=1, sharding=sharding), corpus, two)
    assert [record["utterances"] for record in records(one, "skip")] == [["odd"]] * 2 * (encoder is LSTM)
    assert len(records(one)) == 2 * 5  # steps of 2, 2, 2, 2 and 1 batches
    assert_same_curve(one, two)


def test_two_processes_train_word_errors_as_one_that_accumulates(corpus: Path, tmp_path: Path) -> None:
    """Each process searches with its own copy of the network, from the step at which the transducer joins."""
    one, two = tmp_path / "one", tmp_path / "two"

    def config(accumulate: int) -> Recipe:
        base = recipe(CONFORMER, accumulate=accumulate, ema=0.5)
        loss = base.network.loss.model_copy(update={"mwer": MwerConfig(weight=1, include_reference=True)})
        return base.model_copy(update={"network": base.network.model_copy(update={"loss": loss})})

    train(config(2), corpus, one, console=Console(quiet=True))
    train_together(config(1), corpus, two)
    assert_same_curve(one, two)


def test_two_processes_train_a_language_model_as_one_does(tmp_path: Path) -> None:
    text, one, two = tmp_path / "lm.txt", tmp_path / "one", tmp_path / "two"
    text.write_text("".join(f"{'ab' * (i % 5 + 1)} {'ba' * (i % 3 + 1)}{'a' * (i % 7)}\n" for i in range(60)))
    train_tokenizer(TokenizerConfig(), ["ab a"]).save(tmp_path)

    def lm(accumulate: int) -> LmRecipe:
        return LmRecipe(
            recogniser=str(tmp_path),
            network=AwdLstmConfig(dim=8, hidden=8, layers=2),
            batches=TextBatchesConfig(max_labels=120, dev_every=3),
            optimizer=OptimizerConfig(kind="nt-asgd", lr=1.0, warmup_steps=0, final_lr=1, patience=1),
            training=TrainingConfig(epochs=2, keep_best=2, accumulate=accumulate),
        )

    train(lm(2), text, one, console=Console(quiet=True))
    train_together(lm(1), text, two)  # type: ignore[arg-type]
    assert len(records(one)) > 4
    assert_same_curve(one, two)


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_two_processes_train_from_shards_as_one_does_from_the_manifest(
    corpus: Path, tmp_path: Path, sharding: str
) -> None:
    """A recording is damaged: the process that its batch is dealt to leaves it out, here a whole batch."""
    data = tmp_path / "data"
    for split in ("train", "dev"):
        write_shards(corpus / f"{split}.jsonl.gz", data / f"{split}.shar", shard_size=5)
    tar = data / "train.shar" / "shards" / "recording.000002.tar"
    content = bytearray(tar.read_bytes())
    content[600] ^= 0xFF  # the first of the shard: cut number 10
    tar.write_bytes(content)
    one, two = tmp_path / "one", tmp_path / "two"
    single = {"batches": BatchesConfig(max_utterances=1, num_workers=0)}
    train(recipe(accumulate=2).model_copy(update=single), data, one, console=Console(quiet=True))
    train_together(recipe(accumulate=1, sharding=sharding).model_copy(update=single), data, two)
    assert_same_curve(one, two)
    for exp in (one, two):
        lost = [line for record in records(exp, "corrupt") for line in record["utterances"]]  # type: ignore[attr-defined]
        assert [line.split(":")[0] for line in lost] == ["mid-train-2"] * 2


def test_two_processes_fine_tune_as_one_does(corpus: Path, tmp_path: Path) -> None:
    """The main process has the model and its statistics, the others get copies."""
    model, one, two = tmp_path / "model", tmp_path / "one", tmp_path / "two"
    train(recipe(epochs=1), corpus, model, console=Console(quiet=True))
    initial = Initial(model=str(model))
    gentle = {n: finetune_recipe(model, [f"training.accumulate={n}"]) for n in (1, 2)}
    train(gentle[2], corpus, one, initial=initial, console=Console(quiet=True))
    train_together(gentle[1], corpus, two, initial=initial)
    assert_same_curve(one, two)
    before, after = load_file(model / "model.safetensors"), load_file(two / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in ("norm.mean", "norm.scale"))


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the highest rank gets SIGTERM in the middle of an optimiser step."""
    from asr.train import recogniser

    go_through, stopping = recogniser.train_batch, []

    def stopped(*arguments: object, **options: object) -> object:
        last = int(os.environ.get("WORLD_SIZE", "1")) - 1
        if options["step"] == step and int(os.environ.get("RANK", "0")) == last and not stopping:
            stopping.append(step)  # a second signal would stop at once
            os.kill(os.getpid(), signal.SIGTERM)
        return go_through(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(recogniser, "train_batch", stopped)


@pytest.mark.parametrize(
    ("accumulate", "first", "then", "sharding"),
    [(1, 2, 1, "none"), (2, 1, 2, "none"), (3, 1, 2, "none"), (3, 1, 2, "fsdp2"), (1, 2, 1, "fsdp2")],
)
def test_a_run_is_resumed_exactly_by_another_number_of_processes(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accumulate: int,
    first: int,
    then: int,
    sharding: str,
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe(accumulate=accumulate * first), corpus, whole, console=Console(quiet=True))
    with monkeypatch.context() as patch:
        stop_at(1, patch)
        train_any(first, recipe(accumulate=accumulate, sharding=sharding), corpus, parts)
    assert [record["step"] for record in records(parts)] == [1, 2]
    progress = checkpoint.read_progress(checkpoint.latest(parts / "checkpoints"))
    assert progress.data["position"] == 2 * accumulate * first
    train_any(then, None, None, parts, resume=True)
    assert_same_curve(whole, parts)


def train_any(processes: int, config: Recipe | None, data: Path | None, exp: Path, **options: object) -> None:
    if processes > 1:
        train_together(config, data, exp, processes, **options)
    else:
        train(config, data, exp, console=Console(quiet=True), **options)  # type: ignore[arg-type]


def test_more_processes_than_batches_in_a_step_are_refused(corpus: Path, tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    train(recipe(epochs=1), corpus, exp, console=Console(quiet=True))
    (exp / "README.md").unlink()
    codes, errors = command_together(tmp_path, "train", "--resume", "--exp", exp)
    assert codes == [1, 1]
    assert errors.startswith("asr: expected at most 1 processes, as this run has 1 batches in each optimiser")
    assert errors.count("\n") == 1


def command_together(folder: Path, *arguments: object) -> tuple[list[int | None], str]:
    """Exit codes of `asr` in two processes, and what both of them wrote to stderr."""
    from asr.cli.app import main

    def work(rank: int) -> None:
        sys.argv = ["asr", *map(str, arguments)]
        sys.stdout, sys.stderr = (folder / f"out-{rank}").open("w"), (folder / f"err-{rank}").open("w")
        try:
            main()
        finally:
            sys.stdout.flush(), sys.stderr.flush()

    codes = together(work)
    return codes, "".join((folder / f"err-{rank}").read_text() for rank in range(2))


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_ends_all_with_one_line(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    from asr.train import recogniser

    def broken(*arguments: object, **options: object) -> object:
        if options["step"] == 2 and os.environ["RANK"] == str(rank):
            raise TrainingError("utterance x: something is wrong with it")
        return go_through(*arguments, **options)  # type: ignore[arg-type]

    go_through = recogniser.train_batch
    monkeypatch.setattr(recogniser, "train_batch", broken)
    config = tmp_path / "recipe.yaml"
    save_config(recipe(), config)
    arguments = ("train", config, "--data", corpus, "--exp", tmp_path / "exp")
    codes, errors = command_together(tmp_path, *arguments)
    assert (codes, errors) == ([1, 1], "asr: utterance x: something is wrong with it\n")
    assert (tmp_path / "out-1").read_text() == ""


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_the_death_of_a_process_is_one_line_for_the_others(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharding: str
) -> None:
    from asr.train import recogniser

    def dead(*arguments: object, **options: object) -> object:
        if options["step"] == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return go_through(*arguments, **options)  # type: ignore[arg-type]

    go_through = recogniser.train_batch
    monkeypatch.setattr(recogniser, "train_batch", dead)
    config = tmp_path / "recipe.yaml"
    save_config(recipe(sharding=sharding), config)
    arguments = ("train", config, "--data", corpus, "--exp", tmp_path / "exp")
    codes, errors = command_together(tmp_path, *arguments)
    assert codes == [1, -signal.SIGKILL]
    assert errors.startswith("asr: lost another process of this training")
    assert errors.count("\n") == 1


class Torchrun:
    """Two processes of `torchrun ... -m asr train`, saving after every step."""

    def __init__(self, corpus: Path, exp: Path, *options: str) -> None:
        config = exp.with_suffix(".yaml")
        save_config(LONG, config)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        train = ["-m", "asr", "train", str(config), "--data", str(corpus), "--exp", str(exp)]
        self.exp = exp
        self.process = subprocess.Popen(
            [*command, *options, *train], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def workers(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while len(records(self.exp)) < step:
            assert time.monotonic() < deadline
            assert self.process.poll() is None, self.process.stderr.read()  # type: ignore[union-attr]
            time.sleep(0.02)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, out, err


LONG = recipe(epochs=6, checkpoint_minutes=1e-9)


@pytest.fixture(scope="module")
def clean(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus without `odd`."""
    directory = tmp_path_factory.mktemp("clean")
    for name in ("dev.jsonl.gz", "corpus.yaml"):
        (directory / name).write_bytes((corpus / name).read_bytes())
    cuts = [cut for cut in read_cuts(corpus / "train.jsonl.gz") if cut.id != "odd"]
    write_cuts(cuts, directory / "train.jsonl.gz")
    return directory


def test_training_goes_on_after_a_process_was_killed(clean: Path, tmp_path: Path) -> None:
    """As if nothing had happened: the same losses in every step, the same weights to the last bit."""
    undisturbed, exp = tmp_path / "undisturbed", tmp_path / "exp"
    train_together(LONG, clean, undisturbed)
    run = Torchrun(clean, exp, "--max-restarts", "1")
    run.wait_for_step(3)
    before = len(records(exp))
    os.kill(run.workers()[0], signal.SIGKILL)  # the main one, which may be writing
    code, out, err = run.end()
    assert code == 0, err
    assert "resuming at step" in out
    assert len(records(undisturbed)) > before
    assert records(exp) == records(undisturbed)
    assert records(exp, "dev") == records(undisturbed, "dev")
    one, other = load_file(exp / "model.safetensors"), load_file(undisturbed / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not [path.name for path in (exp / "checkpoints").iterdir() if path.name.startswith(".")]


def test_a_restart_goes_on_with_its_own_run_only(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exp, config = tmp_path / "exp", recipe(epochs=1)
    train(config, clean, exp, console=Console(quiet=True))
    (exp / "README.md").unlink()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert train(config, clean, exp, console=Console(quiet=True)).finished
    with pytest.raises(TrainingError, match="there is a run in this directory"):
        train(recipe(epochs=2), clean, exp, console=Console(quiet=True))


def test_a_signal_to_the_launcher_saves_and_stops_all(clean: Path, tmp_path: Path) -> None:
    run = Torchrun(clean, tmp_path / "exp")
    run.wait_for_step(2)
    run.process.send_signal(signal.SIGTERM)
    _, out, err = run.end()
    step = len(records(run.exp))
    assert f"stopped at step {step}; saved" in out, err
    assert f"resume: torchrun --nproc-per-node 2 -m asr train --resume --exp {run.exp}" in out
    assert checkpoint.read_progress(checkpoint.latest(run.exp / "checkpoints")).step == step


def test_every_batch_of_an_epoch_is_dealt_once() -> None:
    for begin, end, per_step, world_size in [(0, 7, 4, 2), (3, 17, 5, 3), (0, 1, 2, 2), (2, 2, 4, 2)]:
        dealt = [[*Dealing(r, world_size, per_step, True).steps(begin, end)] for r in range(world_size)]
        steps = [[*Dealing(0, 1, per_step).steps(begin, end)]]
        assert all(len(own) == len(steps[0]) for own in dealt)
        for number, step in enumerate(steps[0]):
            turns = [own[number] for own in dealt]
            assert sorted(batch for turn in turns for batch in turn.own) == list(step.own)
            assert {turn.end for turn in turns} == {step.end}
            # In step, everyone goes through as many.
            assert len({len(turn.own) + (turn.borrowed is not None) for turn in turns}) == 1
            assert all(turn.borrowed in (None, step.own[0]) for turn in turns)


def test_gradients_are_summed_over_processes_and_missing_ones_count_as_zero() -> None:
    def work(rank: int) -> None:
        with started("cpu") as world:
            a, b, c = parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3,), (2, 2), (1,))]
            a.grad = torch.full((3,), 1.0 + rank)
            if rank == 1:
                b.grad = torch.full((2, 2), 5.0)
            sum_gradients(parameters, world)
            divide_gradients(parameters, 2)
            assert torch.equal(a.grad, torch.full((3,), 1.5))
            assert b.grad is not None
            assert torch.equal(b.grad, torch.full((2, 2), 2.5))
            assert c.grad is None

    assert together(work) == [0, 0]


def test_alone_nothing_of_torch_distributed_is_started() -> None:
    with started("cpu", {"WORLD_SIZE": "1"}) as world:
        assert world == World(torch.device("cpu"))
        assert not torch.distributed.is_initialized()
        assert world.gather("x") == ["x"]
        assert world.from_main(lambda: 3) == 3


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "found no RANK and no LOCAL_RANK and no MASTER_ADDR and no MASTER_PORT"),
        ({**dict.fromkeys(TORCHRUNS, "1"), "WORLD_SIZE": "two"}, "other than numbers"),
    ],
)
def test_an_environment_that_is_not_torchruns_is_one_line(environment: dict[str, str], message: str) -> None:
    with pytest.raises(TrainingError, match=message) as caught:
        read_world("cpu", environment)
    assert "torchrun --nproc-per-node" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("device", "message"), [("cuda", "4 processes and 2 GPUs"), ("cuda:1", "expected --device cuda")]
)
def test_processes_need_a_gpu_each(monkeypatch: pytest.MonkeyPatch, device: str, message: str) -> None:
    from asr.train import distributed

    monkeypatch.setattr(distributed, "check_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    environment = {**dict.fromkeys(TORCHRUNS, "1"), "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}
    with pytest.raises(TrainingError, match=message):
        read_world(device, environment)
    environment["LOCAL_WORLD_SIZE"] = "2"
    assert read_world("cuda", environment) == World(torch.device("cuda", 1), rank=1, size=4)
