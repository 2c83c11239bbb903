"""scripts/build itself, and what it makes for pip."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
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
    status, said = build(tree, "wheel", PYTHON="/bin/false")
    assert (status, said) == (
        1,
        "build: Python 3.11 or newer is needed; PYTHON=... names another one than /bin/false\n",
    )
    assert build(tree, "rpm") == (2, "usage: ./scripts/build [binary|deb|wheel|relay|daemon]\n")


def test_the_wheel_installs_the_programs(tmp_path: Path) -> None:
    argv = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(tmp_path),
    ]
    subprocess.run([*argv, str(artifacts.wheel())], check=True, capture_output=True)
    for name in ("shadowmesh", "shadowmesh-relay", "shadowmesh-daemon"):
        argv = [str(tmp_path / "bin" / name), "--version"]
        done = subprocess.run(argv, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
        assert done.stdout == f"{name} {__version__}\n", done.stderr
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


def test_the_containerfile_runs_a_relay_without_root() -> None:
    """No container engine is needed for tests, so only what it says is looked at."""
    text = (ROOT / "Containerfile").read_text()
    user = [line for line in text.splitlines() if line.startswith("USER ")]
    assert user
    assert user[-1] not in ("USER root", "USER 0")
    assert "scripts/build relay" in text
    for line in text.splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            assert all((ROOT / name).exists() for name in line.split()[1:-1]), line
