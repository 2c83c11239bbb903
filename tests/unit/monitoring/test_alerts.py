"""monitoring/*.yml by promtool: each alert is tested both ways and has its runbook; the guide's are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowmesh.testing import guide
from shadowmesh.testing.prometheus import MONITORING, promtool

ROOT = MONITORING.parent


both = pytest.mark.parametrize("whose", ["", "-client"], ids=["relay", "client"])
"""What the names of the files end in."""


def load(file: str) -> Any:
    return yaml.safe_load((MONITORING / file).read_text())


def alerts(whose: str) -> list[dict[str, Any]]:
    (group,) = load(f"alerts{whose}.yml")["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


@both
def test_promtool_accepts_configuration_and_rules(whose: str) -> None:
    checked = promtool("check", "config", "--lint-fatal", f"prometheus{whose}.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(alerts(whose))} rules found" in checked.stdout


@both
def test_promtool_sees_each_alert_fire_and_stay_quiet(whose: str) -> None:
    tested = promtool("test", "rules", f"alerts{whose}_test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    expected = [case for test in load(f"alerts{whose}_test.yml")["tests"] for case in test["alert_rule_test"]]
    names = [rule["alert"] for rule in alerts(whose)]
    assert len(names) == len(set(names))
    assert {case["alertname"] for case in expected if case["exp_alerts"]} == set(names)
    assert {case["alertname"] for case in expected if not case["exp_alerts"]} == set(names)


@both
def test_the_job_of_the_alerts_is_scraped(whose: str) -> None:
    jobs = [job["job_name"] for job in load(f"prometheus{whose}.yml")["scrape_configs"]]
    assert jobs == ["shadowmesh-client" if whose else "shadowmesh-relay"]
    assert f'job="{jobs[0]}"' in str(alerts(whose))


@both
def test_each_alert_has_a_severity_words_and_a_runbook(whose: str) -> None:
    page = (ROOT / "docs/monitoring.md").read_text()
    for rule in alerts(whose):
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"docs/monitoring.md#{rule['alert'].lower()}"
        assert f"\n### {rule['alert']}\n" in page


def test_the_alerts_of_the_guide_are_there_unchanged() -> None:
    page = (Path(__file__).parents[2] / "guide/deployment-guide.md").read_text()
    (block,) = (block for block in guide.blocks(page) if block.section == "Monitoring / Alerting")
    ours = {rule["alert"]: rule for rule in alerts("")}
    wanted = yaml.safe_load(block.text)
    assert len(wanted) == 3
    for rule in wanted:
        assert rule == {key: ours[rule["alert"]][key] for key in ("alert", "expr", "for")}
