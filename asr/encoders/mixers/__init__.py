"""Sequence mixers: what carries the past in a recurrent encoder, one file each; see README.md."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, ValidationError

from asr.encoders.mixers.base import Mixer, MixerConfig, MixerOutput


def mixers() -> list[str]:
    """Names of all mixers: the files of this folder."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"]


def mixer_config(kind: str) -> type[MixerConfig]:
    """The configuration class of the mixer of this name; raises ValueError naming those there are."""
    if kind not in mixers():
        raise ValueError(f"expected a mixer among {', '.join(mixers())}, found {kind!r}")
    config: type[MixerConfig] = import_module(f"{__name__}.{kind}").CONFIG
    return config


def _read(value: Any) -> Any:
    """Plain values as the configuration that their kind names."""
    if not isinstance(value, dict):
        return value
    kind = mixer_config(str(value.get("kind", "")))
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # two settings that do not go together, in words
            raise ValueError(first["msg"].removeprefix("Value error, ")) from error
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}, found {first['input']!r}") from error


AnyMixer = Annotated[SerializeAsAny[MixerConfig], BeforeValidator(_read)]
"""A field that holds the configuration of any mixer; a file is imported when its mixer is asked for."""

__all__ = ["AnyMixer", "Mixer", "MixerConfig", "MixerOutput", "mixer_config", "mixers"]
