"""Configuration files to models; every mistake is one line: `file:line:column: key: what is wrong`."""

from __future__ import annotations

import difflib
import os
import shlex
import stat
import typing
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Generic, TypeGuard, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from shadowmesh.config import client, relay
from shadowmesh.config.client import ClientConfig, DaemonConfig
from shadowmesh.config.relay import RelayConfig
from shadowmesh.config.values import NO_VALUE, Model, Problems, shown
from shadowmesh.config.yaml import KEY, MAX_BYTES, Document, Path, Problem, parse
from shadowmesh.errors import ConfigError

DEFAULT_RELAY_PATH = "/etc/shadowmesh/relay-config.yaml"
NO_FILE = "built-in defaults"
"""Where a relay's configuration is from that has no file."""
MAX_PROBLEMS = 50  # a file that is wrong all over does not scroll the first mistakes away
_MAX_NAMES = 8  # more names than these are no hint

# Words that other programs' configurations have for what ours call so.
_SYNONYMS = {
    **dict.fromkeys(("certificate", "crt"), "cert"),
    **dict.fromkeys(("private", "privkey"), "key"),
    **dict.fromkeys(("logs", "logging", "verbose", "debug"), "log"),
    **dict.fromkeys(("listen", "host", "interface"), "bind"),
    **dict.fromkeys(("ssl", "https"), "tls"),
    **dict.fromkeys(("websocket", "ws"), "relay"),
    "api": "auth",
}

T = TypeVar("T", bound=Model)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """A valid configuration, finished warning lines for people, and where it is from.

    cautions: what people are to know of a configuration like this one, with the places of this file.
    """

    config: T
    warnings: list[str]
    source: str
    cautions: Callable[[T], list[str]]


@dataclass(frozen=True, slots=True)
class _Kind(Generic[T]):
    """One of the two files: its model, the program that reads it, and the keys of later versions."""

    name: str
    program: str
    model: type[T]
    later: frozenset[str]

    def keys(self) -> dict[Path, list[str]]:
        """Key names of each section, by the path of the section; a list's index is left out of the path."""
        return _keys(self.model, ())


_RELAY = _Kind("relay", "shadowmesh-relay", RelayConfig, relay.LATER)
_CLIENT = _Kind("client", "shadowmesh-daemon", ClientConfig, client.LATER)


def load_relay_config(path: str | None) -> Loaded[RelayConfig]:
    """The relay's configuration; without a path that in /etc/shadowmesh, else the guide's values.

    Raises ConfigError with all problems.
    """
    if path is None:
        try:
            os.stat(DEFAULT_RELAY_PATH)
        except FileNotFoundError:
            config = RelayConfig()
            return Loaded(config, _cautions_without_a_file(config), NO_FILE, _cautions_without_a_file)
        except OSError:
            pass  # not ours to see: reading it gives the message
        path = DEFAULT_RELAY_PATH
    return parse_relay_config(_read(path)[0], path)


def _cautions_without_a_file(config: RelayConfig) -> list[str]:
    """The names of the guide, of which a file would be warned, are said by the first line."""
    return [
        f"no -config given and no {DEFAULT_RELAY_PATH}: running with the deployment guide's values",
        *(
            f"{NO_FILE}: {_dotted(path)}: {words.removeprefix(relay.BY_DEFAULT)}"
            for path, words in sorted(config.cautions())
            if path not in (("region",), ("server_name",))
        ),
    ]


def load_client_config(path: str) -> Loaded[ClientConfig]:
    """The daemon's configuration. Raises ConfigError with all problems."""
    content, mode = _read(path)
    return _warn_of_readers(parse_client_config(content, path), mode)


def load_daemon_section(path: str) -> DaemonConfig | None:
    """`daemon:` of a client's configuration, None without a valid one; all else may be wrong or hidden.

    For who only looks for the daemon of this host: the key of a service is shown to the service alone.
    """
    try:
        content, _ = _read(path)
        section = parse(content, path).data.get("daemon", {})
        return DaemonConfig.model_validate(section)
    except (ConfigError, ValidationError):
        return None


def parse_relay_config(content: bytes, name: str) -> Loaded[RelayConfig]:
    """Like `load_relay_config` for the bytes of a file; `name` stands in messages."""
    return _check(parse(content, name), _RELAY, name)


def parse_client_config(content: bytes, name: str) -> Loaded[ClientConfig]:
    """Like `load_client_config` for the bytes of a file; `name` stands in messages."""
    return _check(parse(content, name), _CLIENT, name)


