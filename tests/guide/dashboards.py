"""A dashboard of monitoring/, asked of a Prometheus that runs by the files there, and its alerts."""

from __future__ import annotations

import json
import re
from typing import Any

from shadowmesh.testing.prometheus import MONITORING, Prometheus

WINDOW = "4s"
"""What stands for Grafana's $__rate_interval at the pace of the tests, two scrapes a second."""


class Dashboard:
    """variables: what stands for `$name` in its queries, besides $__rate_interval and $instance."""

    def __init__(self, file: str, **variables: str) -> None:
        self.content: dict[str, Any] = json.loads((MONITORING / file).read_text())
        self.queries: dict[str, str] = {
            f"{panel['title']} {target['refId']}": target["expr"]
            for panel in self.content["panels"]
            for target in panel.get("targets", ())
        }
        self._variables = {"__rate_interval": WINDOW, "instance": ".+"} | variables

    def filled_in(self, expression: str) -> str:
        """A query as Grafana sends it with "All" chosen everywhere."""
        for name, value in self._variables.items():
            expression = expression.replace(f"${name}", value)
        return expression

    def check_variables(self, prometheus: Prometheus) -> None:
        """Each variable but the data source has one value."""
        for variable in self.content["templating"]["list"][1:]:
            match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert match is not None
            values = prometheus.api(f"label/{match[2]}/values", **{"match[]": self.filled_in(match[1])})
            assert len(values) == 1

    def check_query(self, prometheus: Prometheus, name: str) -> None:
        """The query has data."""
        series = prometheus.query(self.filled_in(self.queries[name]))
        assert series
        assert "NaN" not in [each["value"][1] for each in series]


def check_alerts(prometheus: Prometheus, more_than: int) -> None:
    """There are so many alerts; each can be evaluated, and none fires."""

    def evaluated() -> list[Any] | None:
        (group,) = prometheus.api("rules")["groups"]
        return None if any(rule["health"] == "unknown" for rule in group["rules"]) else group["rules"]

    rules = prometheus.wait_for(evaluated, "evaluation of all alerts")
    assert len(rules) > more_than
    for rule in rules:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule["name"]
        assert rule["state"] != "firing", rule["name"]
        prometheus.query(rule["query"])
