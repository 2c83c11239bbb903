"""API keys of a relay, as text: `smk_<id>_<secret>`. Pure.

The id says which key it is and may be shown; the secret is 256 random bits in base64url.
"""

from __future__ import annotations

import re
from base64 import b32encode, urlsafe_b64encode

KEYS_FILE = "/etc/shadowmesh/relay-keys.json"
"""Where a relay keeps the hashes of its keys, unless it is told otherwise."""
ID_BYTES = 5
SECRET_BYTES = 32
API_KEY = re.compile(r"smk_([a-z2-7]{8})_[A-Za-z0-9_-]{43}")
"""An API key as a whole; its first group is the id."""
KEY_ID = re.compile(r"[a-z2-7]{8}")


def key_text(key_id: str, secret: bytes) -> str:
    """The key as its owner gets it. key_id: 8 of a-z and 2-7; secret: 32 bytes."""
    return f"smk_{key_id}_{urlsafe_b64encode(secret).rstrip(b'=').decode()}"


def key_id(random: bytes) -> str:
    """An id of 5 random bytes."""
    return b32encode(random).decode().lower()
