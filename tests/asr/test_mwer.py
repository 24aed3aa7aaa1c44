"""Minimum word error rate training: its value and gradient, the lists it learns from, and that it works."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from asr.config import override
from asr.data.batch import Batch
from asr.encoders import ConformerEncoderConfig, EncoderConfig, LstmEncoderConfig
from asr.errors import ConfigError
from asr.joiner import JoinerConfig
from asr.losses import CtcLossConfig, LossConfig, MwerConfig, NBest, TransducerLossConfig, mwer_loss
from asr.losses.topology import TopologyConfig
from asr.predictors import StatelessPredictorConfig
from asr.search import BeamSearch
from asr.text.tokenizer import Tokenizer, TokenizerConfig
from asr.train.metrics import Stopwatch
from asr.train.n_best import evaluating, find_n_best
from asr.train.recipe import Recipe
from asr.train.step import train_batch
from asr.transducer import Transducer, TransducerConfig
from asr_kernels import rnnt_loss

BINS = 4
TOKENIZER = Tokenizer(TokenizerConfig(kind="char"), ("<blank>", "▁", "a", "b"))
VOCAB = TOKENIZER.vocab_size
TEXTS = ("ab a", "b ab b", "a")
LSTM = LstmEncoderConfig(hidden=12, layers=1, dropout=0.3)
TDT = TopologyConfig(name="tdt", durations=(0, 1, 2), sigma=0.05)


def network(
    encoder: EncoderConfig = LSTM, topology: TopologyConfig | None = None, sharp: float = 4, **mwer: Any
) -> Transducer:
    torch.manual_seed(3)
    transducer = TransducerLossConfig(weight=0.1, skip_below=0, topology=topology or TopologyConfig())
    mwer = {"weight": 1.0, "nbest": 6, "beam": 6, **mwer}
    config = TransducerConfig(
        encoder=encoder,
        predictor=StatelessPredictorConfig(dim=8, context=2, dropout=0.2),
        joiner=JoinerConfig(dim=8),
        loss=LossConfig(transducer=transducer, mwer=MwerConfig(**mwer)),
    )
    model = Transducer(config, BINS, VOCAB).train()
    with torch.no_grad():
        model.joiner.output.weight.mul_(sharp)
    return model


def batch(rows: slice = slice(None), views: int = 1) -> Batch:
    texts = TEXTS[rows]
    generator = torch.Generator().manual_seed(0)
    heard = torch.randn(views, len(TEXTS), 28, BINS, generator=generator)[:, rows].flatten(0, 1)
    labels = [TOKENIZER.encode(text) for text in texts]
    return Batch(
        ids=texts,
        features=heard,
        feature_lengths=torch.tensor([28, 20, 15][rows] * views),
        texts=texts,
        targets=torch.tensor([row + [0] * (7 - len(row)) for row in labels]),
        target_lengths=torch.tensor([len(row) for row in labels]),
        duration_s=1.0,
        seed=7,
    )


def lists_of(model: Transducer, heard: Batch) -> NBest:
    references = [TOKENIZER.encode(text) for text in heard.texts]
    inputs = heard.features, heard.feature_lengths, heard.texts, references
    return find_n_best(model, *inputs, TOKENIZER, autocast=torch.autocast("cpu", enabled=False))


def distance(a: list[str], b: list[str]) -> int:
    """Levenshtein's, by its definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))


def test_the_value_by_hand() -> None:
    """0.6 (0 - 1) + 0.4 (2 - 1); one hypothesis alone, none, and one without probability cost nothing."""
    log_probs = torch.tensor([[0.3, 0.2, 0.9], [0.5, 0.1, 0.2], [0.5, 0.5, 0.5], [0.25, 0.0, 0.75]]).log()
    errors = torch.tensor([[0.0, 2.0, 7.0], [3.0, 9.0, 9.0], [1.0, 2.0, 3.0], [4.0, 1.0, 0.0]])
    present = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]).bool()
    log_probs.requires_grad_()
    lists = NBest(torch.zeros(4, 3, 0), torch.zeros(4, 3), errors, present)
    losses = mwer_loss(log_probs, lists)
    assert losses.tolist() == pytest.approx([-0.2, 0.0, 0.0, 0.25 * 2 - 0.75 * 2])
    (gradient,) = torch.autograd.grad(losses.sum(), log_probs)
    # P (W - sum P W), with 0.8 and 1 expected errors.
    expected = [[0.6 * -0.8, 0.4 * 1.2, 0], [0] * 3, [0] * 3, [0.25 * 3, 0, 0.75 * -1]]
    torch.testing.assert_close(gradient, torch.tensor(expected))


