"""YAML text to plain values that keep their positions: `compose()` only, so nothing is ever constructed.

Every scalar stays text, for an all-digit hex key must not become a number; the models say what it means. An
empty plain scalar or `null` is None. Positions are 1-based (line, column). Size and nesting are bounded;
anchors, aliases and tags are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import yaml

from shadowmesh.errors import ConfigError

Path = tuple[str | int, ...]
"""Keys and list indexes from the root of a file to one value."""
Position = tuple[int, int]
KEY = "\0key"
"""Last part of a path that means the key itself, not its value; no readable key is written so."""

MAX_BYTES = 128 * 1024  # PyYAML composes this in about a second at worst; 2,000 pinned peers fit
MAX_DEPTH = 8  # the deepest key there is, network.routes[n].to, lies at 5

_NULL = "tag:yaml.org,2002:null"


class Problem(NamedTuple):
    """One mistake of a file; `words` is empty for an unknown key, whose message needs the models."""

    position: Position
    path: Path
    words: str


@dataclass
class Document:
    """A parsed file: nested dict, list, str and None, and where each of them stands."""

    data: dict[str, object] = field(default_factory=dict)
    keys: dict[Path, Position] = field(default_factory=dict)
    values: dict[Path, Position] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, path: Path, node: yaml.Node, words: str) -> None:
        """Note a problem at the place where `node` begins."""
        self.problems.append(Problem(_position(node.start_mark), path, words))


def parse(content: bytes, name: str) -> Document:
    """Parse one YAML file; `name` stands in the messages.

    Raises ConfigError with one line where the file cannot be read on; mistakes that leave the rest readable
    (duplicate keys, keys that are no text) are in `Document.problems`.
    """
    try:
        root = _Loader(_decode(content, name)).get_single_node()
    except yaml.reader.ReaderError as error:
        line, column = _count(_decode(content, name)[: error.position])
        _fail(
            name,
            line,
            column,
            f"a character that cannot be seen (U+{_code(error.character):04X}) stands here; remove it",
        )
    except yaml.MarkedYAMLError as error:
        line, column, words = _words(error)
        _fail(name, line, column, words)
    except (ValueError, OverflowError):  # PyYAML: "\U00110000" in double quotes, a %YAML line of 5000 digits
        _fail(name, 1, 1, "not valid YAML: it holds a number or an escape that is far too large")
    if root is None or root.tag == _NULL:
        where = "docs/configuration.md (man shadowmesh.yaml)"
        raise ConfigError([f"{name}: the file is empty; {where} shows what belongs into it"])
    if not isinstance(root, yaml.MappingNode):
        _fail(
            name,
            *_position(root.start_mark),
            'not a configuration: it must be made of lines such as "key: value", with a space behind the ":"',
        )
    document = Document()
    document.data = _mapping(document, (), root)
    return document


def _decode(content: bytes, name: str) -> str:
    if len(content) > MAX_BYTES:
        raise ConfigError([f"{name}: larger than {MAX_BYTES // 1024} KiB: this is no configuration file"])
    if b"\0" in content and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError([f"{name}: a binary file; a configuration is a text file in YAML"])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _count(content[: error.start].decode("utf-8", "replace"))
        _fail(
            name,
            line,
            column,
            "not UTF-8 text; save the file in UTF-8 (an editor may call it UTF-8 without BOM)",
        )


def _count(before: str) -> Position:
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def _position(mark: yaml.Mark) -> Position:
    return mark.line + 1, mark.column + 1


def _fail(name: str, line: int, column: int, words: str) -> NoReturn:
    raise ConfigError([f"{name}:{line}:{column}: {words}"]) from None


class _Loader(yaml.SafeLoader):
    """The composer is recursive and follows aliases, so both are bounded before it does."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise yaml.MarkedYAMLError(problem="anchor", problem_mark=event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem="tag", problem_mark=event.start_mark)
        if self.depth == MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="depth", problem_mark=event.start_mark)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)  # type: ignore[arg-type]
        self.depth -= 1
        return node


# How PyYAML's problem begins, and what we say.
_WORDS = {
    "anchor": 'anchors (&) and aliases (*) are not supported; a text with "*" needs the quotes',
    "expected alphabetic": '"*" and "&" have a meaning in YAML; a text with "*" needs the quotes',
    "tag": 'tags (!) are not supported; a text that begins with "!" needs quotes',
    "found undefined tag handle": 'tags (!) are not supported; a text that begins with "!" needs quotes',
    "found duplicate tag handle": "tags (!) are not supported; remove this line",
    "depth": f"nested deeper than {MAX_DEPTH} levels; no configuration needs that",
    "found character '\\t'": "a tab stands where YAML allows only spaces; replace it by spaces",
    "found character": "no value can begin with this character; put the value in quotes",
    "mapping values": 'a ":" is not expected here; check the indentation and, in the line above, the space '
    'behind the ":", or put the value in quotes',
    "could not find expected ':'": 'this line has no ":" with a space behind it',
    "found unexpected end of stream": "the quote that opens here is never closed",
    "found unexpected document separator": "the quote that opens here is never closed",
    "expected ',' or ']'": 'the list that opens here lacks a "," or its closing "]"',
    "expected ',' or '}'": 'the section that opens here lacks a "," or its closing "}"',
    "expected <block end>": "does not fit the lines above; check the indentation",
    "expected '<document start>'": "does not fit the lines above; check the indentation",
    "found unknown escape": 'after "\\" this means nothing in double quotes; use single quotes',
    "but found another document": 'a second document begins here; a configuration is one (remove the "---")',
}
_AT_CONTEXT = ("could not find", "found unexpected", "expected ','")  # the mistake is where the context began


def _words(error: yaml.MarkedYAMLError) -> tuple[int, int, str]:
    problem = str(error.problem).encode("ascii", "backslashreplace").decode()
    words = next(
        (w for start, w in _WORDS.items() if problem.startswith(start)), f"not valid YAML: {problem}"
    )
    at_context = problem.startswith(_AT_CONTEXT)
    mark = (error.context_mark if at_context else error.problem_mark) or error.problem_mark
    return (*(_position(mark) if mark else (1, 1)), words)


def _mapping(document: Document, path: Path, node: yaml.MappingNode) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == _NULL or not key.value.isprintable():
            document.add(path, key, "a key must be one word of plain text")
        elif key.value in found:
            first = document.keys[*path, key.value][0]
            document.add(
                (*path, key.value), key, f"given twice, the first time on line {first}; keep one of them"
            )
        else:
            below = (*path, key.value)
            document.keys[below] = _position(key.start_mark)
            found[key.value] = _value(document, below, value)
    return found


def _value(document: Document, path: Path, node: yaml.Node) -> object:
    document.values[path] = _position(node.start_mark)
    if isinstance(node, yaml.MappingNode):
        return _mapping(document, path, node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(document, (*path, i), item) for i, item in enumerate(node.value)]
    if node.tag == _NULL:
        return None
    return str(node.value)


def _code(character: str | bytes | int) -> int:
    return character if isinstance(character, int) else ord(character)
