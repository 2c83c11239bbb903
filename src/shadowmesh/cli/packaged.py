"""What the programs of packages and releases start with: each is `shadowmesh`, too, when it is called so."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from shadowmesh import onefile


def start(program: Callable[[], None]) -> None:
    """Run the program, or `shadowmesh` if the file has that name."""
    files = onefile.unpacked()
    main = _ctl if os.path.basename(sys.argv[0]) == "shadowmesh" else program
    if files is None:
        main()
    else:
        onefile.run(main, files)


def _ctl() -> None:
    from shadowmesh.cli.ctl import main

    onefile.interrupt_once()
    main()
