"""Files on disk: what cannot be read, the default place, who may read the key, and the kind of a file."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest

from shadowmesh.config import (
    ClientConfig,
    RelayConfig,
    load_client_config,
    load_config,
    load_relay_config,
    loader,
)
from shadowmesh.errors import ConfigError

ROOT = Path(__file__).parents[3]
GUIDE = ROOT / "tests/guide/config"
KEY = "9f2c4e6a81b3d5f7092b4d6f8193a5c7e9fb0d1f31537597b9dbfd1e3f507294"
CLIENT = f"""\
network: {{local_ip: 10.1.1.7/24}}
encryption: {{key: {KEY}}}
peer: {{id: a}}
relay: {{server: 'wss://h'}}
"""


def problem(path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_relay_config(path)
    (line,) = caught.value.problems
    return line


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = str(tmp_path / "missing.yaml")
    assert problem(missing) == f"{missing}: no such file"
    assert problem(str(tmp_path)) == f"{tmp_path}: a directory; give the file in it"
    (tmp_path / "file").touch()
    assert problem(f"{tmp_path}/file/x") == f"{tmp_path}/file/x: cannot be read: Not a directory"
    assert problem("a\0b") == "a\0b: cannot be read: embedded null byte"

    def refuse(path: str, mode: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)
    user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    assert problem("/my secret.yaml") == (
        f"/my secret.yaml: the user {user} may not read it; for a service: chgrp {group} '/my secret.yaml' "
        "&& chmod g+r '/my secret.yaml'; by hand: sudo"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="root becomes somebody else")
def test_a_directory_that_keeps_the_service_out_is_named(tmp_path: Path) -> None:
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    locked = tmp_path / "locked"
    (locked / "deeper").mkdir(parents=True)
    file = locked / "deeper/relay-config.yaml"
    file.touch(0o600)
    ids = os.geteuid(), os.getegid()
    user, group = pwd.getpwuid(65534).pw_name, grp.getgrgid(65534).gr_name
    os.setegid(65534)
    os.seteuid(65534)
    try:
        at_file = problem(str(file))
        os.seteuid(ids[0])
        locked.chmod(0o700)
        os.seteuid(65534)
        at_directory = problem(str(file))
    finally:
        os.seteuid(ids[0])
        os.setegid(ids[1])
    assert (
        f"the user {user} may not read it; for a service: chgrp {group} {file} && chmod g+r {file}" in at_file
    )
    assert (
        f"the user {user} may not enter the directory {locked}; for a service: "
        f"chgrp {group} {locked} && chmod g+x {locked}; by hand: sudo" in at_directory
    )


def test_relay_without_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "relay-config.yaml"
    monkeypatch.setattr(loader, "DEFAULT_RELAY_PATH", str(place))
    loaded = load_relay_config(None)
    assert loaded.config == RelayConfig()
    assert loaded.config.without_effect == ()
    assert loaded.source == "built-in defaults"
    assert loaded.warnings == [
        f"no -config given and no {place}: running with the deployment guide's values",
        'built-in defaults: allowed_origins: "*" lets any web page connect from a visitor\'s browser; [] '
        "lets none (daemons always may)",
        'built-in defaults: auth.mode: "open" lets whoever reaches this relay use it; "api_key" asks each '
        "client for a key",
    ]

    place.write_text("region: eu\nserver_name: r1\nallowed_origins: []\nbind_address: 127.0.0.1\n")
    loaded = load_relay_config(None)
    assert (loaded.source, loaded.config.region, loaded.warnings) == (str(place), "eu", [])

    place.write_text("regin: eu\n")
    with pytest.raises(ConfigError, match="unknown key; did you mean region"):
        load_relay_config(None)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
@pytest.mark.parametrize(
    ("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True), (0o644, True)]
)
def test_a_readable_key_is_warned_of(tmp_path: Path, mode: int, warned: bool) -> None:
    path = tmp_path / "my config.yaml"
    path.write_text(CLIENT)
    path.chmod(mode)
    words = (
        f"holds the network key and others may read it (mode {mode:04o}); mend it with: chmod 600 '{path}'"
    )
    for load in (load_client_config, load_config):
        assert load(str(path)).warnings == ([f"{path}: {words}"] if warned else [])


def test_a_file_without_a_secret_may_be_read(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "key").chmod(0o600)
    path = tmp_path / "c.yaml"
    path.write_text(CLIENT.replace(f"key: {KEY}", f"key_file: {tmp_path}/key"))
    path.chmod(0o644)
    assert load_client_config(str(path)).warnings == []
    path.write_text(path.read_text().replace("relay: {", "relay: {proxy: 'http://u:secret@h:1', "))
    words = f"holds a secret (relay.proxy) and others may read it (mode 0644); mend it with: chmod 600 {path}"
    assert load_client_config(str(path)).warnings == [f"{path}: {words}"]


def test_the_keys_of_a_file_say_its_kind(tmp_path: Path) -> None:
    assert isinstance(load_config(str(GUIDE / "relay-config.yaml")).config, RelayConfig)
    path = tmp_path / "f.yaml"
    path.write_text(CLIENT)
    assert isinstance(load_config(str(path)).config, ClientConfig)
    path.write_text("foo: 1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    words = "by its keys neither a relay nor a client configuration; say which it is with --relay or --client"
    assert caught.value.problems == [f"{path}: {words}"]


def test_every_key_is_in_the_docs() -> None:
    docs = (ROOT / "docs/configuration.md").read_text()
    for kind in (loader._RELAY, loader._CLIENT):
        sections = kind.keys()
        for section, names in sections.items():
            for name in names:
                dotted = ".".join((*map(str, section), name))
                assert f"`{dotted}`" in docs or (not section and (name,) in sections), dotted
        for later in kind.later:
            assert f"`{later}`" in docs