@pytest.mark.parametrize(
    "topology", [None, TopologyConfig(name="monotonic"), TDT], ids=["rnnt", "mono", "tdt"]
)
def test_loss_and_gradient_by_one_hypothesis_at_a_time_and_finite_differences(
    topology: TopologyConfig | None,
) -> None:
    model = network(topology=topology).double().eval()
    frames = torch.randn(2, 5, model.encoder.output_dim, dtype=torch.float64)
    lengths, own = torch.tensor([5, 4]), (torch.tensor([[2, 1, 3], [3, 0, 0]]), torch.tensor([3, 1]))
    hypotheses = [[([2, 1, 3], 0), ([2, 3], 1), ([], 2)], [([2, 3], 1), ([3], 0)]]
    lists = NBest(
        torch.tensor([[[2, 1, 3], [2, 3, 9], [9, 9, 9]], [[2, 3, 9], [3, 9, 9], [9, 9, 9]]]),
        torch.tensor([[3, 2, 0], [2, 1, 0]]),
        torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 50.0]]),
        torch.tensor([[True] * 3, [True, True, False]]),
    )

    def by_hand(b: int) -> Tensor:
        scores = []
        for labels, _ in hypotheses[b]:
            targets = torch.tensor([labels], dtype=torch.int64).reshape(1, -1)
            logits = model.joiner(frames[b : b + 1, : lengths[b]], model.predictor.whole(targets))
            to = targets, lengths[b : b + 1], torch.tensor([len(labels)])
            scores.append(-rnnt_loss(logits, *to, topology=model.topology)[0])
        errors = torch.tensor([float(wrong) for _, wrong in hypotheses[b]])
        return (torch.stack(scores).softmax(0) * (errors - errors.mean())).sum()

    found = model.losses(frames, lengths, *own, n_best=lists)
    assert found.mwer is not None
    torch.testing.assert_close(found.mwer, torch.stack([by_hand(0), by_hand(1)]))
    alone = model.losses(frames, lengths, *own)
    assert alone.mwer is None
    torch.testing.assert_close(found.total, alone.total + found.mwer)

    head = [p for part in (model.predictor, model.joiner) for p in part.parameters()]
    gradients = torch.autograd.grad(found.mwer.sum(), head)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients)
    for parameter, gradient in zip(head, gradients, strict=True):
        for place in torch.randperm(parameter.numel())[:4].tolist():
            values = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.view(-1)[place] += step
                    mwer = model.losses(frames, lengths, *own, n_best=lists).mwer
                    parameter.view(-1)[place] -= step
                assert mwer is not None
                values.append(float(mwer.sum()))
            difference = (values[0] - values[1]) / 2e-5
            assert float(gradient.flatten()[place]) == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_options_of_the_transducer_loss_leave_the_probabilities_alone() -> None:
    """FastEmit and the delay penalty change that loss, and Viterbi; no probability of a hypothesis."""
    frames, lengths = torch.randn(1, 5, LSTM.hidden), torch.tensor([5])
    values = []
    for changes in ({}, {"fastemit": 1.0, "delay_penalty": 0.3, "criterion": "max", "kind": "full"}):
        model = network().eval()
        transducer = model.config.loss.transducer.model_copy(update=changes)
        loss = model.config.loss.model_copy(update={"transducer": transducer})
        model.config = model.config.model_copy(update={"loss": loss})
        targets = torch.tensor([[[2, 1, 3], [2, 3, 0]]])
        lists = NBest(targets, torch.tensor([[3, 2]]), torch.tensor([[0.0, 1.0]]), torch.ones(1, 2) > 0)
        mwer = model.losses(frames, lengths, targets[:, 0], torch.tensor([3]), n_best=lists).mwer
        assert mwer is not None
        head = list(model.joiner.parameters())
        values.append([mwer, *torch.autograd.grad(mwer.sum(), head)])
    torch.testing.assert_close(values[0], values[1])


