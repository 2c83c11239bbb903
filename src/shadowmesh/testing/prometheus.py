"""Prometheus as a real program, started on a free port with the files of `monitoring/`, and its promtool."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest
import yaml

from shadowmesh.testing.program import Program

MONITORING = Path(__file__).parents[3] / "monitoring"


def tool(name: str) -> str:
    """Where `prometheus` or `promtool` is; without it the test is skipped, and fails where CI=true."""
    if path := shutil.which(name):
        return path
    text = f"{name} is not installed: scripts/setup test, or Debian's package prometheus"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(text)
    pytest.skip(text)


def promtool(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool in the directory `monitoring/`."""
    argv = [tool("promtool"), *arguments]
    return subprocess.run(argv, cwd=MONITORING, input=stdin, capture_output=True, text=True, check=False)


class Prometheus(Program):
    """Runs with a file of monitoring/, but for its targets, a shorter interval and no Alertmanager.

    A context manager that kills it; `directory` takes its file, its data and its log.
    """

    def __init__(
        self, directory: Path, port: int, targets: list[str], interval: str, name: str = "prometheus.yml"
    ) -> None:
        program = tool("prometheus")
        config = yaml.safe_load((MONITORING / name).read_text())
        config["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
        config["rule_files"] = [str(MONITORING / file) for file in config["rule_files"]]
        del config["alerting"]
        (job,) = config["scrape_configs"]
        job["static_configs"] = [{"targets": targets}]
        file = directory / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        log = directory / "prometheus.log"
        argv = [
            program,
            f"--config.file={file}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(argv, stdout=output, stderr=output)
        super().__init__("prometheus", process, log)
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1/", trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        self.kill()

    def ready(self) -> Self:
        """Wait until it answers queries."""
        self.wait_for_text("Server is ready to receive web requests", timeout=20)
        return self

    def api(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its HTTP API; anything but success is an AssertionError."""
        answer = self._http.get(path, params=parameters).json()
        assert answer["status"] == "success", f"{parameters}: {answer}"
        return answer["data"]

    def query(self, expression: str) -> list[Mapping[str, Any]]:
        """The series of an instant query, each with its labels (`metric`) and `value`."""
        series: list[Mapping[str, Any]] = self.api("query", query=expression)["result"]
        return series
