"""Talking to the daemon on this host by its local API, with every failure in words."""

from __future__ import annotations

import http.client
import json
import os
import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from shadowmesh.errors import ShadowMeshError

CONFIG = "/etc/shadowmesh/client-config.yaml"
DEFAULT_ADDRESS = "127.0.0.1:9090"
DEFAULT_API = f"http://{DEFAULT_ADDRESS}"
DEFAULT_TOKEN_FILE = "/run/shadowmesh/api.token"
TIMEOUT = 5.0
_MAX_ANSWER = 64 << 20
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")  # as the daemon makes it: 32 bytes in base64url

F = TypeVar("F", bound=Callable[..., object])


class ApiError(ShadowMeshError):
    """The daemon did not do what was asked; the text says why and what to do."""


def connection(command: F) -> F:
    """The options that say which daemon a command is about, for a command with a parameter `daemon`."""
    for option in (
        click.option("--token-file", metavar="FILE", help=f"Default: {DEFAULT_TOKEN_FILE}."),
        click.option("--api", metavar="URL", help=f"Where the daemon answers. Default: {DEFAULT_API}."),
        click.option("--json", "as_json", is_flag=True, help="For programs."),
    ):
        command = option(command)
    return command


class LocalDaemon:
    """The daemon at `api`; without one, where this host's client configuration says, or by default."""

    def __init__(self, api: str | None, token_file: str | None) -> None:
        configured_api, configured_token = DEFAULT_API, DEFAULT_TOKEN_FILE
        if api is None or token_file is None:
            configured_api, configured_token = _configured()
        self.url = (api or configured_api).rstrip("/")
        self._token_file = token_file or configured_token
        try:
            self._host, self._port = _place(self.url)
        except ValueError as error:
            raise click.BadParameter(f"write it as {DEFAULT_API}{error}", param_hint="--api") from None

    def status(self) -> dict[str, Any]:
        """GET /status. Raises ApiError."""
        status, facts = self._ask("GET", "/status")
        if status == 200 and isinstance(facts, dict) and "relays" in facts and "peers" in facts:
            return facts
        raise self._stranger(status, facts)

    def post(self, path: str, timeout: float = TIMEOUT, **fields: object) -> dict[str, Any]:
        """Have something done. Raises ApiError."""
        status, facts = self._ask("POST", path, json.dumps(fields), timeout)
        if not isinstance(facts, dict) or (status != 200 and "error" not in facts):
            raise self._stranger(status, facts)
        if status == 401:
            raise ApiError(
                f"the daemon at {self.url} does not know the token in {self._token_file}: name its own "
                f"daemon.token_file with --token-file ({facts['error']})"
            )
        if status != 200:
            raise ApiError("\n".join([facts["error"], *facts.get("problems", ())]))
        return facts

    def _ask(
        self, method: str, path: str, body: str | None = None, timeout: float = TIMEOUT
    ) -> tuple[int, Any]:
        """(HTTP status, the JSON value of the answer, or its text if it is none)."""
        headers = {}
        if body is not None:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._token()}"}
        client = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        try:
            client.request(method, path, body, headers)
            answer = client.getresponse()
            text = answer.read(_MAX_ANSWER).decode("utf-8", "replace")
        except ConnectionRefusedError:
            raise ApiError(
                f"no daemon answers at {self.url}: is it running (systemctl status shadowmesh)? "
                "If its daemon.listen_address is another one, name it with --api http://HOST:PORT"
            ) from None
        except TimeoutError:
            raise ApiError(f"{self.url} does not answer within {timeout:g} s") from None
        except (http.client.HTTPException, ConnectionError):
            raise self._stranger(0, "") from None
        except OSError as error:
            raise ApiError(f"cannot connect to {self.url}: {error.strerror or error}") from None
        finally:
            client.close()
        try:
            return answer.status, json.loads(text)
        except (ValueError, RecursionError):
            return answer.status, text

    def _token(self) -> str:
        try:
            with open(self._token_file, "rb") as file:
                found = file.read(1024).decode("ascii", "replace").strip()
        except PermissionError:
            raise ApiError(
                f"{self._token_file} may not be read by this user: add yourself to the group shadowmesh "
                "(sudo usermod -aG shadowmesh $USER, then log in anew), or use sudo"
            ) from None
        except FileNotFoundError:
            self.status()  # a daemon that is not there is the better thing to say
            raise ApiError(
                f"there is no token in {self._token_file}: if the daemon has another daemon.token_file, name "
                "it with --token-file; its log says so if it could not write one"
            ) from None
        except IsADirectoryError:
            found = ""
        except OSError as error:
            raise ApiError(f"cannot read {self._token_file}: {error.strerror or error}") from None
        if not _TOKEN.fullmatch(found):  # and whatever it is, it is neither sent nor shown
            raise ApiError(
                f"{self._token_file} is no token file: name the daemon's daemon.token_file with --token-file"
            )
        return found

    def _stranger(self, status: int, facts: Any) -> ApiError:
        """What to say of an answer that is not our daemon's."""
        if isinstance(facts, dict) and "error" in facts and status == 403:
            return ApiError(f"the daemon at {self.url} refuses: {facts['error']}")
        what = "another program"
        if isinstance(facts, dict) and "max_connections" in facts:
            what = "the health port of a relay"
        elif status == 404:
            _, metrics = self._ask("GET", "/metrics")
            if "shadowmesh_relay_" in str(metrics):
                what = "the metrics port of a relay"
        return ApiError(
            f"{what} answers at {self.url}, not this host's daemon: set daemon.listen_address to a free "
            "port, such as 127.0.0.1:9091, and name it with --api http://127.0.0.1:9091"
        )


def _place(url: str) -> tuple[str, int]:
    """Host and port of the API's URL. Raises ValueError, with what there is to add to an example of one.

    The daemon answers to an IP or localhost only, so no name is looked up, which could take its time.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 80
    except ValueError:
        raise ValueError("") from None
    if (
        parts.scheme != "http"
        or not host
        or parts.path
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
    ):
        raise ValueError("")
    if host != "localhost":
        try:
            ip_address(host)
        except ValueError:
            raise ValueError(
                ": an IP address or localhost, for the daemon answers to no other name"
            ) from None
    return host, port


def api_url(host: str, port: int) -> str:
    """Where a daemon answers that listens there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _configured() -> tuple[str, str]:
    """(API, token file) by this host's client configuration, if that can be read, or the defaults."""
    if not os.access(CONFIG, os.R_OK):
        return DEFAULT_API, DEFAULT_TOKEN_FILE
    from shadowmesh.config import load_daemon_section

    daemon = load_daemon_section(CONFIG)
    if daemon is None:
        return DEFAULT_API, DEFAULT_TOKEN_FILE  # check-config is there for its mistakes
    return api_url(*daemon.listen_address), daemon.token_file
