"""What `bench faults` makes of its tries."""

from __future__ import annotations

from bench.faults import Outages, markdown


def test_marks() -> None:
    assert Outages("stopped", [0.1] * 10).met
    assert not Outages("stopped", [0.1] * 9 + [3.1]).met
    assert Outages("relay_black_hole", [0.1] * 9 + [3.1]).met
    assert not Outages("stopped").met
    assert not Outages("stopped", [0.1], ["the transfer has ended"]).met


def test_table() -> None:
    text = markdown(
        [Outages("stopped", [0.1, 0.3, 4.0]), Outages("relay_drains", [], ["no"])], {"kernel": "x"}
    )
    assert "| daemon stopped for 5 s (sleep) | 0.30 s | 4.00 s | 4.00 s | < 3 s, **missed** | 3 |" in text
    assert "| relay drains, started again | – | – | – | < 3 s, **missed** | 0, 1 failed |" in text
    assert text.endswith("kernel: x\n")
