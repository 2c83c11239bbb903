"""Invariant: given any bytes, the loaders return Loaded or raise ConfigError with one-line "
"problems, soon, and no message holds the key."""

from __future__ import annotations

import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmesh.config import Loaded, normal_origin, parse_client_config, parse_relay_config
from shadowmesh.errors import ConfigError

KEY = "9f2c4e6a81b3d5f7092b4d6f8193a5c7e9fb0d1f31537597b9dbfd1e3f507294"
GUIDE = Path(__file__).parents[1] / "guide/config"
RELAY = (GUIDE / "relay-config.yaml").read_bytes()
CLIENT = (
    (GUIDE / "client-config.yaml")
    .read_bytes()
    .replace(b"10.10.10.X", b"10.10.10.7")
    .replace(b"YOUR_64_CHAR_HEX_KEY", KEY.encode())
    .replace(b"YOUR_RELAY_IP", b"203.0.113.9")
)
PIECES = st.sampled_from(
    [
        *(
            b"\n",
            b"  ",
            b": ",
            b"- ",
            b"[",
            b"]",
            b"{",
            b"}",
            b"*",
            b"&a ",
            b"!!x ",
            b'"',
            b"'",
            b"#",
            b"|\n",
            b"\t",
        ),
        *(
            b"\xff",
            b"\0",
            b"\xc2\xa0",
            b'"\\ud800"',
            b"? ",
            b"---\n",
            b"%YAML 9\n",
            b"~",
            b"<<",
            b"0",
            b"-1",
            b"9" * 40,
        ),
        *(
            b"trusted: {10.10.10.2: a}",
            b"routes: [{to: 10.0.0.0/8, via: ::1}]",
            b"local_ip: [[]]",
            b"\npeers: ",
            b"/0",
            b"\ntls: {cert_file: /a, key_file: b}",
            b"\ntrusted_proxies: [::1/0, 10.0.0.1/8]",
            b"\nallowed_origins: [https://a:443, null]",
        ),
    ]
)


def check(content: bytes) -> None:
    started = time.process_time()
    for parse in (parse_relay_config, parse_client_config):
        try:
            loaded = parse(content, "f.yaml")
        except ConfigError as error:
            lines = error.problems
            assert lines
        else:
            assert isinstance(loaded, Loaded)
            lines = loaded.warnings
            assert KEY not in repr(loaded)
        assert all(line.startswith("f.yaml:") and line.isprintable() and line.isascii() for line in lines)
        assert not any(KEY in line for line in lines)
    assert time.process_time() - started < 5


@given(st.binary(max_size=400))
def test_any_bytes(content: bytes) -> None:
    check(content)


@given(st.text(max_size=400))
def test_any_text(content: str) -> None:
    check(content.encode("utf-8", "surrogatepass"))


@settings(max_examples=200)
@given(
    st.sampled_from([RELAY, CLIENT]),
    st.lists(
        st.tuples(st.integers(0, len(RELAY)), st.integers(0, 40), st.one_of(PIECES, st.binary(max_size=3)))
    ),
)
def test_mutated_guide_files(content: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    for start, length, piece in edits:
        content = content[:start] + piece + content[start + length :]
    check(content)


@given(
    st.one_of(
        st.text(max_size=80),
        st.builds("{}://{}".format, st.text(max_size=6), st.text(max_size=40)),
        st.from_regex(r"https?://[A-Z0-9.:\[\]_-]{1,40}", fullmatch=True),
    )
)
def test_a_normal_origin_stays_as_it_is(origin: str) -> None:
    """An Origin header is a stranger's text: ValueError, or a form that is its own and fits one line."""
    try:
        normal = normal_origin(origin)
    except ValueError:
        return
    assert normal_origin(normal) == normal == normal.lower()
    assert normal.isascii()
    assert normal.isprintable()
    assert not set(normal) & set(" ,*?#@")


@given(
    st.sampled_from(sorted({line.split(b":")[0].strip() for line in CLIENT.splitlines() if b":" in line})),
    st.text(),
)
def test_any_value_of_any_key(key: bytes, value: str) -> None:
    """Single-quoted, so that YAML takes nearly every text and the models have to judge it."""
    quoted = b"'" + value.replace("'", "''").encode("utf-8", "replace") + b"'"
    lines = CLIENT.splitlines()
    check(
        b"\n".join(
            line.split(b":")[0] + b": " + quoted if line.strip().startswith(key + b":") else line
            for line in lines
        )
    )
