"""Typed configuration: frozen pydantic models, YAML in and out, dotted overrides.

Every part of the toolkit keeps its own `Config` subclass beside the code that it configures; a recipe is
a Python function that returns one. Unknown keys are refused. All errors are one-line `ConfigError`s that
name the file or the flag that mends them.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from asr.errors import ConfigError

MAX_YAML_BYTES = 1_000_000
"""A configuration is a page or two; anything larger is not one (and YAML aliases can explode)."""


class Config(BaseModel):
    """Base of all configurations: immutable; unknown keys, and numbers that are none, refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


C = TypeVar("C", bound=Config)


def load_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML mapping with the safe loader; raises ConfigError naming the file."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: expected a YAML file, found nothing there")
    if path.stat().st_size > MAX_YAML_BYTES:
        raise ConfigError(f"{path}: expected at most {MAX_YAML_BYTES} bytes of YAML, found more")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {_one_line(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(content).__name__}")
    return content


def load_config(path: Path | str, kind: type[C]) -> C:
    """Read and validate a configuration of type `kind` from a YAML file."""
    return validate(load_yaml(path), kind, source=str(path))


def save_config(config: Config, path: Path | str) -> None:
    """Write a configuration as YAML, aside and renamed, so that a crash leaves no half file."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_atomically(Path(path), text.encode())


def validate(values: dict[str, Any], kind: type[C], source: str) -> C:
    """Build `kind` from plain values; `source` (a file or flag) opens the error message."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _invalid(error, source, kind.__name__, values) from error


def override(config: C, assignments: Sequence[str], option: str = "--set") -> C:
    """Apply dotted overrides such as `optimizer.lr=1e-3`; values are read as YAML scalars or lists.

    A part of another `kind`, as in `network.encoder.kind=lstm`, begins with its defaults, and other settings
    are those of that kind, wherever among the assignments they stand. Raises ConfigError, which names the
    command line's `option`.
    """
    settings = [_setting(assignment, option) for assignment in assignments]
    for setting in sorted(settings, key=lambda each: len(each.parents)):
        if setting.name == "kind" and setting.parents:
            config = _of_kind(config, setting.parents, setting.value)
    values = config.model_dump(mode="json")
    for setting in settings:
        _apply(values, setting, option)
    return validate(values, type(config), source=option)


class _Setting(NamedTuple):
    text: str
    """As it was given."""
    parents: list[str]
    name: str
    value: Any


def _setting(assignment: str, option: str) -> _Setting:
    key, separator, text = assignment.partition("=")
    if not separator:
        raise ConfigError(f"{option} {assignment}: expected key=value, for example optimizer.lr=1e-3")
    *parents, name = key.strip().split(".")
    try:
        return _Setting(assignment, parents, name, _scalar(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"{option} {assignment}: cannot read the value: {_one_line(error)}") from error


def _of_kind(config: C, path: Sequence[str], kind: object) -> C:
    """`config` with defaults in the part at `path`, if there are parts of several kinds and it is of another.

    A `kind` that is a setting among others has one class for all its values, and nothing changes.
    """
    first, *rest = path
    part = getattr(config, first, None) if first in type(config).model_fields else None
    if not isinstance(part, Config):
        return config
    if rest:
        return config.model_copy(update={first: _of_kind(part, rest, kind)})
    if getattr(part, "kind", kind) != kind:
        field = type(config).model_fields[first]
        annotation: Any = Annotated[field.annotation, field]
        try:
            fresh = TypeAdapter[Any](annotation).validate_python({"kind": kind})
        except ValidationError:
            return config  # what is wrong with it is said when all is validated
        if type(fresh) is not type(part):
            return config.model_copy(update={first: fresh})
    return config


def _apply(values: dict[str, Any], setting: _Setting, option: str) -> None:
    node, key = values, ".".join((*setting.parents, setting.name))
    for parent in setting.parents:
        child = node.get(parent)
        if isinstance(child, list):
            whole = f"{key[: key.index(parent)]}{parent}=[...]"
            raise ConfigError(
                f"{option} {setting.text}: {parent!r} is a list, set all of it: {option} {whole}"
            )
        if not isinstance(child, dict):
            raise ConfigError(
                f"{option} {setting.text}: there is no section {parent!r} in this configuration"
            )
        node = child
    node[setting.name] = setting.value


def load_recipe(reference: str, kind: type[C]) -> C:
    """Return the configuration made by a recipe function, `FILE.py:FUNCTION`, or read from `FILE.yaml`."""
    if reference.endswith((".yaml", ".yml")):
        return load_config(reference, kind)
    file, separator, name = reference.rpartition(":")
    if not separator or not file.endswith(".py"):
        raise ConfigError(
            f"{reference}: expected FILE.yaml or FILE.py:FUNCTION, e.g. egs/digits/lstm.py:streaming"
        )
    if not Path(file).is_file():
        raise ConfigError(f"{reference}: there is no file {file}")
    functions = _recipe_functions(Path(file), reference)
    if name not in functions:
        raise ConfigError(
            f"{reference}: {file} has no function {name!r}; it has {', '.join(sorted(functions))}"
        )
    config = _guarded(functions[name], reference)
    if not isinstance(config, kind):
        raise ConfigError(f"{reference}: expected a {kind.__name__}, found a {type(config).__name__}")
    return config


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the new one."""
    with replacing(path) as stream:
        stream.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name when it is complete and on the disk: aside, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _recipe_functions(file: Path, reference: str) -> dict[str, Callable[[], object]]:
    name = f"recipe_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a recipe's own Config classes look their annotations up there
    with _siblings(file.parent):
        _guarded(partial(spec.loader.exec_module, module), reference)
    public = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    return {k: v for k, v in public.items() if inspect.isfunction(v) and v.__module__ == name}


@contextmanager
def _siblings(folder: Path) -> Iterator[None]:
    """Let a recipe import the files beside it, as scripts may; other folders have files of the same names."""
    before, place = set(sys.modules), str(folder.resolve())
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == Path(place):
                del sys.modules[name]


def _guarded(call: Callable[[], object], reference: str) -> object:
    """Run a recipe's code; whatever it raises becomes one line."""
    try:
        return call()
    except ConfigError:
        raise
    except ValidationError as error:
        raise _invalid(error, reference, "settings") from error
    except Exception as error:
        raise ConfigError(f"{reference}: {type(error).__name__}: {_one_line(error)}") from error


def _invalid(error: ValidationError, source: str, name: str, values: object = None) -> ConfigError:
    """The first of pydantic's complaints in one line."""
    first = error.errors()[0]
    where = list(_keys(first["loc"], values))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown setting; remove it or check its spelling"
    found = "" if first["type"] in {"missing", "value_error"} else f", found {first['input']!r}"
    if first["type"] == "union_tag_invalid":
        where.append("kind")
        message, found = f"expected {first['ctx']['expected_tags']}", f", found {first['ctx']['tag']!r}"
    return ConfigError(f"{source}: {'.'.join(where) or name}: {message}{_one_line(found)}{more}")


def _keys(location: Sequence[int | str], values: object) -> Iterator[str]:
    """The keys of a setting; among several kinds pydantic names the kind, too, which no user writes."""
    for part in location:
        if isinstance(values, dict) and part not in values and part == values.get("kind"):
            continue
        yield str(part)
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list | tuple) and isinstance(part, int) and part < len(values):
            values = values[part]


def _scalar(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 (no dot) as a string
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
