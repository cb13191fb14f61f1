"""How a config is read: YAML and ``key=value`` words by OmegaConf, over a dataclass of its keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dreamprm.config.interpolations import refuse_dollars, refuse_resolvers
from dreamprm.errors import UserError, shown, unknown_name
from dreamprm.writing import write_whole

Schema = TypeVar("Schema")
_SCALAR = (str, int, float)  # what YAML makes of a name


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML's would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As of any loader."""
        places: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key.value, str) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if key.value in places:
                raise yaml.YAMLError(
                    f"the key {key.value} stands in line {places[key.value]} and in line {line}"
                )
            places[key.value] = line
        return super().construct_mapping(node, deep)


def shipped_configs() -> list[str]:
    """Names of the configs that come with the package."""
    folder = resources.files("dreamprm.configs")
    return sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml"))


def shipped_runs() -> dict[str, str]:
    """The shipped configs that ``dreamprm train`` takes, each with its first line of comment."""
    texts = {name: _read(name)[0] for name in shipped_configs()}
    return {
        name: text.partition("\n")[0].removeprefix("#").strip()
        for name, text in texts.items()
        if "steps" in _values(text, name)  # which every run must say
    }


def read_config(
    config: str,
    overrides: list[str],
    schema: type[Schema],
    check: Callable[[Any, str], None],
) -> Schema:
    """Reads a config and checks every value of it.

    Options in the file are of what it names: where a word gives ``weighting`` another value, the
    file's ``weighting_options`` are left out, and so with all that has options.

    Args:
        config: a path, or the name of a shipped config.
        overrides: ``key=value``, dots for what is nested.
        schema: the dataclass whose fields are the keys.
        check: refuses values out of their range; takes the config and its name for messages.

    Raises:
        UserError: the file is missing, or a key is not known, or a value is of the wrong type or
            out of its range; the message names file, key, what was found and what was expected.
    """
    text, where = _read(config)
    found = _values(text, where)
    merged = OmegaConf.structured(schema)
    found = _as_schema(found, schema, where)
    refuse_resolvers(found, where)
    merged = _merge(merged, OmegaConf.create(found), where)
    _leave_options(merged, overrides)
    for override in overrides:
        _key, equals, _ = override.partition("=")
        if not equals:
            raise UserError(f"{override!r} is not of the form key=value")
        change = _as_schema(OmegaConf.to_container(_dotlist(override)), schema, f"{override!r}")
        merged = _merge(merged, OmegaConf.create(change), f"{override!r}")
    merged = _resolved(merged, schema, where, overrides)
    refuse_missing(merged, where)
    result = OmegaConf.to_object(merged)
    assert isinstance(result, schema)
    check(result, where)
    return result


def refuse_missing(config: Any, where: str) -> None:
    """Refuses a config in which a key that has no default has no value.

    Raises:
        UserError: names the keys.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{where} gives no value for {', '.join(missing)}")


def read_keys(config: str, overrides: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
    """What a config and ``key=value`` words give for some keys of its top level, if anything.

    Raises:
        UserError: the file or a word cannot be read.
    """
    found = _values(*_read(config))
    for override in overrides:
        if override.partition("=")[0] in keys:
            found |= OmegaConf.to_container(_dotlist(override))  # type: ignore[arg-type]
    return {key: found[key] for key in keys if key in found}


def read_options(words: list[str]) -> dict[str, Any]:
    """``key=value`` words as a dict, values read as in YAML.

    Raises:
        UserError: a word cannot be read so.
    """
    return {
        str(key): value
        for word in words
        for key, value in (OmegaConf.to_container(_dotlist(word)) or {}).items()  # type: ignore[union-attr]
    }


def read_part(values: Mapping[str, Any], schema: type, where: str) -> Any:
    """One section of a config, as its schema.

    Args:
        values: of its keys.
        schema: the dataclass of the section.
        where: it stands, for messages.

    Raises:
        UserError: a key or a value is not one of the schema's.
    """
    found = _as_schema(values, schema, where)
    return OmegaConf.to_object(_merge(OmegaConf.structured(schema), found, where))


def config_values(config: Any) -> dict[str, Any]:
    """The keys and values of a config, with what is nested as dicts and lists."""
    return OmegaConf.to_container(OmegaConf.structured(config))  # type: ignore[return-value]


def save_config(config: Any, path: Path) -> None:
    """Writes a config with every value resolved, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    write_whole(path, [config_text(config)])


