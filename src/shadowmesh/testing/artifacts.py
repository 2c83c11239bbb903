"""What `scripts/build` makes, for tests that install or start it: built once, and anew only after a change.

With SHADOWMESH_DIST_AS_IS in the environment, what is in dist/ is taken also after one.
"""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
from pathlib import Path

import shadowmesh

ROOT = Path(__file__).parents[3]
DIST = ROOT / "dist"
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
_SOURCES = (
    "src/shadowmesh",
    "packaging",
    "deploy",
    "docs",
    "monitoring",
    "requirements/run.txt",
    "requirements/build.txt",
    "requirements/build-binary.txt",
    "scripts/build",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
)
_ALL_SECONDS = 1200.0


def binary(program: str) -> Path:
    """The single file of `relay` or `daemon`."""
    return _built(DIST / f"shadowmesh-{program}-linux-{ARCH}")


def deb(program: str) -> Path:
    """The Debian package of `relay` or `daemon`."""
    return _built(DIST / f"shadowmesh-{program}_{shadowmesh.__version__}_{ARCH}.deb")


def wheel() -> Path:
    return _built(DIST / f"shadowmesh-{shadowmesh.__version__}-py3-none-any.whl")


def sdist() -> Path:
    return _built(DIST / f"shadowmesh-{shadowmesh.__version__}.tar.gz")


def _built(path: Path) -> Path:
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() or (
            "SHADOWMESH_DIST_AS_IS" not in os.environ and path.stat().st_mtime < _changed()
        ):
            done = subprocess.run(
                ["nice", ROOT / "scripts/build"], stderr=subprocess.PIPE, text=True, timeout=_ALL_SECONDS
            )
            assert done.returncode == 0, done.stderr
    return path


def _changed() -> float:
    """When the source was changed last."""
    files = (file for name in _SOURCES for file in [ROOT / name, *(ROOT / name).rglob("*")])
    # The test kit is in the wheel, but in no program; what is compiled is nobody's change.
    return max(
        file.stat().st_mtime
        for file in files
        if file.is_file() and file.suffix != ".pyc" and "testing" not in file.parts
    )
