"""The guide's client file, filled in: to change a line of, to load, and to read the mistakes of."""

from __future__ import annotations

import pytest

from shadowmesh.config import ClientConfig, parse_client_config
from shadowmesh.errors import ConfigError
from shadowmesh.testing import guide

KEY = "9f2c4e6a81b3d5f7092b4d6f8193a5c7e9fb0d1f31537597b9dbfd1e3f507294"
NEXT = "1f2c4e6a81b3d5f7092b4d6f8193a5c7e9fb0d1f31537597b9dbfd1e3f507294"
API_KEY = "smk_abcdefgh_0123456789abcdefghijklmnopqrstuvwxyz-_ABCDE"
FILLED = (
    guide.CLIENT_CONFIG.replace("10.10.10.X", "10.10.10.7")
    .replace("YOUR_64_CHAR_HEX_KEY", KEY)
    .replace("YOUR_RELAY_IP", "203.0.113.9")
)
"""With the guide's example of a name, of which there is a warning."""
NAMED = FILLED.replace("client-unique-id", "laptop")
"""With a name of its own, too: without a mistake or a warning."""


def changed(old: str, new: str) -> str:
    """NAMED with its one `old` replaced."""
    assert NAMED.count(old) == 1
    return NAMED.replace(old, new)


def load(content: str) -> ClientConfig:
    return parse_client_config(content.encode(), "c.yaml").config


def problems(content: str) -> list[str]:
    """The mistakes that are found in the file `c.yaml`, none of which may show a key."""
    with pytest.raises(ConfigError) as caught:
        parse_client_config(content.encode(), "c.yaml")
    assert KEY not in str(caught.value)
    assert API_KEY[13:] not in str(caught.value)
    return caught.value.problems
