"""Workflows and what they run: least rights, pinned actions, a whole release, a true bill of materials."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from guide.pages import ROOT
from shadowmesh import __version__

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FILES = (
    "shadowmesh-relay-linux-amd64",
    "shadowmesh-daemon-linux-amd64",
    "shadowmesh-relay_1.2.3_amd64.deb",
    "shadowmesh-daemon_1.2.3_amd64.deb",
    "shadowmesh-1.2.3-py3-none-any.whl",
    "shadowmesh-1.2.3.tar.gz",
    "shadowmesh-1.2.3.cdx.json",
)
CHANGELOG = """\
# Changelog

## [1.3.0] - unreleased

- What comes.

## [1.2.3] - 2027-01-31

### Added

- What is there.

## [1.2.2] - 2027-01-01

- What was.
"""


def jobs(workflow: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(workflow.read_text())["jobs"]
    return found


def test_there_are_these_workflows() -> None:
    assert [file.stem for file in WORKFLOWS] == ["build", "release", "test"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_actions_are_pinned_and_rights_are_the_least(workflow: Path) -> None:
    text = workflow.read_text()
    for action in re.findall(r"uses: (\S+.*)", text):
        assert re.fullmatch(r"\./\.github/workflows/\w+\.yml|[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)
    assert yaml.safe_load(text)["permissions"] in ({}, {"contents": "read"})
    written = {
        (name, right)
        for name, job in jobs(workflow).items()
        for right, how in job.get("permissions", {}).items()
        if how == "write"
    }
    assert {name for name, _ in written} <= {"publish"}
    assert {right for _, right in written} <= {"contents", "id-token", "attestations"}
    for job in jobs(workflow).values():
        assert "uses" in job or 0 < job["timeout-minutes"] <= 90
        for step in job.get("steps", ()):
            assert "${{" not in step.get("run", "")  # what a stranger may choose never becomes a command
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def flat(steps: list[dict[str, Any]]) -> list[str]:
    """What each step runs or uses, without the commit."""
    return [step.get("run") or step["uses"].partition("@")[0] for step in steps]


def test_what_is_published_is_what_debian_12_built_and_the_tests_took() -> None:
    build, release, test = (jobs(file) for file in WORKFLOWS)
    publish, made, tested = release["publish"], build["build"], test["test"]
    assert (release["test"]["uses"], publish["needs"]) == ("./.github/workflows/test.yml", "test")
    assert (test["build"]["uses"], tested["needs"]) == ("./.github/workflows/build.yml", "build")
    assert not any("if" in job or "continue-on-error" in job for job in (*release.values(), *test.values()))

    assert made["container"]["image"] == "debian:12"
    assert flat(made["steps"])[-4:] == [
        "./scripts/build",
        "./scripts/sbom dist",
        "actions/upload-artifact",
        "CI=true SHADOWMESH_DIST_AS_IS=1 ./scripts/test tests/packaging",
    ]
    assert flat(tested["steps"])[1:] == [
        "actions/download-artifact",
        "chmod +x dist/*-linux-*",
        "sudo CI=true SHADOWMESH_DIST_AS_IS=1 ./scripts/test --ignore=tests/packaging",
    ]
    places = ((made, -2), (tested, 1), (publish, 1))
    uploaded, taken, published = (job["steps"][at]["with"] for job, at in places)
    assert (uploaded["name"], uploaded["path"], uploaded["if-no-files-found"]) == ("dist", "dist/", "error")
    assert taken == published == {"name": "dist", "path": "dist"}
    assert "go run github.com/rhysd/actionlint/" in "".join(flat(test["workflows"]["steps"]))


def test_a_release_has_checksums_provenance_and_every_file() -> None:
    publish = jobs(WORKFLOWS[1])["publish"]
    assert publish["permissions"] == {"contents": "write", "id-token": "write", "attestations": "write"}
    names = flat(publish["steps"])
    assert [name.split()[0] for name in names] == [
        "actions/checkout",
        "actions/download-artifact",
        "./scripts/release",
        "actions/attest-build-provenance",
        "gh",
    ]
    assert publish["steps"][3]["with"] == {"subject-checksums": "dist/SHA256SUMS"}
    assert re.fullmatch(r'gh release create "\$GITHUB_REF_NAME" --verify-tag .* dist/\*', names[4])
    triggers = yaml.safe_load(WORKFLOWS[1].read_text())[True]  # `on` is a boolean in YAML 1.1
    assert triggers == {"push": {"tags": ["v*"]}}


def test_actionlint_finds_nothing() -> None:
    program = shutil.which("actionlint", path=f"{ROOT / '.venv/bin'}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("actionlint is not installed: scripts/setup test does so where there is Go")
    done = subprocess.run([program, *WORKFLOWS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_they_run_what_there_is() -> None:
    for workflow in WORKFLOWS:
        for command in re.findall(r"(?<=\./)scripts/\w+", workflow.read_text()):
            assert os.access(ROOT / command, os.X_OK), command


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of version 1.2.3, built."""
    for name in ("scripts", "dist", "src/shadowmesh"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(ROOT / "scripts/release", tmp_path / "scripts")
    (tmp_path / "src/shadowmesh/__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    for name in FILES:
        (tmp_path / "dist" / name).write_text(name)
    return tmp_path


def release(tree: Path, *tags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tree / "scripts/release", *tags], capture_output=True, text=True, check=False)


def test_a_release_has_checksums_and_its_notes(tree: Path) -> None:
    for _ in range(2):  # the second time as well
        done = release(tree, "v1.2.3")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.split("\n") == ["", "### Added", "", "- What is there.", "", ""]
        sums = dict(line.split()[::-1] for line in (tree / "dist/SHA256SUMS").read_text().splitlines())
        assert sums == {name: hashlib.sha256(name.encode()).hexdigest() for name in FILES}
    assert not subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tree / "dist").returncode


