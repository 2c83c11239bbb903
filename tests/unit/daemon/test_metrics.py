"""The client's metrics: names, types and numbers, as Prometheus reads them and as the page lists them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from shadowmesh import __version__
from shadowmesh.daemon.diagnosis import KINDS
from shadowmesh.daemon.metrics import collect
from shadowmesh.observe.metrics import Exposition
from shadowmesh.testing.memory import MemoryMesh
from shadowmesh.testing.prometheus import promtool
from shadowmesh.testing.reports import FakeLink, Reported

PAGE = Path(__file__).parents[3] / "docs/monitoring.md"


class Busy:
    """A node that has lived: every metric has a sample."""

    def __init__(self) -> None:
        self.world = MemoryMesh(2)
        self.a, self.b = self.world.nodes
        self.links = FakeLink("relay-a"), FakeLink("relay-b")
        self.reported = Reported(self.world, self.a, *self.links)
        self.world.meet(self.a, self.b)
        self.a.ping(self.b)
        self.links[0].rtt = 0.02
        self.links[0].refused = {self.a.addresses[0]: "address_in_use"}
        self.links[1].lose("the connection was lost")
        self.a.drops["no_route"] += 3
        for _ in range(2):
            self.reported.event(
                "relay_lost", relay=self.links[1].url, code=None, reason="the connection was lost"
            )
        self.exposition = Exposition(lambda: collect(self.reported.report))

    def text(self, accept: str = "") -> str:
        return self.exposition.render(accept)[0].decode()

    def value(self, name: str, **labels: str) -> float:
        samples = [sample for family in plain(self.text()) for sample in family.samples]
        (value,) = [each.value for each in samples if each.name == name and each.labels == labels]
        return float(value)


def test_promtool_has_no_remark() -> None:
    checked = promtool("check", "metrics", stdin=Busy().text())
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_numbers() -> None:
    busy = Busy()
    a, b = busy.links
    assert busy.value("shadowmesh_daemon_connected") == 1
    assert busy.value("shadowmesh_daemon_down") == 0
    assert busy.value("shadowmesh_daemon_peers") == busy.value("shadowmesh_daemon_peers_connected") == 1
    assert busy.value("shadowmesh_daemon_handshakes_total") == 1
    assert busy.value("shadowmesh_daemon_bytes_sent_total") == busy.reported.report.totals().bytes_out > 0
    assert busy.value("shadowmesh_daemon_drops_total", reason="no_route") == 3
    assert busy.value("shadowmesh_daemon_events_total", event="session") == 1
    assert busy.value("shadowmesh_daemon_relay_connected", server=a.url) == 1
    assert busy.value("shadowmesh_daemon_relay_connected", server=b.url) == 0
    assert busy.value("shadowmesh_daemon_relay_rtt_seconds", server=a.url) == 0.02
    assert busy.value("shadowmesh_daemon_relay_lost_total", server=b.url, reason="lost") == 2
    assert busy.value("shadowmesh_daemon_relay_addresses_refused", server=a.url) == 1
    assert busy.value("shadowmesh_daemon_trouble", code="duplicate_local_ip") == 1
    busy.reported.report.down = True
    assert busy.value("shadowmesh_daemon_connected") == 0
    assert busy.value("shadowmesh_daemon_down") == 1
    assert busy.value("shadowmesh_daemon_relay_connected", server=a.url) == 0


def test_changed_and_refused_identities_count() -> None:
    busy = Busy()
    peer = busy.a.peer(busy.b)
    busy.reported.event("identity_changed", ip=busy.b.ip(), peer=peer)
    busy.reported.event("identity_refused", ip=busy.b.ip(), static=bytes(32))
    busy.reported.event("identity_refused", ip=busy.b.ip(), static=bytes(32))
    assert busy.value("shadowmesh_daemon_identity_changed_total") == 1
    assert busy.value("shadowmesh_daemon_identity_refused_total") == 2
    assert busy.value("shadowmesh_daemon_trouble", code="identity_changed") == 1


def test_two_connections_to_one_relay_are_one_series() -> None:
    """As there are while the network key is replaced."""
    busy = Busy()
    busy.reported.report.links = [busy.links[0], FakeLink("relay-a")]
    assert busy.value("shadowmesh_daemon_relay_joins_total", server=busy.links[0].url) == 2
    assert busy.value("shadowmesh_daemon_relay_connected", server=busy.links[0].url) == 1
    assert busy.value("shadowmesh_daemon_relay_rtt_seconds", server=busy.links[0].url) == 0.02
    assert promtool("check", "metrics", stdin=busy.text()).returncode == 0


def test_a_scrape_does_not_look_at_each_session() -> None:
    """What it costs is taken from the data path."""
    busy = Busy()
    seen: list[str] = []
    busy.reported.report.peers = lambda: seen.append("peers") or []  # type: ignore[func-returns-value,method-assign]
    busy.text()
    assert not seen


def test_no_label_names_a_peer_or_a_key() -> None:
    busy = Busy()
    text = busy.text()
    for name in ("10.10.10.2", "fd00::2", '"b"', busy.a.peer(busy.b).fingerprint):
        assert name not in text


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_the_page_lists_exactly_what_is_exposed(accept: str) -> None:
    page = PAGE.read_text().partition("\n## Metrics of a client\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|(.*?)\|", page, re.MULTILINE)
    listed = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    text = Busy().text(accept)
    exposed: dict[str, tuple[str, set[str]]] = {}
    for family in (openmetrics if accept else plain)(text):
        labels = {label for sample in family.samples for label in sample.labels}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        exposed[name] = (family.type, labels)
    assert listed == exposed


def test_the_page_lists_every_reason_of_a_loss() -> None:
    page = PAGE.read_text().partition("\n## Metrics of a client\n")[2].partition("\n## ")[0]
    line = page.partition("The `reason` of a lost connection: ")[2].partition(". Most")[0]
    assert set(re.findall(r"`(\w+)`", line)) == set(KINDS)


def test_the_version_is_told() -> None:
    assert 'shadowmesh_build_info{python_version="' in Busy().text()
    assert f'version="{__version__}"' in Busy().text()
