"""The list of devices: what may stand in it, and the next free IP."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from shadowmesh.cli.inventory import MAX_FILE, beside, load, next_free, save
from shadowmesh.errors import StartError

A, B, SIX = ip_address("10.10.10.1"), ip_address("10.10.10.12"), ip_address("fd00::1")


def test_lines_as_of_hosts(tmp_path: Path) -> None:
    path = tmp_path / "c.hosts"
    path.write_text("# ours\n\n10.10.10.12/32\n 10.10.10.1\tlaptop   # at home\nfd00::1 laptop\n")
    assert load(str(path)) == {B: "", A: "laptop", SIX: "laptop"}
    save(str(path), load(str(path)))
    assert path.read_text().splitlines()[1:] == ["10.10.10.1 laptop", "10.10.10.12", "fd00::1 laptop"]
    assert load(str(path)) == {B: "", A: "laptop", SIX: "laptop"}


def test_mistakes_in_words(tmp_path: Path) -> None:
    path = tmp_path / "c.hosts"
    with pytest.raises(StartError, match=r"c\.hosts: No such file"):
        load(str(path))
    path.write_text("10.10.10.1 a\nlaptop 10.10.10.2\n")
    with pytest.raises(StartError, match=r"c\.hosts:2: does not begin with an IP; write lines such as: 10"):
        load(str(path))
    path.write_bytes(b"#" * (MAX_FILE + 1))
    with pytest.raises(StartError, match="larger than 1 MiB"):
        load(str(path))


def test_the_next_free() -> None:
    small = ip_network("10.0.0.0/30")
    assert next_free(small, []) == ip_interface("10.0.0.1/30")
    assert next_free(small, [ip_address("10.0.0.1"), A]) == ip_interface("10.0.0.2/30")
    with pytest.raises(StartError, match=r"all addresses of 10\.0\.0\.0/30 are taken"):
        next_free(small, map(ip_address, ("10.0.0.1", "10.0.0.2")))
    assert next_free(ip_network("fd00::/64"), [SIX]) == ip_interface("fd00::2/64")
    assert next_free(ip_network("10.0.0.0/31"), [ip_address("10.0.0.0")]) == ip_interface("10.0.0.1/31")


def test_it_is_beside_the_configuration(tmp_path: Path) -> None:
    assert beside(str(tmp_path / "client-config.yaml")) == str(tmp_path.resolve() / "client-config.hosts")