def load_config(path: str) -> Loaded[RelayConfig] | Loaded[ClientConfig]:
    """A configuration of the kind that its top-level keys speak for. Raises ConfigError with all problems."""
    content, mode = _read(path)
    document = parse(content, path)
    relays, clients = (
        len(document.data.keys() & kind.model.model_fields.keys()) for kind in (_RELAY, _CLIENT)
    )
    if relays > clients:
        return _check(document, _RELAY, path)
    if clients > relays:
        return _warn_of_readers(_check(document, _CLIENT, path), mode)
    words = "by its keys neither a relay nor a client configuration; say which it is with --relay or --client"
    raise ConfigError([f"{path}: {words}"])


def _warn_of_readers(loaded: Loaded[ClientConfig], mode: int) -> Loaded[ClientConfig]:
    secrets = loaded.config.secrets()
    if os.name == "posix" and secrets and mode & (stat.S_IRGRP | stat.S_IROTH):
        what = "the network key" if secrets[0] == "encryption.key" else f"a secret ({secrets[0]})"
        loaded.warnings.append(
            f"{loaded.source}: holds {what} and others may read it (mode {stat.S_IMODE(mode):04o}); "
            f"mend it with: chmod 600 {shlex.quote(loaded.source)}"
        )
    return loaded


def _read(path: str) -> tuple[bytes, int]:
    """Content (at most one byte more than is allowed) and mode of a file."""
    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1), os.fstat(file.fileno()).st_mode
    except FileNotFoundError:
        words = "no such file"
    except IsADirectoryError:
        words = "a directory; give the file in it"
    except PermissionError:
        words = _no_permission(path)
    except (OSError, ValueError) as error:
        words = f"cannot be read: {error.strerror if isinstance(error, OSError) else error}"
    raise ConfigError([f"{path}: {words}"])


