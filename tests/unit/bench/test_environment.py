from __future__ import annotations

from pathlib import Path

import pytest

from bench import environment


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("nginx version: nginx/1.22.1", "1.22.1"),
        ("wireguard-go v0.0.20220316\n\nUserspace WireGuard", "0.0.20220316"),
        ("wrk debian/4.1.0-3+b2 [epoll] Copyright", "4.1.0-3+b2"),
        ("iperf 3.12 (cJSON 1.7.15)", "3.12"),
        ("no number\nmore", "no number"),
    ],
)
def test_the_version_is_found_in_what_a_program_prints(text: str, version: str) -> None:
    assert environment.version_of(text) == version


def test_the_processor_has_a_name() -> None:
    assert environment.cpu_model("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n") == "Some CPU @ 2 GHz"
    assert environment.cpu_model("processor\t: 0\n")


def test_missing_packages_are_named_once(tmp_path: Path) -> None:
    tools = {
        "sh": "dash",
        str(tmp_path): "present",
        "no-such-a": "wanted",
        str(tmp_path / "no-such-b"): "wanted",
    }
    assert environment.missing_packages(tools) == ["wanted"]