def test_lists_are_of_the_beam_search_in_evaluation_mode_and_nothing_is_drawn_or_moved() -> None:
    conformer = ConformerEncoderConfig(dim=8, heads=2, layers=1, kernel=3, dropout=0.3)
    for encoder in (LSTM, conformer):
        model, heard = network(encoder), batch()
        model.joiner.eval()  # a part that is kept from training stays so
        modes = [module.training for module in model.modules()]
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        random = torch.get_rng_state()
        lists = lists_of(model, heard)
        assert torch.equal(torch.get_rng_state(), random)
        assert [module.training for module in model.modules()] == modes
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
        assert not any(x.requires_grad or x.is_inference() for x in lists)

        model.eval()
        with torch.no_grad():
            encoded = model.encode(heard.features, heard.feature_lengths)
        for b, text in enumerate(heard.texts):
            search = BeamSearch(model, 6)
            frames, length = encoded.y[b : b + 1], encoded.y_lengths[b : b + 1]
            found = search(frames, length, search.initial_state(1))
            expected = [
                [token.id for token in (*found.tokens[0], *h.tokens)] for h in search.n_best(found.state)[0]
            ]
            count = int(lists.present[b].sum())
            assert lists.present[b].tolist() == [n < count for n in range(lists.present.shape[1])]
            rows = zip(lists.targets[b, :count].tolist(), lists.target_lengths[b].tolist(), strict=False)
            assert [row[:n] for row, n in rows] == expected
            said = [TOKENIZER.decode(labels).split() for labels in expected]
            assert lists.errors[b, :count].tolist() == [distance(text.split(), words) for words in said]
            assert len(expected) > 1


def test_as_many_hypotheses_as_asked_for_and_the_reference_once() -> None:
    heard = batch()
    two, more = lists_of(network(nbest=2), heard), lists_of(network(nbest=2, include_reference=True), heard)
    assert two.present.sum(dim=1).tolist() == [2, 2, 2]
    for b, text in enumerate(heard.texts):
        reference = TOKENIZER.encode(text)
        rows = zip(more.targets[b].tolist(), more.target_lengths[b].tolist(), strict=True)
        there = [
            row[:n] for (row, n), is_there in zip(rows, more.present[b].tolist(), strict=True) if is_there
        ]
        assert there.count(reference) == 1
        assert more.errors[b, there.index(reference)] == 0
    everything = lists_of(network(nbest=64, beam=64, include_reference=True), heard)
    assert everything.present[2].sum() == lists_of(network(nbest=64, beam=64), heard).present[2].sum()


def go_through(model: Transducer, heard: Batch, **options: Any) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    options = {"precision": "float32", "clock": Stopwatch(), "tokenizer": TOKENIZER, **options}
    loss = train_batch(model, heard, **options).loss
    return loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_a_step_is_deterministic_and_its_gradient_that_of_the_losses_with_dropout() -> None:
    from asr.train.step import _seed

    model, heard = network(), batch()
    loss, gradients = go_through(model, heard)
    torch.manual_seed(99)
    again = go_through(model, heard)
    assert again[0] == loss
    assert all(torch.equal(a, b) for a, b in zip(gradients, again[1], strict=True))
    lists = lists_of(model, heard)
    _seed(torch.device("cpu"), 0, heard.seed)
    encoded = model.encode(heard.features, heard.feature_lengths)
    to = heard.targets, heard.target_lengths
    losses = model.losses(encoded.y, encoded.y_lengths, *to, n_best=lists)
    assert losses.mwer is not None
    assert losses.transducer is not None
    total = (0.1 * losses.transducer + losses.mwer).sum()
    assert loss == pytest.approx(float(total.detach()), rel=1e-6)
    expected = torch.autograd.grad(total, list(model.parameters()))
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_batches_add_up_views_are_averaged_and_bfloat16_runs() -> None:
    model = network(replace_dropout(LSTM))
    model.predictor.dropout.p = 0.0
    loss, gradients = go_through(model, batch())
    parts = [go_through(model, batch(slice(i, i + 1))) for i in range(3)]
    assert loss == pytest.approx(sum(part[0] for part in parts), rel=1e-5)
    for whole, *each in zip(gradients, *(part[1] for part in parts), strict=True):
        torch.testing.assert_close(whole, sum(each), rtol=1e-3, atol=1e-5)
    heard = batch()
    twice = replace(
        heard, features=heard.features.repeat(2, 1, 1), feature_lengths=heard.feature_lengths.repeat(2)
    )
    assert go_through(model, twice)[0] == pytest.approx(loss, rel=1e-5)
    half, gradients = go_through(model, heard, precision="bfloat16")
    assert half == pytest.approx(loss, rel=0.2)
    assert all(gradient.isfinite().all() for gradient in gradients)


