"""YAML to positioned plain values: every syntax error in words, and the bounds."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from shadowmesh.config.yaml import MAX_BYTES, parse
from shadowmesh.errors import ConfigError


def failure(content: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(content, "f.yaml")
    (line,) = caught.value.problems
    return line


def test_all_scalars_are_text_and_keep_their_positions() -> None:
    document = parse(b"\xef\xbb\xbfa: 007\r\nb:\r\n  - yes\r\n  - 'x'\r\nc: {d: ~, e: ''}\r\n", "f.yaml")
    assert document.data == {"a": "007", "b": ["yes", "x"], "c": {"d": None, "e": ""}}
    assert document.keys["c", "d"] == (5, 5)
    assert document.values["a",] == (1, 4)
    assert document.values["b", 1] == (4, 5)
    assert not document.problems


def test_duplicate_and_unreadable_keys_are_all_found() -> None:
    document = parse(b'a: 1\n? [x]\n: 2\na: 3\ns: {b: 1, b: 2}\n"\\x07": 1\n~: 1\n', "f.yaml")
    assert [(p.position, p.path, p.words) for p in document.problems] == [
        ((2, 3), (), "a key must be one word of plain text"),
        ((4, 1), ("a",), "given twice, the first time on line 1; keep one of them"),
        ((5, 11), ("s", "b"), "given twice, the first time on line 5; keep one of them"),
        ((6, 1), (), "a key must be one word of plain text"),
        ((7, 1), (), "a key must be one word of plain text"),
    ]
    assert document.data == {"a": "1", "s": {"b": "1"}}


INDENTATION = "does not fit the lines above; check the indentation"
EMPTY = "the file is empty; docs/configuration.md (man shadowmesh.yaml) shows what belongs into it"
NOT_UTF8 = "not UTF-8 text; save the file in UTF-8 (an editor may call it UTF-8 without BOM)"
SECOND = 'a second document begins here; a configuration is one (remove the "---")'
NO_ALIAS = 'anchors (&) and aliases (*) are not supported; a text with "*" needs the quotes'


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", f"f.yaml: {EMPTY}"),
        (b"# nothing\n", f"f.yaml: {EMPTY}"),
        (b"---\n", f"f.yaml: {EMPTY}"),
        (b"a\0b", "f.yaml: a binary file; a configuration is a text file in YAML"),
        (b"a: " + b"x" * MAX_BYTES, "f.yaml: larger than 128 KiB: this is no configuration file"),
        (b"a: 1\nb: \xff", f"f.yaml:2:4: {NOT_UTF8}"),
        ("a: 1".encode("utf-16"), f"f.yaml:1:1: {NOT_UTF8}"),
        (b"a: 1\nb: \x01", "f.yaml:2:4: a character that cannot be seen (U+0001) stands here; remove it"),
        (
            b"- a\n",
            'f.yaml:1:1: not a configuration: it must be made of lines such as "key: value", with a space '
            'behind the ":"',
        ),
        (
            b"a:1\n",
            'f.yaml:1:1: not a configuration: it must be made of lines such as "key: value", with a space '
            'behind the ":"',
        ),
        (b"a: 1\n\tb: 2\n", "f.yaml:2:1: a tab stands where YAML allows only spaces; replace it by spaces"),
        (b"a:\n\tb: 2\n", "f.yaml:2:1: a tab stands where YAML allows only spaces; replace it by spaces"),
        (b"a: @x\n", "f.yaml:1:4: no value can begin with this character; put the value in quotes"),
        (
            b"a: b: c\n",
            'f.yaml:1:5: a ":" is not expected here; check the indentation and, in the line above, the space '
            'behind the ":", or put the value in quotes',
        ),
        (b"a: b\nfoo\nc: d\n", 'f.yaml:2:1: this line has no ":" with a space behind it'),
        (b'a: b\nid:"desktop"\n', 'f.yaml:2:1: this line has no ":" with a space behind it'),
        (b'a: b\nc: "d\n', "f.yaml:2:4: the quote that opens here is never closed"),
        (b"a: [b\nc: d\n", 'f.yaml:1:4: the list that opens here lacks a "," or its closing "]"'),
        (b"a: {b\n", 'f.yaml:1:4: the section that opens here lacks a "," or its closing "}"'),
        (b" a: b\nc: d\n", f"f.yaml:2:1: {INDENTATION}"),
        (b"a: 'it's'\n", f"f.yaml:1:8: {INDENTATION}"),
        (b'a: "C:\\Docs"\n', 'f.yaml:1:8: after "\\" this means nothing in double quotes; use single quotes'),
        (b"a: *\n", 'f.yaml:1:5: "*" and "&" have a meaning in YAML; a text with "*" needs the quotes'),
        (b"a: &x b\n", f"f.yaml:1:4: {NO_ALIAS}"),
        (b"a: *x\n", f"f.yaml:1:4: {NO_ALIAS}"),
        (b"a: !!int 3\n", 'f.yaml:1:4: tags (!) are not supported; a text that begins with "!" needs quotes'),
        (b"a: !x!y 3\n", 'f.yaml:1:4: tags (!) are not supported; a text that begins with "!" needs quotes'),
        (b"a: 1\n---\nb: 1\n", f"f.yaml:2:1: {SECOND}"),
        (b"[" * 1000, "f.yaml:1:9: nested deeper than 8 levels; no configuration needs that"),
        (
            b"%YAML 3.0\n---\na: b",
            "f.yaml:1:1: not valid YAML: found incompatible YAML document (version 1.* is required)",
        ),
        (
            b'a: "\\U00110000"',
            "f.yaml:1:1: not valid YAML: it holds a number or an escape that is far too large",
        ),
    ],
)
def test_one_clear_line(content: bytes, line: str) -> None:
    assert failure(content) == line


def test_billion_laughs_is_refused_at_its_first_anchor() -> None:
    assert failure(b"a: &a [x, x]\nb: [*a, *a]\n").startswith("f.yaml:1:4: anchors")


def lines_run(content: bytes) -> int:
    """How many lines of Python `parse` runs for this file."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        parse(content, "f.yaml")
    except ConfigError:
        pass
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("lead", [b"", b"a: [", b'a: "'])
@pytest.mark.parametrize("unit", [b"a:\n", b"1,", b"? ", b"\\x41"])
def test_the_work_grows_no_faster_than_the_file(unit: bytes, lead: bytes) -> None:
    """Quadratic work, in 128 KiB, would take minutes."""
    small, large = (lines_run((lead + unit * size)[:size]) for size in (2048, 8192))
    assert large < 5 * small
