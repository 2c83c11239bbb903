"""Sockets: the WebSocket layer of relay and daemon, and the HTTP server of the admin ports."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

READ_PER_TURN = 60 * 1024
"""Bytes after which a connection has to wait for its next turn, so that a busy one keeps no other waiting.
With less, bulk traffic gets slower; with more, nothing gets faster."""


def _bound_reads() -> None:
    """Set READ_PER_TURN in aiofastnet, which takes 256 KiB, and that when it is imported."""
    package = PathFinder.find_spec("aiofastnet")
    if package is None or "aiofastnet" in sys.modules:
        return
    spec = PathFinder.find_spec("aiofastnet.constants", package.submodule_search_locations)
    if spec is None or spec.loader is None:
        return
    constants = module_from_spec(spec)
    spec.loader.exec_module(constants)
    constants.MAX_READ_BYTES_PER_CYCLE_HINT = READ_PER_TURN  # type: ignore[attr-defined]
    sys.modules[spec.name] = constants


_bound_reads()