def replace_dropout(encoder: LstmEncoderConfig) -> LstmEncoderConfig:
    return encoder.model_copy(update={"dropout": 0.0})


def test_before_the_transducer_joins_and_without_a_recording_nothing_is_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = network()
    transducer = model.config.loss.transducer.model_copy(update={"after_steps": 3})
    loss = model.config.loss.model_copy(update={"transducer": transducer})
    model.config = model.config.model_copy(update={"loss": loss})
    model.ctc = torch.nn.Linear(model.encoder.output_dim, VOCAB)
    searched = []

    def told(*arguments: Any, **options: Any) -> NBest:
        searched.append(arguments)
        return find_n_best(*arguments, **options)

    monkeypatch.setattr("asr.train.step.find_n_best", told)
    go_through(model, batch(), step=2)
    empty = replace(batch(slice(0, 1)), ids=(), texts=())
    go_through(model, empty, step=9, in_step=True)
    assert not searched
    go_through(model, batch(), step=3)
    assert len(searched) == 1


def test_steps_lower_the_expected_errors() -> None:
    """Of lists that are searched anew, by mwer alone: the errors weighted by the search's posteriors."""
    model, heard = network(replace_dropout(LSTM), nbest=4, beam=4, include_reference=True), batch()
    model.predictor.dropout.p = 0.0
    transducer = model.config.loss.transducer.model_copy(update={"weight": 1e-6})
    loss = model.config.loss.model_copy(update={"transducer": transducer})
    model.config = model.config.model_copy(update={"loss": loss})

    def expected_errors() -> float:
        lists = lists_of(model, heard)
        with evaluating(model), torch.no_grad():
            encoded = model.encode(heard.features, heard.feature_lengths)
            log_probs = model._log_probs(encoded.y, encoded.y_lengths, lists)
        return float((log_probs.softmax(1) * torch.where(lists.present, lists.errors, 0.0)).sum())

    optimizer, before = torch.optim.Adam(model.parameters(), lr=0.02), expected_errors()
    for _ in range(10):
        go_through(model, heard)
        optimizer.step()
    after = expected_errors()
    assert after < 0.8 * before, (before, after)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["loss.mwer.weight=1", "loss.transducer.weight=0", "loss.ctc.weight=1"],
            "transducer.weight above 0",
        ),
        (["loss.mwer.weight=1", "loss.mwer.nbest=8"], "beam 4 finds no 8 hypotheses"),
        (["loss.mwer.weight=-1"], "greater than or equal to 0"),
        (["loss.mwer.nbest=1"], "greater than or equal to 2"),
        (["loss.mwer.scale=1"], "scale"),
    ],
)
def test_what_cannot_be_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(TransducerConfig(), settings)


def test_off_by_default_and_not_with_a_network_in_parts() -> None:
    assert Recipe().network.loss.mwer.weight == 0
    settings = ["network.loss.mwer.weight=1", "training.sharding=fsdp2"]
    with pytest.raises(ConfigError, match=r"sharding=none, found fsdp2"):
        override(Recipe(), settings)
    with pytest.raises(ValidationError, match="a model without a predictor"):
        TransducerConfig(
            predictor=None, loss=LossConfig(mwer=MwerConfig(weight=1), ctc=CtcLossConfig(weight=1))
        )
    assert math.isfinite(override(Recipe(), settings[:1]).network.loss.mwer.weight)
