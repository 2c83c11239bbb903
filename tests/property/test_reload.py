"""Invariant: of any two valid relay configurations each different key is either applied or refused in words,
and a second reload of the same file changes nothing more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.config import RelayConfig
from shadowmesh.config.reload import RESTART, changed, merged, needs_restart

CONFIGS = st.builds(
    RelayConfig,
    relay_port=st.integers(1000, 1003),
    health_port=st.integers(2000, 2003),
    metrics_port=st.integers(3000, 3003),
    bind_address=st.sampled_from(["127.0.0.1", "::1"]),
    metrics_bind=st.sampled_from(["127.0.0.1", "::1"]),
    metrics_enabled=st.booleans(),
    worker_threads=st.integers(1, 3),
    max_connections=st.integers(1, 3),
    log_level=st.sampled_from(["info", "debug"]),
)


@given(CONFIGS, CONFIGS)
def test_applied_or_refused(old: RelayConfig, new: RelayConfig) -> None:
    both = merged(old, new)
    refused = [line.split()[3] for line in needs_restart(old, new)]
    applied = changed(old, new)
    different = {name for name in RelayConfig.model_fields if getattr(old, name) != getattr(new, name)}
    assert {*refused, *applied} == different
    assert not set(refused) & set(applied)
    assert set(refused) == different & RESTART
    for name in RelayConfig.model_fields:
        assert getattr(both, name) == getattr(old if name in refused else new, name)
    assert changed(old, both) == applied
    assert needs_restart(old, both) == []
    assert changed(both, new) == ()
    assert merged(both, new) == both
