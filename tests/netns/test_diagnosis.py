"""Each usual mistake is made with the real programs, and read in log, /status and `shadowmesh status`."""

from __future__ import annotations

import ast
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shadowmesh.testing import guide
from shadowmesh.testing.certificates import make_certificate
from shadowmesh.testing.netlab import RELAY_IP4, Host, Lab, installed
from shadowmesh.testing.program import Program

pytestmark = pytest.mark.netns

KEY = secrets.token_hex(32)
A, B, C = "10.10.10.1", "10.10.10.2", "10.10.10.3"
OTHER_PORT = 9645
SOURCE = Path(__file__).parents[2] / "src/shadowmesh"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A network in which a and b are well; c is for mistakes."""
    with Lab("a", "b", "c") as lab:
        lab.start_relay()
        lab.start_client("a", f"{A}/24", KEY, wait=False)
        lab.start_client("b", f"{B}/24", KEY, wait=False)
        lab.wait_connected("a")
        lab["a"].wait_for_ping(B)
        yield lab


@pytest.fixture(autouse=True)
def clean(lab: Lab) -> Iterator[None]:
    """After a test, its programs end and a is well."""
    before = len(lab.programs)
    yield
    for program in reversed(lab.programs[before:]):
        program.stop()
    lab.wait_connected("a")


def cli(lab: Lab, host: str, *arguments: str) -> tuple[int, str]:
    """Exit status and output of `shadowmesh ...` on a host, on one line."""
    argv = [installed("shadowmesh"), *arguments, "--token-file", str(lab.token_file(host))]
    done = lab[host].run("env", "COLUMNS=1000", *argv, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def told(lab: Lab, host: str, code: str, words: str, line: str = "") -> str:
    """Wait for this code in /status, its words there and in the table, and a log line; returns the words."""
    program = lab.client_programs[host]

    def look() -> str | None:
        for each in (lab.status(host) or {}).get("diagnosis", []):
            if each["code"] == code:
                return str(each["text"])
        return None

    text = program.wait_for(look, f"diagnosis {code}", 20)
    assert words in text
    status, shown = cli(lab, host, "status")
    assert status == 1
    assert code in shown
    assert words in shown
    program.wait_for_text(line or words)
    return text


def start(lab: Lab, ip: str = C, key: str = KEY, name: str = "c", **changes: Any) -> Program:
    """Start c with a mistake."""
    return lab.start_client("c", f"{ip}/24", key, peer_id=name, wait=False, **changes)


def start_other_relay(lab: Lab, **changes: Any) -> str:
    """One more relay on the relay's host; its place."""
    ports = {"relay_port": OTHER_PORT, "health_port": 8180, "metrics_port": 9190}
    config = lab.write("other-relay.yaml", guide.merged(guide.RELAY_CONFIG, ports | changes))
    program = lab.relay.start(installed("shadowmesh-relay"), "-config", str(config), name="other-relay")
    program.wait_for_text("relay is ready")
    return f"{RELAY_IP4}:{OTHER_PORT}"


# -- the same thing twice


@pytest.mark.parametrize(
    ("ip", "name", "what", "key"),
    [(A, "c", A, "network.local_ip"), (C, "a", "a", "peer.id")],
    ids=["local_ip", "id"],
)
def test_two_devices_with_one_address_are_both_told(
    lab: Lab, ip: str, name: str, what: str, key: str
) -> None:
    start(lab, ip, name=name)
    code = f"duplicate_{key.rpartition('.')[2]}"
    told(lab, "c", code, f"another device has {what}", f"gives this address to another.* address={what} ")
    told(lab, "a", code, f"another device wanted {what}", f"asks for this address .* address={what}\n")
    lab["a"].wait_for_ping(B)  # who was first is not disturbed


def test_both_of_two_copies_of_a_device_are_told(lab: Lab) -> None:
    shutil.copytree(lab.directory / "state-a", lab.directory / "state-c", dirs_exist_ok=True)
    start(lab, "10.10.10.4")  # the relay keeps it for 30 s
    words = "another process uses this device's key"
    try:
        assert "remove device.key" in told(lab, "a", "duplicate_device", words)
        cli(lab, "a", "down")
        assert cli(lab, "a", "up") == (0, "connected")
        told(lab, "c", "duplicate_device", words)
    finally:
        shutil.rmtree(lab.directory / "state-c")


# -- the key, and peers that are not there


def test_a_wrong_key(lab: Lab) -> None:
    start(lab, key=secrets.token_hex(32))
    lab.wait_connected("c")
    assert cli(lab, "c", "status")[0] == 0  # nothing was sent yet
    lab["c"].run("ping", "-n", "-c1", "-W1", A, check=False)
    told(lab, "c", "wrong_key", "encryption.key must be the same on all devices")
    mine, theirs = (lab.status(host) or {} for host in ("c", "a"))
    assert mine["network"] != theirs["network"]


