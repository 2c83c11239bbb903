"""What a running daemon can take over from its file when that is read again (SIGHUP, POST /reload). Pure."""

from __future__ import annotations

from typing import Any

from shadowmesh.config.client import ClientConfig
from shadowmesh.config.values import Model

LIVE = frozenset({"relay", "peers", "daemon.log_level"})
"""Sections and keys that apply while the tunnel stays up; all others need a restart."""
_BESIDE_OVERLAY = frozenset({"routes", "advertise"})
"""Keys of `network` that apply, too, as long as `local_ip`, which they were checked against, stays."""
_PLACES = frozenset({"encryption.key_file", "encryption.next_key_file"})
"""Keys that only say where another one stands."""


def needs_restart(old: ClientConfig, new: ClientConfig) -> list[str]:
    """One line for each key of `new` that a daemon running with `old` cannot take over."""
    return [
        f"needs a restart: {section}.{key}" + _values(getattr(getattr(old, section), key), value)
        for section, key, value in _different(old, new)
        if not _is_live(section, key, old, new)
    ]


def merged(old: ClientConfig, new: ClientConfig) -> ClientConfig:
    """`new` with the values of `old` for the keys that need a restart."""
    sections: dict[str, Model] = {}
    for section, key, _ in _different(old, new):
        if not _is_live(section, key, old, new):
            current = sections.get(section) or getattr(new, section)
            kept = getattr(getattr(old, section), key)
            sections[section] = current.model_copy(update={key: kept})
    return new.model_copy(update=sections)


def changed(old: ClientConfig, new: ClientConfig) -> tuple[str, ...]:
    """Names of the keys that `merged(old, new)` changes, in the order of the model."""
    return tuple(
        f"{section}.{key}" for section, key, _ in _different(old, new) if _is_live(section, key, old, new)
    )


def _different(old: ClientConfig, new: ClientConfig) -> list[tuple[str, str, Any]]:
    return [
        (section, key, value)
        for section in ClientConfig.model_fields
        for key, value in getattr(new, section)
        if value != getattr(getattr(old, section), key) and f"{section}.{key}" not in _PLACES
    ]


def _is_live(section: str, key: str, old: ClientConfig, new: ClientConfig) -> bool:
    if section == "encryption":  # a network that this device is in already can become the first
        return new.encryption.key in (old.encryption.key, old.encryption.next_key)
    if section == "network":
        return key in _BESIDE_OVERLAY and new.network.local_ip == old.network.local_ip
    return section in LIVE or f"{section}.{key}" in LIVE


def _values(old: object, new: object) -> str:
    """What is told of two short values: nothing of a secret, a list or a section."""
    if isinstance(old, (str, int)) and isinstance(new, (str, int)):
        return f" {old} -> {new}"
    if isinstance(old, tuple) and hasattr(old, "port"):
        return f" {old[0]}:{old[1]} -> {new[0]}:{new[1]}"  # type: ignore[index]
    return ""
