"""The manual pages: every command, option and configuration key is there; man takes them without a word."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from shadowmesh import __version__
from shadowmesh.cli import ctl, man
from shadowmesh.config.loader import _CLIENT, _RELAY

DOCS = Path(__file__).parents[3] / "docs/configuration.md"
PAGES = ["shadowmesh-daemon.8", "shadowmesh-relay.8", "shadowmesh.1", "shadowmesh.yaml.5"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("man") / "deep"
    man.main([str(directory), str(DOCS)])
    return directory


def test_which_pages(pages: Path, tmp_path: Path) -> None:
    assert sorted(each.name for each in pages.iterdir()) == PAGES
    man.main([str(tmp_path)])
    assert sorted(each.name for each in tmp_path.iterdir()) == PAGES[:3]
    for page in pages.iterdir():
        assert f'"ShadowMesh {__version__}"' in page.read_text("ascii")


def test_the_packages_have_no_demo(pages: Path, tmp_path: Path) -> None:
    code = f"import sys; sys.frozen = True; from shadowmesh.cli import man; man.main(['{tmp_path}'])"
    subprocess.run([sys.executable, "-c", code], check=True)
    whole, packaged = ((each / "shadowmesh.1").read_text() for each in (pages, tmp_path))
    demo = whole[whole.index(".SS shadowmesh demo ") : whole.index(".SS shadowmesh down ")]
    assert packaged == whole.replace(demo, "")


def test_the_date_is_that_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    man.main([str(tmp_path)])
    for page in tmp_path.iterdir():
        assert ' "2023-11-14" "ShadowMesh ' in page.read_text().partition("\n")[0]


def test_every_command_and_option_is_there(pages: Path) -> None:
    text = (pages / "shadowmesh.1").read_text().replace("\\-", "-")
    count = 0
    for command, ctx in man.commands(ctl.cli, click.Context(ctl.cli, info_name="shadowmesh")):
        section = text.partition(f".SS {ctx.command_path} ")[2].partition(".SS")[0]
        assert section, ctx.command_path
        for param in command.params:
            if isinstance(param, click.Option):
                assert param.opts[-1] in section
        count += 1
    assert count > 20


def test_every_key_is_there(pages: Path) -> None:
    text = (pages / "shadowmesh.yaml.5").read_text().replace("\\-", "-")
    for kind in (_RELAY, _CLIENT):
        for path, names in kind.keys().items():
            for name in names:
                key = ".".join(map(str, (*path, name)))
                assert f".B {key}\n" in text or not path, key


def test_what_is_said_of_a_key_is_whole(pages: Path) -> None:
    """An asterisk in code is a value; where a link leads has a name that can be opened."""
    text = (pages / "shadowmesh.yaml.5").read_text().replace("\\-", "-")
    assert '\nlist of * or origins; default ["*"]; web pages' in text
    assert "\n1-1024; default 4; no effect yet: one process" in text.replace("\\[u2013]", "-")
    assert "is taken: behind a proxy (configuration.md)." in text
    assert "in /usr/share/doc/shadowmesh-relay or /usr/share/doc/shadowmesh-daemon, whichever" in text
    named = set(re.findall(r"\((\S+\.md)\)", text))
    assert (
        {"configuration.md", "deploy.md", "rotation.md"}
        <= named
        <= {page.name for page in DOCS.parent.iterdir()}
    )
    assert "](" not in text
    for word in ("see below", "see above"):
        assert word not in text


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(
    "command",
    [
        ("groff", "-man", "-Tutf8", "-ww", "-z"),
        ("man", "-l", "--warnings=w"),
        ("mandoc", "-Tlint", "-Werror"),
    ],
)
def test_nothing_to_complain_about(pages: Path, name: str, command: tuple[str, ...]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([*command, str(pages / name)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_would_be_a_request_is_text() -> None:
    assert man.text("a\n.so /etc/passwd\n'x \\n – -") == "a\n\\&.so /etc/passwd\n\\&'x \\en \\[u2013] \\-"


def test_mistakes_in_words(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="usage: python -m shadowmesh"):
        man.main([])
    with pytest.raises(SystemExit, match=r"nowhere\.md: No such file or directory"):
        man.main([str(tmp_path / "x"), "nowhere.md"])
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"file: File exists|file/x: Not a directory"):
        man.main([str(tmp_path / "file/x")])