def test_a_peer_that_is_not_there(lab: Lab) -> None:
    """No mistake of this device, so no diagnosis, but the answer to who asks."""
    pinged = lab["b"].run("ping", "-n", "-c1", "-W3", "10.10.10.9", check=False)
    assert "Destination Host Unreachable" in pinged.stdout
    assert cli(lab, "b", "ping", "10.10.10.9", "-c1")[1].startswith("10.10.10.9: no answer; waited for ")
    status, shown = cli(lab, "b", "status")
    assert (status, "not_here" in shown or "held_back" in shown) == (0, True)


# -- the host


def run_wrong(lab: Lab, *before: str) -> str:
    """The last words of a daemon on c that ends at once, behind this command."""
    server = f"ws://{RELAY_IP4}:{guide.RELAY_PORT}"
    config = lab.write("wrong.yaml", guide.client_config(ip=f"{C}/24", key=KEY, peer_id="c", server=server))
    program = lab["c"].start(*before, installed("shadowmesh-daemon"), str(config), name="wrong")
    assert program.wait() == 1
    status, words = cli(lab, "c", "status")
    assert status == 1
    assert "no daemon answers at http://127.0.0.1:9090: is it running" in words
    return program.text()


def test_without_the_capability(lab: Lab) -> None:
    text = run_wrong(lab, "setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin", "--")
    assert "Permission denied creating TUN device shadowmesh0: run the daemon with sudo" in text
    assert "CAP_NET_ADMIN" in text


def test_without_the_tun_module(lab: Lab) -> None:
    """Its device node is not there then."""
    script = 'mount -t tmpfs none /dev/net && exec "$@"'
    text = run_wrong(lab, "unshare", "--mount", "sh", "-c", script, "sh")
    assert "/dev/net/tun: No such file or directory; load the kernel module with `modprobe tun`" in text


# -- something else than the relay


@pytest.mark.parametrize("what", ["web server", "health port", "nothing"])
def test_another_port(lab: Lab, what: str) -> None:
    port, code, words = guide.HEALTH_PORT, "not_a_relay", "it is no relay"
    if what == "web server":
        port = 8000
        server = lab.relay.start(sys.executable, "-m", "http.server", str(port), name="web-server")
        server.wait_for_text("Serving HTTP")
    elif what == "nothing":
        port, code, words = 9999, "refused", "refuses connections: is the relay running"
    start(lab, relay={"server": f"ws://{RELAY_IP4}:{port}"})
    lines = {"refused": words, "not_a_relay": "the server answers, but it is no ShadowMesh relay"}
    text = told(lab, "c", code, words, lines[code])
    assert code == "refused" or "a relay's own port is 9545" in text


def test_certificates(lab: Lab) -> None:
    paths = make_certificate(lab.directory, ["relay.example.org"])
    there = start_other_relay(lab, tls={"cert_file": str(paths.cert), "key_file": str(paths.key)})
    server = {"server": f"wss://{there}"}

    program = start(lab, relay=server)
    text = told(lab, "c", "certificate", "write its certificate as relay.tls_ca_file")
    assert "self-signed certificate" in text or "issuer certificate" in text
    program.stop()

    program = start(lab, relay=server | {"tls_ca_file": str(paths.ca)})
    text = told(lab, "c", "certificate", "relay.server must have a name that stands in it")
    assert "IP address mismatch" in text
    program.stop()

    start(lab, relay={"server": f"ws://{there}"})
    told(lab, "c", "tls", "This port speaks TLS: wss://")


def test_an_expired_certificate(lab: Lab) -> None:
    """Here alone the clock matters, and is shown."""
    paths = make_certificate(lab.directory, [RELAY_IP4], days=0)
    there = start_other_relay(lab, tls={"cert_file": str(paths.cert), "key_file": str(paths.key)})
    start(lab, relay={"server": f"wss://{there}", "tls_ca_file": str(paths.ca)})
    told(lab, "c", "certificate", "this device's clock says 2")


def test_api_keys(lab: Lab) -> None:
    file = lab.directory / "keys.json"
    key = lab.relay.run(installed("shadowmesh"), "relay-keys", "add", "c", "--file", str(file)).stdout.strip()
    there = start_other_relay(lab, auth={"mode": "api_key", "keys_file": str(file)})
    server = {"server": f"ws://{there}", "insecure_api_key": True}
    program = start(lab, relay={"server": server["server"]})
    told(lab, "c", "api_key", "the relay asks for an API key")
    program.stop()
    wrong = key[:-4] + ("AAAA" if key[-4:] != "AAAA" else "BBBB")
    program = start(lab, relay=server | {"api_key": wrong})
    told(lab, "c", "api_key", "the relay refuses our API key")
    assert wrong[13:] not in program.text() + str(lab.status("c"))
    program.stop()
    start(lab, relay=server | {"api_key": key})
    lab.wait_connected("c")
    assert cli(lab, "c", "status")[0] == 0


