from __future__ import annotations

from bench.soak_watch import Sample, private_kb, read_metrics

TEXT = """\
# HELP shadowmesh_relay_frames_total Data frames received from clients.
# TYPE shadowmesh_relay_frames_total counter
shadowmesh_relay_frames_total{region="r"} 10.0
shadowmesh_relay_frames_relayed_total{region="r"} 6.0
shadowmesh_relay_frames_dropped{region="r"} 3.0
shadowmesh_relay_frames_queued{region="r"} 1.0
shadowmesh_relay_drops_total{reason="not_here",region="r"} 1.0
shadowmesh_relay_drops_total{reason="queue_full",region="r"} 2.0
shadowmesh_relay_latency_ms{quantile="0.99",region="r"} 1.5
shadowmesh_build_info{region="r",version="1"} 1.0
process_open_fds 7.0
"""
SMAPS = """\
Rss:               70000 kB
Private_Clean:      1000 kB
Private_Dirty:     50000 kB
Private_Hugetlb:       0 kB
"""


def sample(text: str) -> Sample:
    return Sample(0.0, 0.0, 0.0, 0.0, 0, 0, (), 0, read_metrics(text))


def test_a_scrape_is_read_with_its_one_label() -> None:
    metrics = read_metrics(TEXT)
    assert metrics["frames_total"] == 10
    assert metrics["drops_total{not_here}"] == 1
    assert metrics["latency_ms{0.99}"] == 1.5
    assert not any("build" in name or "process" in name for name in metrics)


def test_every_frame_has_to_be_somewhere() -> None:
    assert sample(TEXT).lost == 0
    assert sample(TEXT.replace('frames_queued{region="r"} 1.0', 'frames_queued{region="r"} 0.0')).lost == 1
    assert sample(TEXT.replace('not_here",region="r"} 1.0', 'not_here",region="r"} 2.0')).lost == 2


def test_private_memory_is_the_clean_and_the_dirty() -> None:
    assert private_kb(SMAPS) == 51000
