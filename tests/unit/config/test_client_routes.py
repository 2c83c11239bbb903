"""network.routes and network.advertise of the client's file: every mistake has its exact line."""

from __future__ import annotations

import pytest

from shadowmesh.testing.client_file import changed, problems

OVERLAY = "10.10.10.0/24"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "routes",
            "x",
            "9:11: network.routes: must be a list; write [ ] around its values, or each into a line that "
            'begins with "- "',
        ),
        (
            "routes",
            "[[x]]",
            '9:12: network.routes[0]: must be a section, with lines such as "key: value" below it',
        ),
        (
            "routes",
            "[192.168.50.0/24]",
            "9:12: network.routes[0]: lacks its peer; write {to: 192.168.50.0/24, via: IP of a peer}",
        ),
        (
            "routes",
            "[{to: 192.168.7.0/24}]",
            '9:12: network.routes[0].via: is missing; write it under "routes:", such as via: "10.10.10.7"',
        ),
        (
            "routes",
            "[{to: 192.168.7.0/24, via: 10.10.10.9, metric: 3}]",
            "9:50: network.routes[0].metric: unknown key; known here are to, via",
        ),
        (
            "routes",
            "[{to: 192.168.7.1/24, via: 10.10.10.9}]",
            "9:17: network.routes[0].to: 192.168.7.1/24 has bits set behind its prefix; write 192.168.7.0/24",
        ),
        (
            "routes",
            "[{to: 192.168.7.0/24, via: 10.10.10.9}, {to: 192.168.7.0/24, via: 10.10.10.8}]",
            "9:56: network.routes[1].to: 192.168.7.0/24 is given twice; keep one of them",
        ),
        (
            "routes",
            "[{to: 10.0.0.0/8, via: 10.10.10.9}]",
            f"9:17: network.routes[0].to: 10.0.0.0/8 overlaps the overlay network {OVERLAY}; write "
            f"one outside of it",
        ),
        (
            "routes",
            "[{to: 192.168.7.0/24, via: 10.10.11.9}]",
            f"9:38: network.routes[0].via: 10.10.11.9 is outside of the overlay network; write the IP "
            f"of a peer in {OVERLAY}",
        ),
        (
            "routes",
            "[{to: 192.168.7.0/24, via: 10.10.10.7}]",
            "9:38: network.routes[0].via: 10.10.10.7 is this device itself; write the overlay IP of "
            "the peer before it",
        ),
        (
            "routes",
            "[{to: 203.0.113.0/24, via: 10.10.10.9}]",
            "22:11: relay.server: 203.0.113.9 lies in 203.0.113.0/24, which goes into the tunnel; "
            "write an address outside of it",
        ),
        (
            "routes",
            f"[{'{to: 192.168.7.0/24, via: 10.10.10.9},' * 65}]",
            "9:11: network.routes: has too many entries; at most 64 are allowed",
        ),
        (
            "advertise",
            "[10.10.10.0/25]",
            f"9:15: network.advertise[0]: 10.10.10.0/25 overlaps the overlay network {OVERLAY}; write "
            f"one outside of it",
        ),
        (
            "advertise",
            "[172.16.0.0/16, 172.16.0.0/16]",
            "9:30: network.advertise[1]: 172.16.0.0/16 is given twice; keep one of them",
        ),
    ],
)
def test_routes(key: str, value: str, expected: str) -> None:
    lines = problems(
        changed("\n\nencryption:", f"\n  {key}: {value}\nencryption:").replace(
            "  # Unique IP for each client", ""
        )
    )
    assert lines == [f"c.yaml:{expected}"]


def test_a_mistake_in_a_route_does_not_hide_another() -> None:
    routes = "{to: 192.168.7.1/24, via: 10.10.11.9}, {via: 10.10.10.7}, {to: 192.168.8.0/24, via: x}, x"
    assert problems(changed("\n\nencryption:", f"\n  routes: [{routes}]\n\nencryption:")) == [
        "c.yaml:9:17: network.routes[0].to: 192.168.7.1/24 has bits set behind its prefix; "
        "write 192.168.7.0/24",
        f"c.yaml:9:38: network.routes[0].via: 10.10.11.9 is outside of the overlay network; write the IP "
        f"of a peer in {OVERLAY}",
        'c.yaml:9:51: network.routes[1].to: is missing; write it under "routes:", such as '
        'to: "192.168.7.0/24"',
        "c.yaml:9:57: network.routes[1].via: 10.10.10.7 is this device itself; write the overlay IP of "
        "the peer before it",
        'c.yaml:9:96: network.routes[2].via: "x" is not an IP address; write one such as 10.10.10.7',
        "c.yaml:9:100: network.routes[3]: lacks its peer; write {to: x, via: IP of a peer}",
    ]


def test_a_prefix_is_not_both_reached_and_offered() -> None:
    both = "\n  routes: [{to: 192.168.7.0/24, via: 10.10.10.9}]\n  advertise: [192.168.7.0/24]\n\nencryption:"
    assert problems(changed("\n\nencryption:", both)) == [
        "c.yaml:10:15: network.advertise[0]: 192.168.7.0/24 is also in network.routes; keep it in one of them"
    ]
