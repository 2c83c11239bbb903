"""What a running relay can take over from its file when that is read again (SIGHUP). Pure."""

from __future__ import annotations

from shadowmesh.config.relay import RelayConfig

RESTART = frozenset({"relay_port", "bind_address", "worker_threads"})
"""Keys of the clients' port, and of processes that run; all others apply while clients stay."""


def needs_restart(old: RelayConfig, new: RelayConfig) -> list[str]:
    """One line for each key of `new` that a relay running with `old` cannot take over."""
    return [
        f"needs a restart: {name} {_shown(getattr(old, name))} -> {_shown(getattr(new, name))}"
        for name in _refused(old, new)
    ]


def merged(old: RelayConfig, new: RelayConfig) -> RelayConfig:
    """`new` with the values of `old` for the keys that need a restart."""
    return new.model_copy(update={name: getattr(old, name) for name in _refused(old, new)})


def changed(old: RelayConfig, new: RelayConfig) -> tuple[str, ...]:
    """Names of the keys that `merged(old, new)` changes, in the order of the model."""
    refused = _refused(old, new)
    return tuple(name for name in _different(old, new) if name not in refused)


def _different(old: RelayConfig, new: RelayConfig) -> list[str]:
    return [name for name in RelayConfig.model_fields if getattr(old, name) != getattr(new, name)]


def _refused(old: RelayConfig, new: RelayConfig) -> list[str]:
    return [name for name in _different(old, new) if name in RESTART]


def _shown(value: object) -> str:
    return "(every address)" if value is None else str(value)