def _no_permission(path: str) -> str:
    """Whom the file or a directory above it keeps out, and how to let a service in, but not everybody."""
    if os.name != "posix":
        return "may not be read by this user"
    import grp
    import pwd

    place, what, mode = path, "may not read it", "g+r"
    for directory in reversed(PurePath(os.path.abspath(path)).parents):
        if not os.access(directory, os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            place, what, mode = str(directory), f"may not enter the directory {directory}", "g+x"
            break
    user, group = str(os.geteuid()), str(os.getegid())
    with suppress(KeyError):
        user = pwd.getpwuid(os.geteuid()).pw_name
        group = grp.getgrgid(os.getegid()).gr_name
    place = shlex.quote(place)
    return (
        f"the user {user} {what}; for a service: chgrp {group} {place} && chmod {mode} {place}; by hand: sudo"
    )


def _check(document: Document, kind: _Kind[T], name: str) -> Loaded[T]:
    other: _Kind[Any] = _CLIENT if kind.model is RelayConfig else _RELAY
    own_keys, other_keys = (document.data.keys() & k.model.model_fields.keys() for k in (kind, other))
    if other_keys and not own_keys:
        raise ConfigError(
            [f"{name}: a {other.name} configuration, for {other.program}; {kind.program} needs its own"]
        )
    problems = list(document.problems)
    try:
        config = kind.model.model_validate(_with_sections(document, kind.model))
    except ValidationError as error:
        for one in error.errors(include_url=False, include_input=False):
            problems += _problems(document, one["loc"], one["type"], one.get("ctx", {}), kind.model)
    if problems:
        problems.sort(key=lambda problem: problem.position)
        lines = [_line(name, problem, kind, other) for problem in problems[:MAX_PROBLEMS]]
        if len(problems) > MAX_PROBLEMS:
            lines.append(f"{name}: and {len(problems) - MAX_PROBLEMS} more")
        raise ConfigError(lines, _log_format(document))

    def cautions(config: T) -> list[str]:
        found = [_locate(document, path, words) for path, words in config.cautions()]
        return [_line(name, caution, kind, other) for caution in sorted(found)]

    return Loaded(config, cautions(config), name, cautions)


def _log_format(document: Document) -> str:
    try:
        return relay.as_log_format(document.data.get("log_format"))
    except ValueError:
        return "auto"


def _with_sections(document: Document, model: type[Model]) -> dict[str, object]:
    """The data with all sections there, so that a missing one is reported by the keys it lacks."""
    data = dict(document.data)
    for name, field in model.model_fields.items():
        optional = not _is_model(field.annotation)  # counts when its key is there, if only without values
        if data.get(name) is None and _section(model, name) and (name in data or not optional):
            data[name] = {}
    return data


def _is_model(annotation: object) -> TypeGuard[type[Model]]:
    return isinstance(annotation, type) and issubclass(annotation, Model)


_TYPES = {
    "model_type": 'must be a section, with lines such as "key: value" below it',
    "tuple_type": 'must be a list; write [ ] around its values, or each into a line that begins with "- "',
    "too_long": "has too many entries; at most {max_length} are allowed",
}


def _problems(
    document: Document, path: Path, kind: str, context: dict[str, Any], model: type[Model]
) -> list[Problem]:
    """One pydantic error of the given type as problems of the file."""
    if kind == "value_error":
        error = context["error"]
        words = str(error)
        if words == NO_VALUE and not _field(model, path).is_required():
            words += ", or remove the line"
        found = error.found if isinstance(error, Problems) else [(path, words)]
        return [_locate(document, *one) for one in found]
    if kind == "extra_forbidden":
        return [Problem(document.keys[path], path, "")]
    if kind == "missing":
        section = path[:-1]
        position = document.keys.get(section) or document.values.get(section, (1, 1))
        return [Problem(position, path, _missing(model, path))]
    if kind == "tuple_type" and _is_empty(document, path):
        return [_locate(document, path, "has no value; write a list, or remove the line")]
    return [_locate(document, path, _TYPES[kind].format_map(context))]


def _is_empty(document: Document, path: Path) -> bool:
    found: Any = document.data
    for part in path:
        found = found[part]
    return found is None


def _locate(document: Document, path: Path, words: str) -> Problem:
    if path[-1] == KEY:
        return Problem(document.keys[path[:-1]], path[:-1], words)
    while path not in document.values and isinstance(path[-1], int):
        path = path[:-1]  # one value stands where a list may
    return Problem(document.values.get(path, (1, 1)), path, words)


def _line(name: str, problem: Problem, kind: _Kind[Any], other: _Kind[Any]) -> str:
    (line, column), path, words = problem
    key = _dotted(path)
    return f"{name}:{line}:{column}: {key}{': ' if key else ''}{words or _unknown(path, kind, other)}"


def _dotted(path: Path) -> str:
    return "".join(
        f"[{part}]" if isinstance(part, int) else f".{shown(part)[1:-1]}" for part in path
    ).removeprefix(".")


def _unknown(path: Path, kind: _Kind[Any], other: _Kind[Any]) -> str:
    """What to say about a key that the model does not have."""
    if _dotted(path) in kind.later:
        return "is not built yet in this version; remove it"
    sections, name = kind.keys(), str(path[-1])
    section = tuple(part for part in path[:-1] if isinstance(part, str))
    here = sections[section]
    everywhere = {_dotted((*place, known)): known for place, names in sections.items() for known in names}
    if places := [place for place, known in everywhere.items() if known == name]:
        return f"unknown key here; it is known as {' and '.join(places)}"
    if name in other.model.model_fields and len(path) == 1:
        return f"unknown key; it belongs to the configuration of {other.program}"
    written = name[:64].lower().replace("-", "_").replace(" ", "_")
    near = _with_words(written, here) or _with_words(written, everywhere)
    if not near and not (near := difflib.get_close_matches(written, here, 1)):
        known = difflib.get_close_matches(written, everywhere.values(), 1, 0.75)
        near = [place for place in everywhere if everywhere[place] in known][:1]
    if near:
        *first, last = near
        return f"unknown key; did you mean {', '.join(first)}{' or ' if first else ''}{last}?"
    if len(here) > _MAX_NAMES:
        return "unknown key; remove it, or see docs/configuration.md (man shadowmesh.yaml) for what there is"
    return f"unknown key; known here are {', '.join(here)}"


def _with_words(written: str, names: Iterable[str]) -> list[str]:
    """The few of these names that have all words of what is written."""
    words = written.split("_")
    found = []
    for name in names:
        known = name.replace(".", "_").split("_")
        if all(word in known or _SYNONYMS.get(word) in known for word in words):
            found.append(name)
    return found if len(found) <= _MAX_NAMES else []


def _section(model: type[Model], name: str) -> type[Model] | None:
    """The model of a section or of a list's items; None for a value."""
    annotation = model.model_fields[name].annotation
    candidates = [annotation, *typing.get_args(annotation)]
    return next((one for one in candidates if _is_model(one)), None)


def _keys(model: type[Model], path: Path) -> dict[Path, list[str]]:
    found: dict[Path, list[str]] = {path: list(model.model_fields)}
    for name in model.model_fields:
        if below := _section(model, name):
            found |= _keys(below, (*path, name))
    return found


def _field(model: type[Model], path: Path) -> FieldInfo:
    *sections, name = (part for part in path if isinstance(part, str))
    for section in sections:
        model = _section(model, section) or model
    return model.model_fields[name]


def _missing(model: type[Model], path: Path) -> str:
    *_, section, name = (part for part in path if isinstance(part, str))
    example = (_field(model, path).examples or [""])[0]
    return f'is missing; write it under "{section}:", such as {name}: "{example}"'
