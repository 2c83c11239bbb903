"""The program in packages and releases."""

from shadowmesh.cli.daemon import main
from shadowmesh.cli.packaged import start

start(main)
