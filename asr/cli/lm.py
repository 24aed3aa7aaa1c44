"""`asr lm`: train, mix and prune n-gram language models; how well these, or neural ones, predict a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from asr.lms.backoff import Backoff
    from asr.lms.perplexity import TextPrediction
    from asr.lms.train_ngram import TrainedNgram

app = typer.Typer(
    help="Language models: train n-grams from text, mix and prune them, measure perplexity.",
    no_args_is_help=True,
)

TextsArgument = Annotated[
    list[Path], typer.Argument(metavar="TEXT...", help="UTF-8 text, a sentence a line; .gz is unpacked.")
]
TokensOption = Annotated[
    Path | None,
    typer.Option(help="Model directory whose labels to count (letters, pieces); without it, words."),
]
NormalizationOption = Annotated[str, typer.Option(help="What is done to the text: none, basic or english.")]


@app.command("train")
def train_command(
    texts: TextsArgument,
    out: Annotated[Path, typer.Option(help="File to write, NAME.arpa or NAME.arpa.gz.")],
    order: Annotated[int, typer.Option(help="Longest n-gram, at most 16.")] = 3,
    tokens: TokensOption = None,
    normalization: NormalizationOption = "basic",
    prune: Annotated[
        str,
        typer.Option(
            help="Leave out n-grams seen so often or less, by order, the last for all above: 0,0,1."
        ),
    ] = "0",
    max_words: Annotated[
        int | None, typer.Option(help="Keep the so many most frequent words; others are <unk>.")
    ] = None,
) -> None:
    """Train an n-gram model by interpolated modified Kneser-Ney, as an ARPA file.

    To fuse it with a recogniser, count that model's labels: --tokens MODEL.
    """
    from asr.config import validate
    from asr.lms.kneser_ney import KneserNeyConfig
    from asr.lms.train_ngram import train_ngram

    options = {"order": order, "prune": _numbers(prune), "max_words": max_words}
    config = validate(options, KneserNeyConfig, "asr lm train")
    trained = train_ngram(texts, out, config, tokens=tokens, normalization=normalization)
    _print_trained(trained, out)


@app.command("perplexity")
def perplexity_command(
    lm: Annotated[Path, typer.Argument(help="ARPA file, maybe gzipped, or a neural model's directory.")],
    texts: TextsArgument,
    tokens: TokensOption = None,
    normalization: NormalizationOption = "basic",
    cache: Annotated[
        bool,
        typer.Option("--cache", help="Neural: what the text has said becomes likelier."),
    ] = False,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Neural: go on learning from sentences that were predicted.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Of --cache or --dynamic, e.g. dynamic.lr=0.1; repeatable."),
    ] = None,
    training_text: Annotated[
        Path | None, typer.Option(help="What the model learnt from, for --set dynamic.kind=rms.")
    ] = None,
) -> None:
    """Measure how well a language model predicts texts.

    OOV are tokens that an n-gram does not know. Bits per character compare models of words and of letters.
    """
    from asr.errors import ConfigError

    if lm.is_dir():
        if tokens is not None:
            raise ConfigError(f"--tokens: {lm} has its own tokenizer; leave the option out")
        found = _neural(lm, texts, normalization, cache, dynamic, settings or [], training_text)
    elif cache or dynamic or settings or training_text:
        raise ConfigError(
            f"{lm}: expected the directory of a neural language model with --cache, --dynamic, --set or "
            "--training-text, found none; leave them out"
        )
    else:
        from asr.lms.ngram import NgramModel
        from asr.lms.perplexity import text_perplexities

        found = text_perplexities(NgramModel.read(lm), texts, tokens=tokens, normalization=normalization)
    _print_predictions(found)


def _neural(
    directory: Path,
    texts: list[Path],
    normalization: str,
    cache: bool,
    dynamic: bool,
    settings: list[str],
    training_text: Path | None,
) -> list[TextPrediction]:
    from asr.config import override
    from asr.lm_directory import load_lm
    from asr.lms.cache import CacheConfig
    from asr.lms.dynamic import DynamicConfig
    from asr.lms.neural_texts import Adaptation, neural_text_perplexities

    asked = Adaptation(cache=CacheConfig() if cache else None, dynamic=DynamicConfig() if dynamic else None)
    adaptation = override(asked, settings)
    loaded = load_lm(directory)
    return neural_text_perplexities(
        loaded.network,
        loaded.tokenizer,
        texts,
        normalization,
        adaptation=adaptation,
        training_text=training_text,
    )


@app.command("mix")
def mix_command(
    models: Annotated[list[Path], typer.Argument(metavar="LM...", help="ARPA files, maybe gzipped.")],
    out: Annotated[Path, typer.Option(help="File to write, NAME.arpa or NAME.arpa.gz.")],
    weights: Annotated[str, typer.Option(help="Of the models, that sum to 1: 0.7,0.3; else all equal.")] = "",
    tune: Annotated[Path | None, typer.Option(help="Text whose best weights are taken.")] = None,
    max_words: Annotated[
        int | None, typer.Option(help="Keep the so many most probable words; others are <unk>.")
    ] = None,
    vocabulary: Annotated[Path | None, typer.Option(help="File of the words to keep, one a line.")] = None,
    normalization: NormalizationOption = "basic",
) -> None:
    """Mix n-gram models into one: the weighted sum of what they say, for all n-grams that any of them lists.

    Words that a model does not know share the probability of its <unk>.
    """
    from asr.config import validate
    from asr.lms.mix import MixConfig, mix_files

    options = {"weights": _decimals(weights), "max_words": max_words}
    config = validate(options, MixConfig, "asr lm mix")
    mixed = mix_files(models, out, config, tune=tune, vocabulary=vocabulary, normalization=normalization)
    print(f"{out}: {_sizes(mixed.model)}; weights {','.join(f'{weight:.4f}' for weight in mixed.weights)}")
    if mixed.tuned:
        tuned = mixed.tuned
        print(f"{tune}: {tuned.tokens:,} known tokens, perplexity of the sum itself {tuned.perplexity:.2f}")


@app.command("prune")
def prune_command(
    lm: Annotated[Path, typer.Argument(help="ARPA file, maybe gzipped.")],
    out: Annotated[Path, typer.Option(help="File to write, NAME.arpa or NAME.arpa.gz.")],
    threshold: Annotated[
        float | None, typer.Option(help="Drop what perplexity alone rises by a smaller share without: 1e-8.")
    ] = None,
    max_ngrams: Annotated[int | None, typer.Option(help="Keep so many, of all orders together.")] = None,
) -> None:
    """Prune an n-gram model: n-grams go that it hardly misses, by relative entropy."""
    from asr.config import validate
    from asr.lms.prune import PruneConfig, prune_file

    options = {"threshold": threshold, "max_ngrams": max_ngrams}
    model = prune_file(lm, out, validate(options, PruneConfig, "asr lm prune"))
    print(f"{out}: {_sizes(model)}")


def _sizes(model: Backoff) -> str:
    return ", ".join(f"{len(order.word):,} {n}-grams" for n, order in enumerate(model.orders, 1))


def _decimals(text: str) -> tuple[float, ...]:
    from asr.errors import ConfigError

    try:
        return tuple(float(number) for number in text.split(",")) if text else ()
    except ValueError:
        raise ConfigError(f"--weights {text}: expected numbers with commas, e.g. 0.7,0.3") from None


def _numbers(text: str) -> tuple[int, ...]:
    from asr.errors import ConfigError

    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ConfigError(f"--prune {text}: expected whole numbers with commas, e.g. 0,0,1") from None


def _print_trained(trained: TrainedNgram, out: Path) -> None:
    from asr.lms.kneser_ney import FALLBACK

    model = trained.model
    unknown = f", {model.unknown:,} of them as <unk>" if model.unknown else ""
    print(f"{out}: {model.sentences:,} sentences, {model.tokens:,} tokens{unknown}; {_sizes(model)}")
    if trained.left_out:
        print(f"left out: {trained.left_out:,} lines, the first {trained.first_left_out}")
    if model.fallbacks:
        orders = ", ".join(map(str, model.fallbacks))
        print(
            f"order {orders}: the counts gave no discounts (a small text, or few labels); "
            f"took {' '.join(f'{d:g}' for d in FALLBACK)}"
        )


def _print_predictions(found: list[TextPrediction]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from asr.lms.perplexity import Prediction

    table = Table("text", box=None)
    for title in ("sentences", "tokens", "OOV", "perplexity", "without OOV", "bits/character"):
        table.add_column(title, justify="right")
    rows = [(escape(str(each.path)), each.prediction) for each in found]
    if len(rows) > 1:
        rows.append(("all", sum((prediction for _, prediction in rows), Prediction())))
    for name, p in rows:
        table.add_row(
            name,
            f"{p.sentences:,}",
            f"{p.tokens:,}",
            f"{100 * p.unknown_rate:.2f} %",
            f"{p.perplexity:.2f}",
            f"{p.perplexity_known:.2f}",
            f"{p.bits_per_character:.3f}",
        )
    Console().print(table)
    for each in found:
        if each.left_out:
            print(f"left out: {each.left_out:,} lines, the first {each.first_left_out}")