def config_text(config: Any) -> str:
    """A config as YAML, without the end of its last line."""
    return OmegaConf.to_yaml(OmegaConf.structured(config)).removesuffix("\n")


def read_values(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file as they are written.

    Raises:
        UserError: it cannot be read, or is no UTF-8, no YAML or no mapping.
    """
    return _values(_text(path), str(path))


def is_config(word: str) -> bool:
    """Whether a word names a config: a file, what ends as one, or a shipped one."""
    return _is_file(word) or word in shipped_configs()


def _is_file(config: str) -> bool:
    return Path(config).suffix in (".yaml", ".yml") or Path(config).is_file()


def _read(config: str) -> tuple[str, str]:
    if _is_file(config):
        if not Path(config).is_file():
            raise UserError(f"there is no config file {config}")
        return _text(Path(config)), config
    if config not in shipped_configs():
        raise UserError(unknown_name("config", config, shipped_configs()))
    return (resources.files("dreamprm.configs") / f"{config}.yaml").read_text(), config


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _values(text: str, where: str) -> dict[str, Any]:
    try:
        found = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # the latter for a date such as 2026-13-01
        raise UserError(f"{where} is not YAML: {error}") from error
    if found is None:
        raise UserError(f"{where} is empty, expected keys and values")
    if not isinstance(found, dict):
        raise UserError(f"{where} holds {type(found).__name__}, expected keys and values")
    return found


def _dotlist(override: str) -> Any:
    try:
        found = OmegaConf.from_dotlist([override])
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(f"{override!r} cannot be read: {_first_line(error)}") from error
    refuse_resolvers(OmegaConf.to_container(found), f"{override!r}")
    return found


def _resolved(config: Any, schema: type, where: str, overrides: Sequence[str]) -> Any:
    """The config with the value of every ``${key}`` in its place."""
    try:
        found = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        given = [f"{word!r}" for word in overrides if key and word.startswith(key)]
        at = f"{[where, *given][-1]}: {key}".removesuffix(": ")
        raise UserError(f"{at}: {_first_line(error)[:200]}") from error
    refuse_dollars(found, where)
    return _merge(OmegaConf.structured(schema), found, where)


def _leave_options(config: Any, overrides: Sequence[str]) -> None:
    """Takes out the options of what the words replace; a solver keeps its own with any product."""
    for override in overrides:
        key, _, value = override.partition("=")
        before = config.get(key) if f"{key}_options" in config else None
        if before is not None and value.partition("+")[0] != before.partition("+")[0]:
            config[f"{key}_options"] = {}


def _merge(base: Any, change: Any, where: str) -> Any:
    try:
        return OmegaConf.merge(base, change)
    except (OmegaConfBaseException, TypeError) as error:  # the latter for a list for a mapping
        key = getattr(error, "full_key", None)
        at = f" at {key}" if key else ""
        raise UserError(f"{where}{at}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _as_schema(found: Any, schema: type, where: str, prefix: str = "") -> dict[str, Any]:
    """The values under the schema's keys, a single string in the place of a list as a list of one.

    Raises:
        UserError: a key does not exist, the message having the nearest right one; or a value is no
            list, or no keys and values, where the schema has those.
    """
    known = {f.name: f.default_factory for f in fields(schema)}
    result = {}
    for key, value in found.items():
        if key not in known:
            full = [prefix + name for name in known]
            raise UserError(f"{where}: " + unknown_name("key", f"{prefix}{key}", full))
        kind = known[key]
        reference = isinstance(value, str) and re.fullmatch(r"\$\{[^{}]*\}", value)
        if kind is list and not reference:
            value = [value] if isinstance(value, str) else value
            if not isinstance(value, list) or not all(isinstance(v, _SCALAR) for v in value):
                raise _wrong_kind(where, prefix + key, value, "a name or a list of names")
        elif isinstance(kind, type) and kind is not list and not reference:
            if not isinstance(value, dict):
                raise _wrong_kind(where, prefix + key, value, "keys and values")
            if is_dataclass(kind):
                value = _as_schema(value, kind, where, f"{prefix}{key}.")
        result[key] = value
    return result


def _wrong_kind(where: str, key: str, value: Any, expected: str) -> UserError:
    found = "empty" if value is None else shown(value)
    return UserError(f"{where}: {key} is {found}, expected {expected}")
