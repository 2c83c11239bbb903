"""On what machine and with which versions numbers were measured, and whether all commands are there."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from cryptography.hazmat.backends import openssl

import shadowmesh
from bench import processor
from bench.subjects import Subject
from shadowmesh.testing import netlab

_ROOT = Path(__file__).parents[1]


def missing_packages(tools: Mapping[str, str]) -> list[str]:
    """Debian packages of the commands and files of `tools` that are not here."""
    return sorted(
        {package for tool, package in tools.items() if not shutil.which(tool) and not os.path.exists(tool)}
    )


def obstacle(tools: Mapping[str, str]) -> str | None:
    """What keeps a run with these tools from starting, in words, or None."""
    if packages := missing_packages(tools):
        return f"please install what is missing: apt-get install --no-install-recommends {' '.join(packages)}"
    return netlab.obstacle()


def describe(subjects: Iterable[Subject], tools: Iterable[str]) -> dict[str, str]:
    """Machine, kernel and versions, by a heading for each."""
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{cpu_model(Path('/proc/cpuinfo').read_text())}, {os.cpu_count()} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "busy cores before the run": f"{processor.load(1.0):.2f}",
        "ShadowMesh": f"{shadowmesh.__version__}{_commit()}",
        "Python": platform.python_version(),
    }
    for library in ("picows", "aiofastnet", "uvloop", "cryptography"):
        facts[library] = metadata.version(library)
    facts["its OpenSSL"] = version_of(openssl.backend.openssl_version_text())
    commands = {subject.version[0]: subject.version for subject in subjects if subject.version}
    commands |= {tool: (tool, "-v" if tool in ("nginx", "wrk") else "--version") for tool in tools}
    return facts | {name: _version(command) for name, command in commands.items()}


def cpu_model(cpuinfo: str) -> str:
    """The processor's name from /proc/cpuinfo, or the architecture where that has none."""
    found = re.search(r"^model name\s*: (.+)$", cpuinfo, re.MULTILINE)
    return found[1] if found else platform.machine()


def version_of(text: str) -> str:
    """The first thing that looks like a version in what a program prints about itself."""
    found = re.search(r"\d+(\.\d+)+[\w+.~-]*", text)
    return found[0] if found else text.strip().partition("\n")[0]


def _version(command: tuple[str, ...]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    return version_of(done.stdout + done.stderr)


def _commit() -> str:
    """The commit that was measured, with a mark when the tree differs from it; nothing outside of git."""
    argv = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--match=-"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return ""
    return f" ({done.stdout.strip()})" if done.returncode == 0 else ""
