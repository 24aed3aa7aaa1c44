"""Every mixer streams, has gradients everywhere, and is what its equations say; what is refused."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from asr import state as states
from asr.config import override
from asr.encoders import RecurrentEncoder, RecurrentEncoderConfig, build_encoder
from asr.encoders.mixers import Mixer, mixer_config, mixers
from asr.errors import ConfigError, StreamingError
from asr.transducer import TransducerConfig

DIM = 16
# A line for every mixer, and one for each of its options that changes what is computed.
MIXERS: dict[str, dict[str, Any]] = {
    "min_gru": {"kind": "min_gru"},
    "min_gru-wide": {"kind": "min_gru", "expansion": 1.5},
    "lru": {"kind": "lru"},
    "min_lstm": {"kind": "min_lstm"},
    "min_lstm-wide": {"kind": "min_lstm", "expansion": 1.5},
    "hgrn": {"kind": "hgrn"},
    "hgrn-wide": {"kind": "hgrn", "expansion": 1.5},
    "hgrn-real": {"kind": "hgrn", "complex_valued": False},
    "hgrn-unbounded": {"kind": "hgrn", "lower_bound": False},
    "rg_lru": {"kind": "rg_lru"},
    "rg_lru-narrow": {"kind": "rg_lru", "expansion": 0.5},
    "rg_lru-kernel": {"kind": "rg_lru", "kernel": 7},
    "local_attention": {"kind": "local_attention"},
    "local_attention-short": {"kind": "local_attention", "window": 5},
    "local_attention-one": {"kind": "local_attention", "window": 1, "heads": 2},
    "local_attention-keys": {"kind": "local_attention", "window": 7, "key_heads": 2},
    "local_attention-all-keys": {"kind": "local_attention", "window": 7, "key_heads": 4},
    "gateloop": {"kind": "gateloop"},
    "gateloop-wide": {"kind": "gateloop", "expansion": 1.5},
    "aaren": {"kind": "aaren"},
    "aaren-heads": {"kind": "aaren", "heads": 2},
    "lstm": {"kind": "lstm"},
    "lstm-heads-peepholes": {"kind": "lstm", "heads": 2, "peepholes": True, "expansion": 1.5},
    "lstm-coupled": {"kind": "lstm", "coupled": True},
    "lstm-gate-recurrence": {"kind": "lstm", "gate_recurrence": True},
    "lstm-no-gates": {"kind": "lstm", "input_gate": False, "output_gate": False},
    "lstm-no-forgetting": {"kind": "lstm", "forget_gate": False},
    "lstm-no-activations": {"kind": "lstm", "input_activation": False, "output_activation": False},
    "gru": {"kind": "gru"},
    "gru-heads": {"kind": "gru", "heads": 4},
    "slstm": {"kind": "slstm"},
    "slstm-exponential": {"kind": "slstm", "exponential_forget": True, "heads": 2, "kernel": 1},
    "retention": {"kind": "retention"},
    "retention-wide": {"kind": "retention", "expansion": 2},
    "retention-memories": {"kind": "retention", "shortest": 2, "longest": 4000},
    "hgrn2": {"kind": "hgrn2"},
    "hgrn2-unbounded": {"kind": "hgrn2", "heads": 2, "lower_bound": 0},
    "rwkv": {"kind": "rwkv"},
    "rwkv-ranks": {"kind": "rwkv", "heads": 2, "rank": 3, "decay_rank": 5},
    "mamba2": {"kind": "mamba2"},
    "mamba2-small": {"kind": "mamba2", "heads": 2, "expansion": 1, "states": 5, "kernel": 1},
    "delta_product": {"kind": "delta_product"},
    "delta_product-one": {"kind": "delta_product", "steps": 1},
    "delta_product-positive": {"kind": "delta_product", "steps": 3, "negative_eigenvalues": False},
    "delta_product-no_decay": {"kind": "delta_product", "decay": False},
    "delta_product-no_kernel": {"kind": "delta_product", "kernel": 0},
}


@pytest.fixture(params=MIXERS)
def mixer(request: pytest.FixtureRequest) -> Mixer:
    torch.manual_seed(0)
    settings = MIXERS[request.param]
    return mixer_config(settings["kind"]).model_validate(settings).build(DIM).eval()


def begun(mixer: Mixer, batch: int, dtype: torch.dtype = torch.float32) -> Any:
    return mixer.initial_state(batch, torch.device("cpu"), dtype)


def test_no_mixer_is_missing() -> None:
    assert {settings["kind"] for settings in MIXERS.values()} == set(mixers())


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_pieces_give_the_whole(mixer: Mixer, seed: int) -> None:
    """A batch of streams, each fed as much as it likes, at times nothing."""
    rng, lengths = random.Random(seed), [23, 7, 40]
    x = torch.randn(3, 40, DIM, generator=torch.Generator().manual_seed(seed))
    whole = mixer(x, None, begun(mixer, 3)).y
    state, at, parts = begun(mixer, 3), [0, 0, 0], [[], [], []]
    size = states.bytes_per_stream(state)
    while at != lengths:
        fed = [
            min(rng.choice([0, 1, 2, 9]), length - start) for start, length in zip(at, lengths, strict=True)
        ]
        piece = torch.randn(3, max(fed), DIM)
        for row, (start, count) in enumerate(zip(at, fed, strict=True)):
            piece[row, :count] = x[row, start : start + count]
        y, state = mixer(piece, torch.tensor(fed), state)
        assert y.shape == piece.shape
        assert states.bytes_per_stream(state) == size
        assert sum(leaf.untyped_storage().nbytes() for leaf in states.leaves(state)) == 3 * size
        for row, count in enumerate(fed):
            parts[row].append(y[row, :count])
            at[row] += count
    for row, length in enumerate(lengths):
        torch.testing.assert_close(torch.cat(parts[row]), whole[row, :length], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_whole_piece_leaves_no_more_behind(mixer: Mixer) -> None:
    """Nor is the piece kept by a view of its end."""
    _, state = mixer(torch.randn(2, 50, DIM), None, begun(mixer, 2))
    held = sum(leaf.untyped_storage().nbytes() for leaf in states.leaves(state))
    assert held == 2 * states.bytes_per_stream(begun(mixer, 2))


@torch.no_grad()
def test_what_lies_beyond_the_lengths_does_no_harm(mixer: Mixer) -> None:
    """The next layer multiplies it, if only by nothing: it has to be finite."""
    lengths = torch.tensor([9, 0, 4])
    assert bool(mixer(torch.randn(3, 9, DIM), lengths, begun(mixer, 3)).y.isfinite().all())


def test_gradients_reach_every_parameter(mixer: Mixer) -> None:
    x = torch.randn(2, 12, DIM, requires_grad=True)
    mixer(x, None, begun(mixer, 2)).y.square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name
        if name.endswith(("bias", "peepholes")):
            assert parameter.dim() == 1, f"{name} would be decayed"
    assert bool((x.grad.abs().sum(dim=(0, 2)) > 0).all())


@torch.no_grad()
def test_double_precision_stays_double(mixer: Mixer) -> None:
    mixer = mixer.double()
    y, state = mixer(torch.randn(1, 9, DIM, dtype=torch.float64), None, begun(mixer, 1, torch.float64))
    assert y.dtype == torch.float64
    assert all(leaf.dtype != torch.float32 for leaf in states.leaves(state))


@torch.no_grad()
def test_half_precision_is_near(mixer: Mixer) -> None:
    x = torch.randn(2, 60, DIM)
    exact = mixer(x, None, begun(mixer, 2)).y
    state = begun(mixer, 2)
    with torch.autocast("cpu", torch.bfloat16):
        near, after = mixer(x, None, state)
    dtypes = [[leaf.dtype for leaf in states.leaves(one)] for one in (state, after)]
    assert dtypes[0] == dtypes[1], "sessions that have begun could not be batched with new ones"
    assert float((near.float() - exact).abs().max()) < 0.05 * float(exact.abs().max()) + 0.02


@torch.no_grad()
def test_hours_of_audio_do_not_drift(mixer: Mixer) -> None:
    """Nothing grows without bound over 20,000 frames, in the state or in the output."""
    x = torch.randn(1, 20_000, DIM, generator=torch.Generator().manual_seed(0))
    y, state = mixer(x, None, begun(mixer, 1))
    early, late = (part.abs().max() for part in (y[:, 100:1000], y[:, -1000:]))
    assert float(late) < 3 * float(early)
    assert all(bool(leaf.isfinite().all()) for leaf in states.leaves(state))


@torch.no_grad()
def test_a_min_gru_that_remembers_long_does_so_in_half_precision() -> None:
    mixer = mixer_config("min_gru")().build(DIM)
    mixer.project.weight[:DIM] = 0
    mixer.project.bias[:DIM] = -7.0
    x = torch.randn(1, 10_000, DIM)
    _, exact = mixer(x, None, begun(mixer, 1))
    with torch.autocast("cpu", torch.bfloat16):
        _, near = mixer(x, None, begun(mixer, 1))
    torch.testing.assert_close(near, exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("exponential", [False, True])
@torch.no_grad()
def test_an_slstm_hears_on(exponential: bool) -> None:
    """A state that keeps more than all of itself would be what the first frames made of it."""
    mixer = mixer_config("slstm")(exponential_forget=exponential).build(DIM)
    x = torch.randn(1, 2000, DIM)
    other = torch.cat((x[:, :-20], torch.randn(1, 20, DIM)), dim=1)
    states = [mixer(signal, None, begun(mixer, 1)).state[1] for signal in (x, other)]
    content = [state.c / state.n for state in states]
    assert float((content[0] - content[1]).abs().max()) > 0.1 * float(content[0].abs().max())


@torch.no_grad()
def test_an_rg_lru_whose_gates_are_shut_hears_nothing() -> None:
    mixer = mixer_config("rg_lru")().build(DIM)
    mixer.gates.weight.zero_()
    mixer.gates.bias.fill_(-20.0)
    mixer.gates.bias[mixer.width :] = 20.0
    _, (_, h) = mixer(torch.randn(1, 5000, DIM), None, begun(mixer, 1))
    assert float(h.abs().max()) < 0.01


# -- The encoder around them -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", mixers())
@torch.no_grad()
def test_bidirectional_hears_both_sides_and_refuses_to_stream(kind: str) -> None:
    torch.manual_seed(0)
    config = RecurrentEncoderConfig(mixer={"kind": kind}, dim=16, layers=2, bidirectional=True)
    encoder = build_encoder(config, 6, 0.01).eval()
    x = torch.randn(2, 40, 6)
    y = encoder(x, torch.tensor([40, 20])).y
    changed = x.clone()
    changed[0, 39] += 5
    assert float((encoder(changed, torch.tensor([40, 20])).y[0, 0] - y[0, 0]).abs().max()) > 1e-6
    alone = encoder(x[1:, :20], torch.tensor([20])).y[0]
    torch.testing.assert_close(y[1, :5], alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(StreamingError, match="bidirectional and needs the whole utterance"):
        encoder.initial_state(1)


def test_layers_take_mixers_in_turn() -> None:
    others = ({"kind": "rg_lru"}, {"kind": "local_attention", "heads": 2})
    config = RecurrentEncoderConfig(mixer={"kind": "rg_lru"}, others=others, dim=16, layers=5)
    encoder = build_encoder(config, 6, 0.01)
    kinds = [type(layer.mixer).__name__ for layer in encoder.layers]
    assert kinds == ["RgLru", "RgLru", "LocalAttention", "RgLru", "RgLru"]
    assert RecurrentEncoderConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("kind", mixers())
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    x, lengths, found = torch.randn(2, 40, 6), torch.tensor([40, 25]), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        options = {"dim": 16, "layers": 2, "kernel": 3, "dropout": 0.2, "checkpointing": checkpointing}
        config = RecurrentEncoderConfig(mixer={"kind": kind}, **options)
        encoder = build_encoder(config, 6, 0.01).train()
        torch.manual_seed(1)
        encoder(x, lengths).y[:, :6].square().sum().backward()
        found.append([parameter.grad for parameter in encoder.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


def test_configurations_travel_as_plain_values() -> None:
    """Into YAML and back, with the settings of the mixer; another kind begins with its defaults."""
    config = TransducerConfig(encoder=RecurrentEncoderConfig(mixer={"kind": "lru", "largest": 0.99}))
    assert TransducerConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.model_dump(mode="json")["encoder"]["mixer"]["largest"] == 0.99
    other = override(config, ["encoder.mixer.kind=min_gru", "encoder.mixer.expansion=2"])
    assert isinstance(other.encoder, RecurrentEncoderConfig)
    assert other.encoder.mixer == mixer_config("min_gru")(expansion=2)
    assert isinstance(build_encoder(other.encoder, 6, 0.01), RecurrentEncoder)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("encoder.mixer.kind=mamba9", "expected a mixer among .*min_gru.*found 'mamba9'"),
        ("encoder.mixer.kind=base", "expected a mixer among"),
        ("encoder.mixer.kind=../lstm", "expected a mixer among"),
        ("encoder.mixer.expansion=-1", "expansion: Input should be greater than 0, found -1"),
        (
            "encoder.mixer={kind: lstm, coupled: true, forget_gate: false}",
            "coupled=True needs the input gate",
        ),
        ("encoder.mixer.speed=1", "speed: Extra inputs are not permitted"),
        ("encoder.mixer={kind: hgrn2, heads: 7}", "found 7 heads: set heads to 4 or 8"),
        ("encoder.mixer={kind: gru, heads: 7}", "found 7 heads: set heads to 4 or 8"),
        ("encoder.others=[{kind: retention, heads: 256}]", "found 256 heads: set heads to 128"),
        ("encoder.mixer={kind: lstm, expansion: 0.001}", r"expected a state of 1 channel .* 0\.0039 or more"),
        ("encoder.mixer={kind: lru, expansion: 0.001}", r"expected a state of 1 channel .* 0\.0039 or more"),
        ("encoder.others.0.kind=lru", r"'others' is a list, set all of it: --set encoder.others=\[...\]"),
        ("encoder.mixer={kind: mamba2, dt_max: .inf}", "dt_max: Input should be a finite number"),
    ],
)
def test_refused_settings(assignment: str, message: str) -> None:
    config = TransducerConfig(encoder=RecurrentEncoderConfig())
    with pytest.raises(ConfigError, match=message) as caught:
        override(config, [assignment])
    assert "\n" not in str(caught.value)


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="set lookahead to 0"):
        RecurrentEncoderConfig(bidirectional=True, lookahead=2)
    with pytest.raises(ValueError, match=r"expected smallest < largest, found 0\.9 and 0\.5"):
        mixer_config("lru")(largest=0.5)
    with pytest.raises(ValueError, match="expected a layer for each of 3 mixers, found 2: set layers"):
        RecurrentEncoderConfig(layers=2, others=({"kind": "lru"}, {"kind": "min_gru"}))
    with pytest.raises(ValueError, match="expected heads a multiple of key_heads, found 4 and 3"):
        mixer_config("local_attention")(key_heads=3)
    with pytest.raises(ValueError, match=r"expected shortest <= longest, found 64 and 2: swap them"):
        mixer_config("retention")(shortest=64, longest=2)
    with pytest.raises(ValueError, match=r"expected dt_min <= dt_max, found 1 and 0\.1: swap them"):
        mixer_config("mamba2")(dt_min=1)


@pytest.mark.parametrize(
    ("kind", "dim", "settings", "message"),
    [
        ("hgrn2", 16, {"heads": 3}, "the same width within 16 channels, found 3 heads: set heads to 2 or 4$"),
        ("rwkv", 16, {"heads": 17}, "within 16 channels, found 17 heads: set heads to 16$"),
        ("delta_product", 16, {"heads": 5}, "found 5 heads: set heads to 4 or 8$"),
        ("mamba2", 16, {"heads": 12}, "within 32 channels, found 12 heads: set heads to 8 or 16$"),
        ("retention", 16, {"heads": 16}, "an even width within 16 channels, found 16 heads: set heads to 8$"),
        (
            "retention",
            15,
            {"heads": 1},
            "an even width within 15 channels, found 1 heads: make the width a multiple of 2$",
        ),
        (
            "mamba2",
            16,
            {"expansion": 0.01},
            "within 0 channels, found 8 heads: make the width a multiple of 8$",
        ),
        ("local_attention", 16, {"heads": 16}, "an even width within 16 channels, found 16 heads: set heads"),
        ("aaren", 16, {"heads": 5}, "within 16 channels, found 5 heads: set heads to 4 or 8$"),
        ("gru", 16, {"heads": 5}, "within 16 channels, found 5 heads: set heads to 4 or 8$"),
        ("retention", 16, {"expansion": 0.6}, "within 10 channels, found 4 heads: set heads to 2 or 5$"),
    ],
)
def test_heads_that_do_not_divide(kind: str, dim: int, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixer_config(kind)(**settings).build(dim)
