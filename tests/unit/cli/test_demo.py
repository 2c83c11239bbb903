from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner
from rich.console import Console

from shadowmesh.cli import demo
from shadowmesh.testing import netlab


def report() -> tuple[demo.Report, io.StringIO]:
    output = io.StringIO()
    return demo.Report(Console(file=output, highlight=False, soft_wrap=True)), output


def test_one_false_claim_fails_the_report() -> None:
    made, output = report()
    made.claim("ping", True, "20 of 20 [answered]")
    assert not made.failed
    made.claim("iperf3", False, "no route")
    made.claim("file", True, "equal")
    assert made.failed
    assert output.getvalue().splitlines()[0] == "  ✓ ping               20 of 20 [answered]"


@pytest.mark.parametrize(("leak", "claim"), [("links", "✗ its links"), ("log", "✗ its log")])
def test_a_leak_is_found_and_named(leak: str, claim: str) -> None:
    made, output = report()
    lab = {"laptop": None, "desktop": None}
    run = demo.Demo(cast(Any, lab), made)
    secret = b"... " + run.key.hex().encode() + b" ..."
    plain = run.mark + b"\x0a\x0a\x0a\x01\x0a\x0a\x0a\x02"
    relay = SimpleNamespace(text=lambda: secret.decode() if leak == "log" else "client joined")
    run._secrets(secret if leak == "links" else b"sealed", plain, cast(Any, relay))
    assert made.failed
    assert claim in output.getvalue()
    assert "FOUND: key" in output.getvalue()
    assert "no file, no overlay IPs, no peer names, no key" in output.getvalue()


def test_every_part_of_the_file_holds_the_mark(tmp_path: Path) -> None:
    made, _ = report()
    run = demo.Demo(cast(Any, {"laptop": None, "desktop": None}), made)
    run._write_marked(tmp_path / "file", 1 << 16)
    data = (tmp_path / "file").read_bytes()
    assert len(data) == 1 << 16
    assert all(run.mark in data[at : at + 2 * demo.RECORD] for at in range(0, len(data) - 2 * demo.RECORD, 7))
    assert len(set(data.split(b"\n"))) == (1 << 16) // demo.RECORD + 1


def test_obstacles_end_the_demo_with_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlab, "privileged", lambda: False)
    monkeypatch.setattr(netlab, "missing_tools", lambda tools: [])
    monkeypatch.setattr(netlab, "obstacle", lambda as_user: "network namespaces are not allowed here")
    result = CliRunner().invoke(demo.demo)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "demo: network namespaces are not allowed here",
        "demo: as root it may go: sudo ./scripts/demo",
    ]
