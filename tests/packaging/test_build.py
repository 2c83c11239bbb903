"""scripts/build itself, and what it makes for pip."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shadowmesh import __version__
from shadowmesh.testing import artifacts
from shadowmesh.testing.artifacts import ROOT

pytestmark = [pytest.mark.netns, pytest.mark.packaging]


def build(tree: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    argv = [str(tree / "scripts/build"), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **environment})
    return done.returncode, done.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("scripts/build", "src/shadowmesh/__init__.py", "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "scripts/build").chmod(0o755)
    return tmp_path


def test_it_is_executable_and_plain_sh() -> None:
    assert (ROOT / "scripts/build").read_text().startswith("#!/bin/sh\n")
    assert (ROOT / "scripts/build").stat().st_mode & 0o111


def test_what_it_cannot_build_on_is_one_line(tree: Path) -> None:
    (tree / "bin").mkdir()
    uname = tree / "bin/uname"
    uname.write_text("#!/bin/sh\necho riscv64\n")
    uname.chmod(0o755)
    path = f"{tree}/bin:{os.environ['PATH']}"
    assert build(tree, PATH=path) == (
        1,
        "build: there are no packages for riscv64: x86_64 or aarch64 is needed\n",
    )
    uname.unlink()
    (tree / "dist").write_text("")
    assert build(tree, "wheel") == (1, f"build: build/ and dist/ of {tree} cannot be written\n")
    (tree / "dist").unlink()
    for python in ("/bin/true", "/bin/false", "/not/there"):
        needed = (
            f"build: {python} is no Python 3.11 or newer, which is needed; PYTHON=... names another one\n"
        )
        assert build(tree, "wheel", PYTHON=python) == (1, needed)
    for arguments in (["rpm"], ["wheel", "deb"]):
        assert build(tree, *arguments) == (2, "usage: ./scripts/build [binary|deb|wheel|relay|daemon]\n")


@pytest.fixture
def prepared(tree: Path) -> Path:
    """A clone whose build/venv is said to be that of this one; its python does nothing."""
    artifacts.wheel()
    shutil.copytree(ROOT / "requirements", tree / "requirements")
    (tree / "build/venv/bin").mkdir(parents=True)
    made = (ROOT / "build/venv/made").read_text().replace(f"{ROOT} ", f"{tree} ", 1)
    (tree / "build/venv/made").write_text(made)
    (tree / "build/venv/bin/python").write_text("#!/bin/sh\n")
    (tree / "build/venv/bin/python").chmod(0o755)
    return tree


@pytest.mark.parametrize("missing", ["relay", "daemon"])
def test_a_package_that_cannot_be_made_fails_the_build(prepared: Path, missing: str) -> None:
    for name in ("packaging", "deploy", "docs", "monitoring"):
        shutil.copytree(ROOT / name, prepared / name)
    for name in ("README.md", "SECURITY.md"):
        shutil.copy(ROOT / name, prepared)
    # In place of Python, what it leaves behind.
    (prepared / "build/venv/bin/python").write_text(
        "#!/bin/sh\ncase $* in *man.main*) mkdir -p build/man; cd build/man;"
        " touch shadowmesh.1 shadowmesh.yaml.5 shadowmesh-relay.8 shadowmesh-daemon.8 ;; esac\n"
    )
    for program in ("relay", "daemon"):
        (prepared / f"build/analysis/{program}/shadowmesh").mkdir(parents=True)
        (prepared / f"build/analysis/{program}/shadowmesh/warn-shadowmesh.txt").touch()
        (prepared / f"build/programs/shadowmesh-{program}").mkdir(parents=True)
        control = prepared / f"packaging/debian/shadowmesh-{program}/control"
        control.write_text(control.read_text().replace("#GLIBC#", "2.36"))  # it has no programs to count in
    status, said = build(prepared, "deb")
    assert status == 0, said
    (prepared / f"packaging/debian/shadowmesh-{missing}/postinst").unlink()
    status, said = build(prepared, "deb")
    assert status == 1
    assert "postinst" in said


def test_a_program_that_lacks_a_module_is_not_made(prepared: Path) -> None:
    (prepared / "build/analysis/relay/shadowmesh").mkdir(parents=True)
    (prepared / "build/analysis/relay/shadowmesh/warn-shadowmesh.txt").write_text(
        "missing module named 'xml.sax' - imported by segno.writers (top-level)\n"
        "missing module named zope - imported by structlog.twisted (top-level)\n"
        "missing module named other - imported by uvicorn (delayed)\n"
    )
    status, said = build(prepared, "relay")
    assert status == 1
    assert "shadowmesh-relay lacks what it imports: xml.sax (excluded" in said


def test_wheel_and_source_are_the_same_bytes_at_another_time(prepared: Path) -> None:
    python = prepared / "build/venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec {ROOT}/build/venv/bin/python "$@"\n')
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, prepared / name)
    shutil.copytree(ROOT / "src", prepared / "src", dirs_exist_ok=True)
    made = []
    for turn in range(2):
        os.utime(prepared / "README.md", (1e9 + turn, 1e9 + turn))
        status, said = build(prepared, "wheel", SOURCE_DATE_EPOCH="1700000000")
        assert status == 0, said
        made.append({file.name: file.read_bytes() for file in (prepared / "dist").iterdir()})
    assert len(made[0]) == 2
    assert made[0] == made[1]


def test_the_time_is_the_commits_also_in_a_clone_of_somebody_else(tree: Path) -> None:
    git = ["git", "-C", str(tree), "-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    environment = {**os.environ, "GIT_COMMITTER_DATE": "1600000000 +0000"}
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *arguments], check=True, env=environment)
    subprocess.run(["chown", "-R", "65534", tree], check=True)
    done = subprocess.run(
        ["sh", "-x", tree / "scripts/build", "rpm"], capture_output=True, text=True, cwd=tree
    )
    assert "+ : 1600000000\n" in done.stderr


@pytest.mark.parametrize("package", [artifacts.wheel, artifacts.sdist])
def test_pipx_installs_the_programs_with_what_they_need(tmp_path: Path, package: Callable[[], Path]) -> None:
    """One file; of the libraries that fit the pinned ones, which nobody else changes."""
    pinned = re.findall(r"^([\w.-]+==\S+)", (ROOT / "requirements/run.txt").read_text(), re.MULTILINE)
    (tmp_path / "pinned.txt").write_text("\n".join(pinned))
    environment = {name: str(tmp_path / name) for name in ("PIPX_HOME", "PIPX_BIN_DIR", "PIPX_MAN_DIR")}
    argv = [sys.executable, "-m", "pipx", "install", "--python", sys.executable, str(package())]
    argv.append(f"--pip-args=--constraint={tmp_path}/pinned.txt")
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **environment})
    assert not done.returncode, done.stderr
    programs = tmp_path / "PIPX_BIN_DIR"
    for name in ("shadowmesh", "shadowmesh-relay", "shadowmesh-daemon"):
        done = subprocess.run([programs / name, "--version"], capture_output=True, text=True, env={})
        assert done.stdout == f"{name} {__version__}\n", done.stderr
    config = ROOT / "tests/guide/config/relay-config.yaml"
    argv = [f"{programs}/shadowmesh", "check-config", "--relay", str(config)]
    done = subprocess.run(argv, capture_output=True, text=True, env={})
    assert not done.returncode, done.stderr


def test_what_is_in_the_wheel() -> None:
    with zipfile.ZipFile(artifacts.wheel()) as wheel:
        names = wheel.namelist()
    assert "shadowmesh/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {"shadowmesh", f"shadowmesh-{__version__}.dist-info"}


def test_the_source_distribution_makes_the_same_wheel(tmp_path: Path) -> None:
    subprocess.run(["tar", "-xf", artifacts.sdist(), "-C", tmp_path], check=True)
    (source,) = tmp_path.iterdir()
    build_wheel = "from setuptools import build_meta; build_meta.build_wheel('made')"
    python = ROOT / "build/venv/bin/python"
    subprocess.run([python, "-c", build_wheel], cwd=source, check=True, capture_output=True)
    (made,) = (source / "made").iterdir()
    with zipfile.ZipFile(made) as one, zipfile.ZipFile(artifacts.wheel()) as other:
        assert {name: one.read(name) for name in one.namelist()} == {
            name: other.read(name) for name in other.namelist()
        }
