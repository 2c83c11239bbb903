"""The packets that other tests trust."""

from __future__ import annotations

import pytest

from shadowmesh.testing.packets import (
    ICMP,
    ICMPV6,
    ip_packet,
    is_valid,
    slow_sum,
    tcp_packet,
    udp_packet,
    unfinished,
)

PAIRS = [("10.10.10.1", "10.10.10.7"), ("fd00::1", "fd00::7")]


def test_sum_of_a_published_header() -> None:
    # The worked example of RFC 1071's method that Wikipedia's "Internet checksum" shows.
    header = bytes.fromhex("45000073000040004011b861c0a80001c0a800c7")
    assert slow_sum(header) == 0xFFFF
    assert slow_sum(header[:10] + header[12:]) == 0xFFFF - 0xB861


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_every_changed_byte_that_counts_is_noticed(source: str, destination: str) -> None:
    icmp = ip_packet(source, destination, ICMP if "." in source else ICMPV6, b"\x80" + bytes(9))
    for packet in (tcp_packet(source, destination, b"odd"), udp_packet(source, destination, b"even"), icmp):
        assert is_valid(packet)
        for at in range(12 if "." in source else 8, len(packet)):
            assert not is_valid(packet[:at] + bytes([packet[at] ^ 0x10]) + packet[at + 1 :])
        assert not is_valid(packet + b"\0\0")


def test_a_record_holds_the_sum_of_the_pseudo_header() -> None:
    packet = udp_packet("10.10.10.1", "10.10.10.7", b"data")
    record = unfinished(packet, 1000)
    assert record[:10] == bytes.fromhex("01051c00e80314000600")
    assert record[10:36] + record[38:] == packet[:26] + packet[28:]
    assert record[36:38] == (0x0A0A + 0x0A01 + 0x0A0A + 0x0A07 + 17 + 12).to_bytes(2, "big")