@pytest.mark.skipif(not shutil.which("tinyproxy"), reason="tinyproxy is not installed: scripts/setup test")
def test_a_proxy_that_refuses(lab: Lab) -> None:
    file = lab.write("tinyproxy.conf", "Port 3128\nMaxClients 20\nBasicAuth user sesame\nConnectPort 443\n")
    proxy = lab.relay.start("tinyproxy", "-d", "-c", str(file))
    proxy.wait_for(lambda: answers(lab["c"], 3128), "port of the proxy")
    program = start(lab, relay={"proxy": f"http://{RELAY_IP4}:3128"})
    text = told(lab, "c", "proxy", "it asks for a user name and password")
    assert "where none is needed: relay.proxy: none" in text
    program.stop()
    start(lab, relay={"proxy": f"http://user:sesame@{RELAY_IP4}:3128"})
    text = told(lab, "c", "proxy", "many proxies allow port 443 only")
    assert "sesame" not in text


def answers(host: Host, port: int) -> bool:
    try:
        host.connect(RELAY_IP4, port).close()
    except OSError:
        return False
    return True


# -- the way


@pytest.mark.skipif(not shutil.which("nft"), reason="nftables is not installed: scripts/setup test")
@pytest.mark.parametrize("way", ["to the relay", "from the relay"])
def test_a_path_that_loses_large_packets(lab: Lab, way: str) -> None:
    """Without a word to the sender; what is advised mends it."""
    host, device = (lab.relay, "to-c") if way == "to the relay" else (lab["c"], "eth0")
    rule = f"add rule inet hole in iifname {device} meta length > 1280 drop"
    chain = "add chain inet hole in { type filter hook input priority 0; }"
    host.run("nft", f"add table inet hole; {chain}; {rule}")
    try:
        start(lab)
        lab.wait_connected("c")
        lab["c"].start("ping", "-n", "-i", "0.3", A)
        lines = {"to the relay": "large packets seem to get lost", "from the relay": "it gets what is sent"}
        text = told(lab, "c", "mtu", "large packets seem to get lost on the way", lines[way])
        if way == "from the relay":  # the harder one to mend from here
            (advice,) = (part for part in text.split("`") if part.startswith("ip link"))
            lab["c"].run(*advice.split())
            lab["c"].wait_for_ping(A, timeout=20)
    finally:
        host.run("nft", "delete table inet hole")
        lab["c"].run("ip", "link", "set", "dev", "eth0", "mtu", "1500")


# -- the clock

WALL = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "ctime", "CLOCK_REALTIME"}
KNOWN = {"daemon/report.py", "net/failure.py", "net/tls.py"}
"""The first two only say what time it is, in a history and about certificates; the third is for relays."""


def test_no_code_of_the_daemon_reads_the_clock() -> None:
    readers = set()
    for room in ("daemon", "mesh", "wire", "crypto", "tun", "net"):
        for file in (SOURCE / room).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Attribute) and node.attr in WALL:
                    of = node.value
                    if isinstance(of, ast.Name) and of.id in {"time", "datetime", "date"}:
                        readers.add(f"{room}/{file.name}")
                elif isinstance(node, ast.ImportFrom) and node.module == "time":
                    readers |= {f"{room}/{file.name}" for alias in node.names if alias.name in WALL}
    assert readers == KNOWN


@pytest.mark.parametrize("now", [0.0, 4e9], ids=["1970", "2096"])
def test_a_device_with_a_wrong_clock_is_well(lab: Lab, now: float) -> None:
    server = f"ws://{RELAY_IP4}:{guide.RELAY_PORT}"
    text = guide.client_config(ip=f"{C}/24", key=KEY, peer_id="c", server=server)
    own = {"state_directory": str(lab.directory / "state-c"), "token_file": str(lab.token_file("c"))}
    config = lab.write("clock.yaml", guide.merged(text, {"daemon": own}))
    script = (
        f"import time; time.time = lambda: {now}; time.time_ns = lambda: int({now} * 1e9); "
        "from shadowmesh.cli.daemon import main; main()"
    )
    lab.client_programs["c"] = lab["c"].start(sys.executable, "-c", script, str(config), name="clock")
    lab.wait_connected("c")
    lab["c"].wait_for_ping(A)
    lab["b"].wait_for_ping(C)
    assert [cli(lab, host, "status")[0] for host in "bc"] == [0, 0]
