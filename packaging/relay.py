"""The program in packages and releases."""

from shadowmesh.cli.packaged import start
from shadowmesh.cli.relay import main

start(main)
