"""monitoring/grafana-dashboard*.json against the types that Grafana publishes, and the rules of our own.

`grafana-foundation-sdk` (Grafana Labs, Apache-2.0) is generated from Grafana's own schemas of dashboards,
panels and queries. Its types read leniently, so what they read is written again and compared, and the type
of each value is checked.
"""

from __future__ import annotations

import enum
import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import common, units
from grafana_foundation_sdk.models.dashboard import Dashboard, FieldConfig

MONITORING = Path(__file__).parents[3] / "monitoring"
EXPORT = ("__inputs", "__elements", "__requires")
"""What Grafana adds around a dashboard that is exported for others; its schema does not describe it."""
VARIABLES = {
    "grafana-dashboard.json": {"datasource", "job", "region", "instance"},
    "grafana-dashboard-client.json": {"datasource", "job", "instance"},
}
BUILT_IN = {"__rate_interval"}


@pytest.fixture(scope="module", params=VARIABLES)
def file(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def dashboard(file: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MONITORING / file).read_text())
    return loaded


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> list[str]:
    queries = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    return queries + [each["expr"] for each in dashboard["annotations"]["list"] if "expr" in each]


def lost(given: Any, kept: Any, where: str) -> Iterator[str]:
    """What of `given` is missing in `kept`."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key in kept:
                yield from lost(value, kept[key], f"{where}.{key}")
            elif value is not None:
                yield f"{where}.{key}: not in the schema"
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for number, (a, b) in enumerate(zip(given, kept, strict=True)):
            yield from lost(a, b, f"{where}[{number}]")
    elif given != kept:
        yield f"{where}: {given!r} was read as {kept!r}"


def mistyped(value: Any, hint: Any, where: str) -> Iterator[str]:
    """Where `value`, read by Grafana's types, is not what they say."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hasattr(value, "to_json"):
        for name, inner in get_type_hints(type(value)).items():
            yield from mistyped(getattr(value, name), inner, f"{where}.{name}")
    elif hint in (Any, object):
        return
    elif origin in (Union, types.UnionType):
        possible = [one for one in arguments if (one is types.NoneType) == (value is None)]
        found = [list(mistyped(value, one, where)) for one in possible]
        if not possible or all(found):
            yield from found[0] if len(found) == 1 else [f"{where}: {value!r} is not {hint}"]
    elif origin is list and isinstance(value, list):
        for number, item in enumerate(value):
            yield from mistyped(item, arguments[0], f"{where}[{number}]")
    elif origin is dict and isinstance(value, dict):
        for key, item in value.items():
            yield from mistyped(item, arguments[1], f"{where}[{key}]")
    elif origin is Literal:
        if value not in arguments:
            yield f"{where}: {value!r} is not one of {arguments}"
    elif isinstance(hint, type) and issubclass(hint, enum.Enum):
        if value not in [member.value for member in hint]:
            yield f"{where}: {value!r} is not a {hint.__name__}"
    elif not is_plain(value, hint):
        yield f"{where}: {value!r} is not {hint}"


def is_plain(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of this plain type; a bool is no number, and a whole number is a float, too."""
    kinds = (int, float) if hint is float else hint
    return isinstance(hint, type) and isinstance(value, kinds) and isinstance(value, bool) == (hint is bool)


def problems(given: dict[str, Any], kind: Any) -> list[str]:
    """All that Grafana's type `kind` has against the JSON object `given`."""
    read = kind.from_json(given)
    written = json.loads(json.dumps(read, cls=JSONEncoder))
    return [*lost(given, written, kind.__name__), *mistyped(read, kind, kind.__name__)]


def core(dashboard: dict[str, Any]) -> dict[str, Any]:
    register_default_plugins()
    return {key: value for key, value in dashboard.items() if key not in EXPORT}


def test_it_is_what_grafana_publishes(dashboard: dict[str, Any]) -> None:
    assert problems(core(dashboard), Dashboard) == []


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (["refesh"], "30s", "not in the schema"),
        (["graphTooltip"], 3, "is not a DashboardCursorSync"),
        (["panels", 1, "gridPos", "w"], "4", "is not <class 'int'>"),
        (["panels", 1, "options", "graphMode"], "bars", "is not a BigValueGraphMode"),
        (["panels", 1, "targets", 0, "query"], "up", "not in the schema"),
        (
            ["panels", 1, "fieldConfig", "defaults", "thresholds", "mode"],
            "relative",
            "is not a ThresholdsMode",
        ),
    ],
)
def test_a_mistake_would_be_found(
    dashboard: dict[str, Any], path: list[str | int], value: object, complaint: str
) -> None:
    wrong = json.loads(json.dumps(core(dashboard)))
    place = wrong
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    found = problems(wrong, Dashboard)
    assert len(found) == 1
    assert complaint in found[0]


def test_overrides_set_what_fields_have(dashboard: dict[str, Any]) -> None:
    overrides = [each for panel in panels(dashboard) for each in panel["fieldConfig"]["overrides"]]
    assert overrides
    for each in (one for override in overrides for one in override["properties"]):
        custom, _, name = each["id"].rpartition(".")
        kind = common.GraphFieldConfig if custom == "custom" else FieldConfig
        assert problems({name: each["value"]}, kind) == []


def test_the_export_asks_for_a_data_source_and_says_what_it_needs(dashboard: dict[str, Any]) -> None:
    (given,) = dashboard["__inputs"]
    assert (given["type"], given["pluginId"]) == ("datasource", "prometheus")
    variable = dashboard["templating"]["list"][0]
    assert variable["current"]["value"] == f"${{{given['name']}}}"
    needed = {(each["type"], each["id"]) for each in dashboard["__requires"]}
    kinds = {("panel", panel["type"]) for panel in panels(dashboard)}
    assert needed == {("grafana", "grafana"), ("datasource", "prometheus"), *kinds}


def test_each_panel_is_explained_and_has_a_unit_and_thresholds(dashboard: dict[str, Any]) -> None:
    known = {value for value in vars(units).values() if isinstance(value, str)}
    for panel in panels(dashboard):
        defaults = panel["fieldConfig"]["defaults"]
        assert len(panel["description"]) > 25, panel["title"]
        assert defaults["unit"] in known, panel["title"]
        assert defaults["thresholds"]["steps"][0]["value"] is None, panel["title"]


def test_panels_have_names_of_their_own(dashboard: dict[str, Any]) -> None:
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(titles) == len(set(titles))


def test_panels_fill_the_grid_without_overlap(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert taken == {(x, y) for x in range(24) for y in range(max(y for _, y in taken) + 1)}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_queries_are_filtered_by_the_variables(file: str, dashboard: dict[str, Any]) -> None:
    assert {each["name"] for each in dashboard["templating"]["list"]} == VARIABLES[file]
    for expression in expressions(dashboard):
        used = set(re.findall(r"\$\{?(\w+)", expression))
        assert used <= VARIABLES[file] | BUILT_IN
        selectors = re.findall(r"(\w+)\{(.*?)\}", expression)
        assert selectors
        for metric, labels in selectors:
            assert 'job=~"$job"' in labels
            assert 'instance=~"$instance"' in labels
            of_a_region = "region" in VARIABLES[file] and metric.startswith("shadowmesh_")
            assert ('region=~"$region"' in labels) == of_a_region
    sources = {json.dumps(panel["datasource"]) for panel in panels(dashboard)}
    sources |= {
        json.dumps(target["datasource"]) for panel in panels(dashboard) for target in panel["targets"]
    }
    assert sources == {'{"type": "prometheus", "uid": "${datasource}"}'}