@pytest.mark.parametrize("name", FILES)
def test_a_release_that_is_not_whole_is_none(tree: Path, name: str) -> None:
    (tree / "dist" / name).unlink()
    done = release(tree, "v1.2.3")
    assert done.returncode == 1
    assert re.fullmatch(r"release: dist/\S+ is missing\n", done.stderr)
    assert not (tree / "dist/SHA256SUMS").exists()


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("", "release: usage: ./scripts/release vX.Y.Z\n"),
        ("v1.2.3 v1.2.3", "usage: "),
        ("1.2.3", "usage: "),
        ("v1.2", "usage: "),
        ("v1.2.2", "has another version than 1.2.2"),
        ("v1.3.0", "has another version"),
    ],
)
def test_a_tag_that_does_not_fit(tree: Path, tag: str, words: str) -> None:
    done = release(tree, *tag.split())
    assert done.returncode == 1
    assert words in done.stderr


def test_a_version_without_notes(tree: Path) -> None:
    (tree / "CHANGELOG.md").write_text(CHANGELOG.replace("2027-01-31", "unreleased"))
    done = release(tree, "v1.2.3")
    assert "CHANGELOG.md has no section [1.2.3] with a date" in done.stderr


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="half a minute of downloads: CI=true runs it")
def test_the_bill_of_materials_is_what_is_pinned(tmp_path: Path) -> None:
    subprocess.run([ROOT / "scripts/sbom", tmp_path], check=True, capture_output=True, timeout=300)
    bill = json.loads((tmp_path / f"shadowmesh-{__version__}.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert (bill["metadata"]["component"]["name"], bill["metadata"]["component"]["version"]) == (
        "shadowmesh",
        __version__,
    )
    text = (ROOT / "requirements/run.txt").read_text()
    pins = [Requirement(line.rstrip(" \\")) for line in re.findall(r"^[\w.-]+==.*", text, re.M)]
    pinned = {
        (canonicalize_name(pin.name), str(pin.specifier))
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }
    assert len(pinned) > 15
    listed = {(canonicalize_name(each["name"]), f"=={each['version']}") for each in bill["components"]}
    assert listed == pinned


@pytest.mark.parametrize("arguments", [[], ["/nowhere"]])
def test_a_bill_of_materials_for_nowhere(arguments: list[str]) -> None:
    done = subprocess.run([ROOT / "scripts/sbom", *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: ./scripts/sbom DIRECTORY\n")
