"""Parsers of single values: what they take, and their words for what they refuse."""

from __future__ import annotations

import pytest

from shadowmesh.config.values import (
    absolute,
    choice,
    flag,
    flag_only,
    hex32,
    label,
    level,
    shown,
    text,
    whole,
)


@pytest.mark.parametrize("word", ["true", "True", "TRUE", "yes", "on", True])
def test_flag_true(word: object) -> None:
    assert flag(word) is True


@pytest.mark.parametrize("word", ["false", "No", "OFF", False])
def test_flag_false(word: object) -> None:
    assert flag(word) is False


@pytest.mark.parametrize("word", ["", "y", "1", "nope"])
def test_flag_refuses(word: str) -> None:
    with pytest.raises(ValueError, match=rf'^"{word}" is neither true nor false; write one of them$'):
        flag(word)


def test_flag_only_refuses_the_other_setting_in_words() -> None:
    assert flag_only(False, "x")("off") is False
    with pytest.raises(ValueError, match=r"^x is not built yet; write false$"):
        flag_only(False, "x is not built yet")("on")


def test_whole_is_plain_decimal() -> None:
    assert [whole(0, 99)(v) for v in ("0", "99", 7)] == [0, 99, 7]


@pytest.mark.parametrize(
    "value", ["", "1_0", "0x1", "010", "1:30", "1.0", "+1", " 1", "1e1", "\u0661", "9" * 5000]
)
def test_whole_refuses_other_spellings(value: str) -> None:
    with pytest.raises(ValueError, match=r"is not a whole number; write one from 0 to 99$"):
        whole(0, 99)(value)


@pytest.mark.parametrize("value", ["-1", "100", "999999999999999999"])
def test_whole_refuses_what_is_out_of_range(value: str) -> None:
    with pytest.raises(ValueError, match=rf"^{value} is out of range; write a number from 0 to 99$"):
        whole(0, 99)(value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "has no value; write one"),
        ([], 'must be one value, not a list; write it without "[" and "-"'),
        ({}, 'must be one value, not a section; no "key: value" belongs here'),
        ("a\nb", "goes over more than one line; write it in one"),
        (
            "a\tb",
            "holds a character that cannot be seen (U+0009); remove it, and put a text with \\ in "
            "single quotes",
        ),
        (
            "\ud800",
            "holds a character that cannot be seen (U+D800); remove it, and put a text with \\ in "
            "single quotes",
        ),
    ],
)
def test_text_is_one_visible_line(value: object, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        text(value)
    assert str(caught.value) == words


def test_shown_is_short_ascii_and_hides_what_may_be_a_key() -> None:
    assert shown("caf\u00e9") == '"caf\\xe9"'
    assert len(shown("z" * 1000)) == 62
    assert shown("x" + "0a" * 16) == "(a long hex text)"


def test_absolute() -> None:
    parse = absolute("/etc/x.pem")
    assert parse("/a/b c") == "/a/b c"
    for value in ("a", "./a", "~/a", ""):
        with pytest.raises(ValueError, match=r"is not an absolute path; write one such as /etc/x\.pem"):
            parse(value)


def test_choice_level_label_hex() -> None:
    assert choice("warn", "strict")("STRICT") == "strict"
    assert [level(v) for v in ("warn", "WARNING", "Debug")] == ["warning", "warning", "debug"]
    assert label("relay 1") == "relay 1"
    assert hex32("AB" * 32) == b"\xab" * 32
    with pytest.raises(ValueError, match=r"^\"x\" is not known here; write one of warn, strict$"):
        choice("warn", "strict")("x")
    for bad in ("", "x" * 64, "\u00e9"):
        with pytest.raises(ValueError, match=r"write 1 to 63 ASCII characters$"):
            label(bad)
    with pytest.raises(ValueError, match=r"^\"ab\" is no network id; write its 64 hex digits$"):
        hex32("ab")
