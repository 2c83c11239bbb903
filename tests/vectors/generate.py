"""Rewrite the test vectors of the protocol from the slow reference implementation.

    PYTHONPATH=tests python -m vectors.generate

Published vectors of others (cacophony.json, mlkem768.json) are not made here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reference import keys, messages, mlkem, noise, offload
from reference.aead import sha256
from reference.curve25519 import x25519_public
from vectors import texts

HERE = Path(__file__).parent
CONVENTION = "All byte strings are hex unless a key says otherwise. "

SECRET, DEVICE_A, DEVICE_B = bytes(range(32)), bytes(range(32, 64)), bytes(range(64, 96))
IPS = ["10.10.10.1", "10.10.10.2", "10.0.0.0", "192.168.1.255", "::ffff:10.10.10.1", "fd00::1", "2001:db8::1"]
NO_ADDRESS = ["255.255.255.255", "224.0.0.1", "169.254.1.1", "127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1"]
NO_ADDRESS += ["ff02::1", "fe80::1", "::1", "::"]
NAMES = ["laptop", "LapTop", "a", "a.b-c_d", "0" * 63, "0" * 64, "", "-a", "a-", ".a", "a b", "a\n"]
NAMES += ["é", "\u212aelvin"]


def _hex(data: bytes | None) -> str | None:
    return None if data is None else data.hex()


def key_vectors() -> dict[str, Any]:
    """Sections 1 and 2."""
    cases = []
    for secret, seed in ((SECRET, DEVICE_A), (SECRET, DEVICE_B), (bytes(range(224, 256)), DEVICE_A)):
        network = keys.network_id(secret)
        static = keys.static_private(seed, network)
        cases.append(
            {
                "network_key": secret.hex(),
                "device_seed": seed.hex(),
                "network_signing_seed": keys.network_seed(secret).hex(),
                "network_id": network.hex(),
                "peer_psk": keys.peer_psk(secret).hex(),
                "address_key": keys.address_key(secret).hex(),
                "device_signing_seed": keys.device_seed(seed, network).hex(),
                "device_id": keys.device_id(seed, network).hex(),
                "static_private": static.hex(),
                "static_public": x25519_public(static).hex(),
                "fingerprint": keys.fingerprint(x25519_public(static)),
            }
        )
    key = keys.address_key(SECRET)
    return {
        "about": CONVENTION
        + "Derivations from the network key and the device seed; blind addresses under the first case's "
        "address key, null where there is none (names of upper-case letters are lowered first, ASCII "
        "only); Ed25519 public keys of small order with both values of bit 255, to be refused.",
        "derivations": cases,
        "ip_addresses": {text: _hex(keys.ip_address(key, text)) for text in IPS + NO_ADDRESS},
        "name_addresses": {text: _hex(keys.name_address(key, text)) for text in NAMES},
        "small_order": sorted(
            (low[:31] + bytes([low[31] | bit])).hex() for low in keys.SMALL_ORDER for bit in (0, 0x80)
        ),
    }


def join_vectors() -> dict[str, Any]:
    """Section 3: claims and signatures."""
    network = keys.network_id(SECRET)
    claims = json.dumps(
        {
            "version": 1,
            "network": network.hex(),
            "device": keys.device_id(DEVICE_A, network).hex(),
            "instance": bytes(range(16)).hex(),
            "relay": "relay.example",
            "addresses": [_hex(keys.ip_address(keys.address_key(SECRET), "10.10.10.1"))],
            "agent": "shadowmesh/0.2.0",
        },
        separators=(",", ":"),
    ).encode()
    nonce = bytes(range(100, 132))
    seeds = {"network": keys.network_seed(SECRET), "device": keys.device_seed(DEVICE_A, network)}
    return {
        "about": CONVENTION
        + "The two signatures of a join by the first device of keys.json. `claims_text` is the decoded text "
        "of the field, byte for byte; each signature is Ed25519 over `signed_*`.",
        "nonce": nonce.hex(),
        "claims_text": claims.decode(),
        **{
            f"signed_{role}": (f"shadowmesh/v1 join {role}".encode() + b"\0" + nonce + sha256(claims)).hex()
            for role in seeds
        },
        **{
            f"{role}_signature": keys.sign_join(seed, role, nonce, claims).hex()
            for role, seed in seeds.items()
        },
    }


def info(name: str, ip: str) -> bytes:
    """An info record as a handshake payload carries it."""
    body = {
        "type": "info",
        "seq": 1,
        "id": name,
        "ips": [ip],
        "routes": [],
        "agent": "shadowmesh/0.2.0",
        "mtu": 1400,
        "versions": [1],
    }
    return messages.record(messages.JSON, json.dumps(body, separators=(",", ":")).encode())


def ping(source: bytes, destination: bytes, size: int) -> bytes:
    """A UDP packet of `size` bytes in all, ports 1 and 2, UDP checksum absent."""
    udp = b"\0\1\0\2" + (size - 20).to_bytes(2) + bytes(2)
    return ipv4(source, destination, offload.UDP, udp + bytes(i % 251 for i in range(size - 28)))


def handshake(payload_2: bytes, payload_3: bytes) -> dict[str, Any]:
    """Both parties of one handshake with fixed keys, checked against each other."""
    network, key = keys.network_id(SECRET), keys.address_key(SECRET)
    addresses = [keys.blind_address(key, "ip4", bytes([10, 10, 10, last])) for last in (1, 2)]
    prologue = messages.prologue(network, addresses[0], addresses[1])
    secrets = [
        noise.Secrets(
            static=keys.static_private(seed, network),
            ephemeral=bytes(range(first, first + 32)),
            psk=keys.peer_psk(SECRET),
        )
        for seed, first in ((DEVICE_A, 128), (DEVICE_B, 160))
    ]
    secrets[0].kem_seed = bytes(range(64))
    secrets[1].kem_random = bytes(range(192, 224))
    initiator, responder = (noise.Handshake(noise.SHADOWMESH, i == 0, prologue, secrets[i]) for i in (0, 1))
    index_a, index_b = 0x01020304, 0xFFEEDDCC
    steps = []
    for payload, writer, reader in (
        (b"", initiator, responder),
        (payload_2, responder, initiator),
        (payload_3, initiator, responder),
    ):
        message = writer.write(payload)
        assert reader.read(message) == payload
        assert writer.state.h == reader.state.h
        steps.append(
            {
                "payload": payload.hex(),
                "noise": message.hex(),
                "h_after": writer.state.h.hex(),
                "ck_after": writer.state.ck.hex(),
            }
        )
    noises = [bytes.fromhex(step["noise"]) for step in steps]
    steps[0]["message"] = messages.hello(index_a, noises[0]).hex()
    steps[1]["message"] = messages.answer(index_b, index_a, noises[1]).hex()
    steps[2]["message"] = messages.finish(index_a, index_b, noises[2]).hex()
    assert initiator.split() == responder.split()[::-1]
    ek, _ = mlkem.keygen(secrets[0].kem_seed[:32], secrets[0].kem_seed[32:])
    shared, ciphertext = mlkem.encapsulate(ek, secrets[1].kem_random)
    return {
        "network_id": network.hex(),
        "psk": secrets[0].psk.hex(),
        "prologue": prologue.hex(),
        "initiator": {
            "address": addresses[0].hex(),
            "index": index_a,
            "static_private": secrets[0].static.hex(),
            "ephemeral_private": secrets[0].ephemeral.hex(),
            "mlkem_seed_d_z": secrets[0].kem_seed.hex(),
        },
        "responder": {
            "address": addresses[1].hex(),
            "index": index_b,
            "static_private": secrets[1].static.hex(),
            "ephemeral_private": secrets[1].ephemeral.hex(),
            "mlkem_m": secrets[1].kem_random.hex(),
        },
        "encapsulation_key": ek.hex(),
        "kem_ciphertext": ciphertext.hex(),
        "kem_shared_secret": shared.hex(),
        "messages": steps,
        "handshake_hash": initiator.state.h.hex(),
        "initiator_sends_with": initiator.split()[0].hex(),
        "responder_sends_with": initiator.split()[1].hex(),
    }


def handshake_vectors() -> dict[str, Any]:
    """Section 4: the three messages of a handshake."""
    a, b = info("alice", "10.10.10.1"), info("bob", "10.10.10.2")
    packet = messages.record(messages.PACKET, ping(b"\x0a\x0a\x0a\x01", b"\x0a\x0a\x0a\x02", 60))
    return {
        "about": CONVENTION
        + f"{noise.SHADOWMESH} with every key given: `mlkem_seed_d_z` is d and z of FIPS 203 key generation, "
        "`mlkem_m` the randomness of Encaps_internal. `noise` is the Noise message, `message` the peer "
        "message around it. The devices are those of keys.json. The second case has a packet in message 3.",
        "cases": [handshake(b, a), handshake(b, a + packet)],
    }


def window_sequences() -> Iterator[tuple[str, list[int]]]:
    """Counters in the order they arrive."""
    high = 100_000
    yield "in order", [0, 1, 2, 3]
    yield "duplicates", [0, 0, 5, 5, 0, 4, 4]
    yield "reordered", [7, 3, 6, 3, 0, 1, 7]
    yield (
        "the window's edge",
        [high, high - 8192, high - 8191, high - 8191, high - 1, high, high + 1, high - 8191],
    )
    yield "first one is not 0", [8192, 0, 1, 1, 2]
    yield "a leap empties the window", [1, 2, 2**40, 3, 2**40 - 8191, 2**40 - 8192, 2**40 - 64, 2**40 - 64]
    yield "multiples of the window", [0, 8192, 16384, 8192, 8193, 16383, 24575, 16384, 16385]
    yield "the last counter is reserved", [2**64 - 2, 2**64 - 1, 2**64 - 2, 2**64 - 3]


def sealed_vectors() -> dict[str, Any]:
    """Section 4: sealed messages and the replay window."""
    first, second = bytes(range(32)), bytes(range(32, 64))
    packet = messages.record(messages.PACKET, ping(b"\x0a\x0a\x0a\x01", b"\x0a\x0a\x0a\x02", 61))
    plaintexts = [messages.KEEPALIVE, messages.pad(packet), messages.pad(packet + packet + packet), b""]
    counters = [0, 1, 255, 256, 2**32, 2**60, 2**64 - 2]
    cases = [
        {
            "key": key.hex(),
            "receiver_index": 0xFFEEDDCC,
            "counter": counter,
            "plaintext": plaintext.hex(),
            "message": messages.seal(key, 0xFFEEDDCC, counter, plaintext).hex(),
        }
        for key, counter, plaintext in (
            *((first, counter, messages.KEEPALIVE) for counter in counters),
            *((second, 7, plaintext) for plaintext in plaintexts),
        )
    ]
    good = messages.seal(first, 0xFFEEDDCC, 7, messages.KEEPALIVE)
    refused = {
        "the reserved counter": messages.seal(first, 0xFFEEDDCC, 2**64 - 1, messages.KEEPALIVE),
        "another tag": good[:-1] + bytes([good[-1] ^ 1]),
        "another ciphertext": good[:16] + bytes([good[16] ^ 1]) + good[17:],
        "another counter": good[:8] + b"\x08" + good[9:],
        "another key": messages.seal(second, 0xFFEEDDCC, 7, messages.KEEPALIVE),
        "31 bytes": good[:31],
    }
    for what, message in refused.items():
        try:
            messages.Receiver(first).open(message)
        except (messages.Refused, messages.FormatError):
            continue
        raise AssertionError(what)
    windows = []
    for what, arriving in window_sequences():
        receiver, accepted = messages.Receiver(first), []
        for counter in arriving:
            accepted.append(receiver.acceptable(counter))
            if accepted[-1]:
                receiver.seen.add(counter)
        windows.append({"what": what, "counters": arriving, "accepted": accepted})
    return {
        "about": CONVENTION
        + "Sealed messages with their whole header (`counter` goes to the wire little-endian, the index "
        "big-endian; numbers go up to 2^64 - 1), those that a new session's receiver refuses, and which "
        "counters it accepts when they arrive in that order.",
        "messages": cases,
        "refused": [
            {"what": what, "key": first.hex(), "message": message.hex()} for what, message in refused.items()
        ],
        "windows": windows,
    }


def record_vectors() -> dict[str, Any]:
    """Section 4: records and padding."""
    one = messages.record(messages.PACKET, ping(b"\x0a\x0a\x0a\x01", b"\x0a\x0a\x0a\x02", 28))
    accepted = {
        "keepalive": (messages.KEEPALIVE, 1),
        "one packet, not padded": (one, 1),
        "two packets, padded": (messages.pad(one + one), 1),
        "an unknown kind is skipped by its reader": (messages.record(9, b"later") + one, 1),
        "an unknown kind without a body": (messages.record(255, b""), 1),
        "padding between records": (one + messages.record(0, bytes(3)) + one, 1),
        "4096 records": (messages.record(7, b""), 4096),
    }
    refused = {
        "a byte is missing": (one[:-1], 1),
        "a byte too many": (one + b"\0", 1),
        "half a header": (one + b"\1\0\0", 1),
        "a length beyond the end": (b"\1\xff\xff\xff" + bytes(100), 1),
        "4097 records": (messages.record(7, b""), 4097),
    }
    for plaintext, times in refused.values():
        try:
            messages.records(plaintext * times)
        except messages.FormatError:
            continue
        raise AssertionError(plaintext)
    return {
        "about": CONVENTION
        + "Plaintexts of sealed messages (`plaintext` repeated `times` times) and the [kind, body] in one "
        "repetition, padding left out; plaintexts that are dropped whole; `padding`: the record that our "
        "sender appends after that many bytes of records.",
        "accepted": [
            {
                "what": what,
                "plaintext": plaintext.hex(),
                "times": times,
                "records": [[kind, body.hex()] for kind, body in messages.records(plaintext) if kind],
            }
            for what, (plaintext, times) in accepted.items()
        ],
        "refused": [
            {"what": what, "plaintext": plaintext.hex(), "times": times}
            for what, (plaintext, times) in refused.items()
        ],
        "padding": {str(size): messages.pad(bytes(size))[size:].hex() for size in range(33)},
    }


def ones_complement(data: bytes) -> int:
    """RFC 1071 sum, not inverted."""
    total = sum(int.from_bytes((data + b"\0")[i : i + 2]) for i in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ipv4(
    source: bytes, destination: bytes, protocol: int, l4: bytes, fragment: int = 0, options: int = 0
) -> bytes:
    """A packet with a right header checksum; `options` is a number of no-operation bytes."""
    words = 5 + options // 4
    head = bytes([0x40 | words, 0]) + (words * 4 + len(l4)).to_bytes(2) + bytes(2) + fragment.to_bytes(2)
    head += bytes([64, protocol, 0, 0]) + source + destination + b"\1" * options
    checksum = 0xFFFF - ones_complement(head)
    return head[:10] + checksum.to_bytes(2) + head[12:] + l4


def ipv6(protocol: int, l4: bytes) -> bytes:
    source, destination = b"\xfd" + bytes(14) + b"\1", b"\xfd" + bytes(14) + b"\2"
    return b"\x60\0\0\0" + len(l4).to_bytes(2) + bytes([protocol, 64]) + source + destination + l4


def tcp(payload: int, flags: int = 0x10, words: int = 5) -> bytes:
    """A segment whose checksum field is left 0: no reader of these vectors may depend on it."""
    head = b"\x1f\x90\xc0\x00" + bytes(8) + bytes([words << 4, flags]) + b"\x10\x00" + bytes(4)
    return head + b"\1" * (words * 4 - 20) + bytes(i % 251 for i in range(payload))


def udp(payload: int) -> bytes:
    return b"\0\1\0\2" + (8 + payload).to_bytes(2) + bytes(2) + bytes(i % 251 for i in range(payload))


def offload_vectors() -> dict[str, Any]:
    """Section 4: records of kind 2."""

    def v4(protocol: int, l4: bytes, **more: int) -> bytes:
        return ipv4(b"\x0a\x0a\x0a\x01", b"\x0a\x0a\x0a\x02", protocol, l4, **more)

    def header(flags: int, gso: int, gso_size: int = 0, junk: int = 0) -> bytes:
        return offload.HEADER.pack(flags, gso, junk, gso_size, junk, junk)

    tcp4, tcp6, udp4, udp6 = v4(6, tcp(1024)), ipv6(6, tcp(1024)), v4(17, udp(1024)), ipv6(17, udp(1024))
    icmp = v4(1, b"\x08\0" + bytes(14))
    accepted = {
        "plain TCP, checksum done": header(0, 0) + tcp4,
        "any protocol without offload": header(0, 0) + icmp,
        "ICMPv6 without offload": header(0, 0) + ipv6(58, b"\x80\0" + bytes(14)),
        "a protocol number nobody knows": header(0, 0) + v4(200, b"x"),
        "checksum left to the receiver, TCP": header(1, 0) + tcp4,
        "checksum left to the receiver, UDP": header(1, 0) + udp4,
        "checksum left to the receiver, UDP over IPv6, empty": header(1, 0) + ipv6(17, udp(0)),
        "TCPv4 of 128 segments": header(1, 1, 8) + tcp4,
        "TCPv4 with ECN": header(1, 0x81, 100) + tcp4,
        "TCPv6": header(1, 4, 100) + tcp6,
        "TCPv6 with ECN": header(1, 0x84, 100) + tcp6,
        "UDP over IPv4": header(1, 5, 100) + udp4,
        "UDP over IPv6": header(1, 5, 100) + udp6,
        "one segment": header(1, 1, 1024) + tcp4,
        "IPv4 options and TCP options": header(1, 1, 100) + v4(6, tcp(300, words=8), options=8),
        "lies in the three fields that are overwritten": header(1, 1, 100, junk=0xFFFF) + tcp4,
        "fin and psh": header(1, 1, 100) + v4(6, tcp(300, flags=0x19)),
        "do not fragment": header(1, 1, 100) + v4(6, tcp(300), fragment=0x4000),
    }
    refused = {
        "no header": b"\0" * 9,
        "no packet": header(0, 0),
        "DATA_VALID": header(2, 0) + tcp4,
        "NEEDS_CSUM and DATA_VALID": header(3, 0) + tcp4,
        "RSC_INFO": header(4, 0) + tcp4,
        "UFO": header(1, 3, 100) + udp4,
        "unknown gso": header(1, 2, 100) + tcp4,
        "ECN alone": header(1, 0x80, 100) + tcp4,
        "ECN with UDP": header(1, 0x85, 100) + udp4,
        "gso without NEEDS_CSUM": header(0, 1, 100) + tcp4,
        "gso size 0": header(1, 1, 0) + tcp4,
        "129 segments": header(1, 1, 8) + v4(6, tcp(1025)),
        "129 segments of UDP": header(1, 5, 8) + v4(17, udp(1025)),
        "SYN": header(1, 1, 100) + v4(6, tcp(300, flags=0x02)),
        "TCPv4 on IPv6": header(1, 1, 100) + tcp6,
        "TCPv6 on IPv4": header(1, 4, 100) + tcp4,
        "TCPv4 on UDP": header(1, 1, 100) + udp4,
        "UDP_L4 on TCP": header(1, 5, 100) + tcp4,
        "checksum of ICMP": header(1, 0) + icmp,
        "first fragment": header(1, 0) + v4(6, tcp(64), fragment=0x2000),
        "later fragment": header(1, 0) + v4(6, tcp(64), fragment=0x0010),
        "fragment without offload": header(0, 0) + v4(1, bytes(16), fragment=0x2000),
        "hop-by-hop header": header(0, 0) + ipv6(0, b"\x06\0" + bytes(6) + tcp(10)),
        "routing header": header(1, 4, 100) + ipv6(43, b"\x06\0" + bytes(6) + tcp(300)),
        "fragment header": header(0, 0) + ipv6(44, b"\x06\0" + bytes(6) + tcp(10)),
        "destination options": header(1, 0) + ipv6(60, b"\x06\0" + bytes(6) + tcp(10)),
        **{
            f"IPv6 next header {number}": header(0, 0) + ipv6(number, b"\x06\0" + bytes(6) + tcp(10))
            for number in (50, 51, 135, 139, 140, 253, 254)
        },
        "IPv4 length too small": header(1, 1, 100) + tcp4 + b"\0",
        "IPv4 length too big": header(1, 1, 100) + tcp4[:-1],
        "IPv6 length too small": header(1, 4, 100) + tcp6 + b"\0",
        "IPv6 length too big": header(1, 4, 100) + tcp6[:-1],
        "IP version 5": header(0, 0) + b"\x55" + tcp4[1:],
        "IPv4 header of 16 bytes": header(0, 0) + b"\x44" + tcp4[1:],
        "IPv4 header beyond the body": header(0, 0) + b"\x4f" + v4(1, bytes(16))[1:],
        "half an IPv6 header": header(0, 0) + b"\x60" + bytes(30),
        "TCP header cut": header(1, 0) + v4(6, tcp(0)[:19]),
        "TCP options beyond the body": header(1, 0) + v4(6, tcp(0, words=15)[:40]),
        "TCP header of 16 bytes": header(1, 0) + v4(6, tcp(40)[:12] + b"\x40" + tcp(40)[13:]),
        "UDP header cut": header(1, 0) + v4(17, udp(0)[:7]),
    }
    for what, body in refused.items():
        try:
            offload.sanitise(body)
        except offload.Refused:
            continue
        raise AssertionError(what)
    return {
        "about": CONVENTION
        + "Bodies of kind 2 records: virtio_net_hdr (10 bytes, little-endian) and an IP packet. `kernel` is "
        "the header that the receiver makes from the packet; where flags are 0 it is all zeros. `refused`: "
        "the record is dropped.",
        "accepted": [
            {"what": what, "body": body.hex(), "kernel": offload.sanitise(body).hex()}
            for what, body in accepted.items()
        ],
        "refused": [{"what": what, "body": body.hex()} for what, body in refused.items()],
    }


def files() -> dict[str, str]:
    """Text of every file by name."""
    made = {
        "keys.json": key_vectors(),
        "join.json": join_vectors(),
        "handshake.json": handshake_vectors(),
        "sealed.json": sealed_vectors(),
        "records.json": record_vectors(),
        "offload.json": offload_vectors(),
        "control.json": texts.control_vectors(),
        "info.json": texts.info_vectors(),
        "frames.json": texts.frame_vectors(),
    }
    return {name: json.dumps(value, indent=1) + "\n" for name, value in made.items()}


if __name__ == "__main__":
    for name, text in files().items():
        (HERE / name).write_text(text)
