"""Rules for all tests: which machine runs the netns tests, and what a skipped or failed one of them shows."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Generator

import pytest
from hypothesis import settings

from shadowmesh.testing.netlab import Lab, obstacle

# CI=true: a machine that must be able to run everything, so a skipped netns test there is a failure.
STRICT = os.environ.get("CI", "").lower() in ("1", "true")

# A slow or busy machine is not a wrong result.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


MAKING = "from shadowmesh.testing import artifacts, booted; artifacts.wheel(), booted.base()"
_making: subprocess.Popen[bytes] | None = None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_needs_packages)


def _needs_packages(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("booted", "packaging"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have packages and the Debian to boot made beside the tests that do without, which mostly wait.

    Should that fail, the first test that needs them tries again, and says why.
    """
    global _making
    needs = sum(map(_needs_packages, session.items))
    if 0 < needs < len(session.items) // 2 and not session.config.option.collectonly and not obstacle():
        making = ["nice", "-n", "19", sys.executable, "-c", MAKING]
        null = subprocess.DEVNULL
        _making = subprocess.Popen(making, stdout=null, stderr=null, start_new_session=True)
    # What lives to the end of the session need not be looked at by each `gc.collect()` of a test.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    if _making is not None and _making.poll() is None:
        os.killpg(_making.pid, signal.SIGTERM)
        _making.wait()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("netns") and (reason := obstacle()):
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if STRICT and report.skipped and item.get_closest_marker("netns") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped although CI=true: {call.excinfo.value if call.excinfo else ''}"
    if report.failed:
        for lab in getattr(item, "funcargs", {}).values():
            if isinstance(lab, Lab):
                report.sections.append(("programs of the lab", lab.logs()))
    return report
