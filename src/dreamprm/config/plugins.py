"""Modules that a config names, imported when it is read."""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from dreamprm.errors import UserError, shown, unknown_name


def load_plugins(names: Any, folder: Path = Path()) -> None:
    """Imports modules for what they register: methods, weightings, meta losses, readouts, formats.

    Args:
        names: of modules, or paths of .py files; one, or a list of them.
        folder: that relative paths are taken from, before the working directory.

    Raises:
        UserError: one cannot be imported.
    """
    for name in [names] if isinstance(names, str) else names:
        load_module(name, "plugins", folder)


def load_module(name: Any, key: str, folder: Path, known: Sequence[str] = ()) -> ModuleType:
    """Imports a module.

    Args:
        name: of a module, or the path of a .py file; whatever a config has there.
        key: of the config, for messages.
        folder: that relative paths are taken from, before the working directory.
        known: names that would have been right, for the message.

    Raises:
        UserError: it cannot be imported.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"{key} is {shown(name)}, expected the name of a module or a .py file")
    if name.endswith(".py"):
        return _load_file(Path(absolute(name, folder)), key)
    beside = str(folder.resolve())
    if beside not in sys.path:
        sys.path.append(beside)  # after all that is installed
    try:
        there = find_spec(name) is not None
    except (ImportError, ValueError):
        there = False
    if not there:
        also = f"; or {unknown_name('task', name, known)}" if known else ""
        raise UserError(
            f"{key}: there is no module {name!r}, nor is it the path of a .py file{also}"
        )
    try:
        return import_module(name)
    except Exception as error:
        raise _failed(name, key, error) from error


def _load_file(path: Path, key: str) -> ModuleType:
    if not path.is_file():
        raise UserError(f"{key}: there is no file {path}")
    # The same file is the same module, however often it is named.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _failed(str(path), key, error) from error
    return module


def _failed(name: str, key: str, error: Exception) -> UserError:
    """Says where in the user's code an import failed."""
    if isinstance(error, UserError):
        return UserError(f"{key} {name}: {error}")
    if isinstance(error, SyntaxError):
        at = f"{error.filename}:{error.lineno}"
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{frame.filename}:{frame.lineno}"
    return UserError(f"{key} {name} cannot be imported: {at}: {type(error).__name__}: {error}")


def absolute(name: str, folder: Path) -> str:
    """A path of a .py file whole; from the folder, or where it is not there, from here."""
    if not name.endswith(".py"):
        return name
    beside = folder / name
    return str((beside if beside.is_file() else Path(name)).resolve())
