"""noise: against the second implementation, the noiseprotocol package, cacophony and FIPS 203 answers."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from reference import mlkem
from reference import noise as reference
from reference.curve25519 import x25519, x25519_public
from shadowmesh.crypto.noise import XX_HFS_PSK0, Ephemerals, HandshakeState, Pattern
from shadowmesh.errors import HandshakeError, LocalProtocolError

VECTORS = Path(__file__).parents[2] / "vectors"
CASES: list[dict[str, Any]] = json.loads((VECTORS / "handshake.json").read_text())["cases"]
CACOPHONY: list[dict[str, Any]] = json.loads((VECTORS / "cacophony.json").read_text())["vectors"]
MLKEM: dict[str, Any] = json.loads((VECTORS / "mlkem768.json").read_text())

# The public X25519 keys below 2^255 whose shared secret is zero with every private key (RFC 7748, 6.1).
LOW_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "7f",
]


def unhex(text: str) -> bytes:
    return bytes.fromhex(text)


def private(data: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(data)


def pattern(name: str) -> Pattern:
    """A pattern as the second implementation writes it, for names that the package does not carry."""
    return Pattern(name, tuple(tuple(line.split()) for line in reference.PATTERNS[name]))


class Fixed(Ephemerals):
    """The keys of a vector in place of random ones."""

    def __init__(self, secrets: reference.Secrets) -> None:
        self.secrets = secrets

    def x25519(self) -> X25519PrivateKey:
        return private(self.secrets.ephemeral)

    def mlkem768(self) -> MLKEM768PrivateKey:
        return MLKEM768PrivateKey.from_seed_bytes(self.secrets.kem_seed)

    def encapsulate(self, public_key: bytes) -> tuple[bytes, bytes]:
        return mlkem.encapsulate(public_key, self.secrets.kem_random)


def real(
    initiator: bool, secrets: reference.Secrets, name: str = XX_HFS_PSK0.name, prologue: bytes = b"p"
) -> HandshakeState:
    """Our party with fixed keys; of ShadowMesh's own pattern it is the package's table that is used."""
    return HandshakeState(
        XX_HFS_PSK0 if name == XX_HFS_PSK0.name else pattern(name),
        initiator=initiator,
        prologue=prologue,
        static=private(secrets.static),
        psk=secrets.psk or None,
        ephemerals=Fixed(secrets),
    )


def slow(initiator: bool, secrets: reference.Secrets, prologue: bytes = b"p") -> reference.Handshake:
    return reference.Handshake(reference.SHADOWMESH, initiator, prologue, secrets)


def secrets_of(who: str, seed: str = "") -> reference.Secrets:
    """All keys of a party from its name."""

    def derive(what: str) -> bytes:
        return hashlib.sha256(f"{who} {what} {seed}".encode()).digest()

    return reference.Secrets(
        static=derive("static"),
        ephemeral=derive("ephemeral"),
        psk=hashlib.sha256(b"psk").digest(),
        kem_seed=derive("d") + derive("z"),
        kem_random=derive("m"),
    )


def pair() -> tuple[HandshakeState, HandshakeState]:
    return real(True, secrets_of("alice")), real(False, secrets_of("bob"))


def exchange(parties: tuple[HandshakeState, HandshakeState], payloads: list[bytes]) -> list[bytes]:
    """Run as many messages as there are payloads."""
    messages = []
    for i, payload in enumerate(payloads):
        messages.append(parties[i % 2].write_message(payload))
        assert parties[1 - i % 2].read_message(messages[-1]) == payload
    return messages


@pytest.mark.parametrize("case", CASES, ids=["infos", "info and packet"])
def test_vectors_of_the_second_implementation(case: dict[str, Any]) -> None:
    a, b = case["initiator"], case["responder"]
    keys = [
        reference.Secrets(
            static=unhex(party["static_private"]),
            ephemeral=unhex(party["ephemeral_private"]),
            psk=unhex(case["psk"]),
            kem_seed=unhex(a["mlkem_seed_d_z"]),
            kem_random=unhex(b["mlkem_m"]),
        )
        for party in (a, b)
    ]
    parties = [real(i == 0, keys[i], prologue=unhex(case["prologue"])) for i in (0, 1)]
    for i, step in enumerate(case["messages"]):
        assert parties[i % 2].write_message(unhex(step["payload"])).hex() == step["noise"]
        assert parties[1 - i % 2].read_message(unhex(step["noise"])).hex() == step["payload"]
        assert [party.handshake_hash.hex() for party in parties] == [step["h_after"]] * 2
    for party in parties:
        assert party.finished
        assert party.handshake_hash.hex() == case["handshake_hash"]
        keys_hex = [key.hex() for key in party.split()]
        assert keys_hex == [case["initiator_sends_with"], case["responder_sends_with"]]
    assert parties[1].remote_static == private(keys[0].static).public_key().public_bytes_raw()
    assert parties[0].remote_static == private(keys[1].static).public_key().public_bytes_raw()


@pytest.mark.parametrize("real_initiates", [True, False])
def test_talks_to_the_second_implementation(real_initiates: bool) -> None:
    """With keys that the operating system gave to our side: nothing is injected."""
    prologue, psk = bytes(83), hashlib.sha256(b"psk").digest()
    ours = HandshakeState(
        XX_HFS_PSK0,
        initiator=real_initiates,
        prologue=prologue,
        static=X25519PrivateKey.generate(),
        psk=psk,
    )
    theirs = slow(not real_initiates, secrets_of("them"), prologue)
    for i, payload in enumerate((b"", b"second", b"third" * 100)):
        if (i % 2 == 0) == real_initiates:
            assert theirs.read(ours.write_message(payload)) == payload
        else:
            assert ours.read_message(theirs.write(payload)) == payload
    assert ours.handshake_hash == theirs.state.h
    assert ours.split() == theirs.state.split()


@pytest.mark.parametrize("case", CACOPHONY, ids=lambda case: str(case["protocol_name"]))
def test_cacophony(case: dict[str, Any]) -> None:
    parties = [
        real(
            role == "init",
            reference.Secrets(
                static=unhex(case.get(f"{role}_static", "00" * 32)),
                ephemeral=unhex(case[f"{role}_ephemeral"]),
                psk=unhex("".join(case.get(f"{role}_psks", []))),
            ),
            name=case["protocol_name"],
            prologue=unhex(case[f"{role}_prologue"]),
        )
        for role in ("init", "resp")
    ]
    ciphers: list[reference.CipherState] = []
    for i, message in enumerate(case["messages"]):
        payload, expected = unhex(message["payload"]), unhex(message["ciphertext"])
        if not parties[0].finished:
            assert parties[i % 2].write_message(payload) == expected
            assert parties[1 - i % 2].read_message(expected) == payload
            continue
        if not ciphers:
            assert [party.handshake_hash.hex() for party in parties] == [case["handshake_hash"]] * 2
            assert parties[0].split() == parties[1].split()
            ciphers = [reference.CipherState(key) for key in parties[0].split()]
        assert ciphers[i % 2].encrypt(b"", payload) == expected


@pytest.fixture
def oracle() -> Iterator[Any]:
    """The noise.connection module of the noiseprotocol package, old enough to warn on newer Pythons."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from noise import connection

        yield connection


@pytest.mark.parametrize("real_initiates", [True, False])
@pytest.mark.parametrize("name", [name for name in reference.PATTERNS if "hfs" not in name])
def test_noiseprotocol_as_oracle(oracle: Any, name: str, real_initiates: bool) -> None:
    keys = secrets_of("us")
    keys.psk = keys.psk if "psk" in name else b""
    ours = real(real_initiates, keys, name=name, prologue=b"prologue")
    theirs = oracle.NoiseConnection.from_name(name.encode())
    if keys.psk:
        theirs.set_psks(psk=keys.psk)
    if real_initiates:
        theirs.set_as_responder()
    else:
        theirs.set_as_initiator()
    theirs.set_prologue(b"prologue")
    if "_XX" in name:
        theirs.set_keypair_from_private_bytes(oracle.Keypair.STATIC, secrets_of("them").static)
    theirs.start_handshake()
    turn = real_initiates
    for payload in [b"one", b"", b"three" * 50][: len(reference.PATTERNS[name])]:
        if turn:
            assert theirs.read_message(ours.write_message(payload)) == payload
        else:
            assert ours.read_message(bytes(theirs.write_message(payload))) == payload
        turn = not turn
    assert ours.finished
    assert theirs.handshake_finished
    assert ours.handshake_hash == theirs.get_handshake_hash()
    sending, receiving = ours.split() if real_initiates else ours.split()[::-1]
    assert theirs.encrypt(b"back") == reference.CipherState(receiving).encrypt(b"", b"back")
    assert theirs.decrypt(reference.CipherState(sending).encrypt(b"", b"forth")) == b"forth"


@pytest.mark.parametrize("case", MLKEM["acvp_keygen"] + MLKEM["kat"])
def test_mlkem_key_generation_known_answers(case: dict[str, str]) -> None:
    key = MLKEM768PrivateKey.from_seed_bytes(unhex(case["d"] + case["z"]))
    assert key.public_key().public_bytes_raw().hex() == case["ek"]


@pytest.mark.parametrize("case", MLKEM["kat"])
def test_mlkem_decapsulation_known_answers(case: dict[str, str]) -> None:
    key = MLKEM768PrivateKey.from_seed_bytes(unhex(case["d"] + case["z"]))
    assert key.decapsulate(unhex(case["ciphertext"])).hex() == case["shared_secret"]
    assert key.decapsulate(unhex(case["forged_ciphertext"])).hex() == case["forged_shared_secret"]


@pytest.mark.parametrize("case", MLKEM["acvp_encapsulation"] + MLKEM["acvp_keygen"])
def test_mlkem_encapsulation_agrees_with_the_second_implementation(case: dict[str, str]) -> None:
    """Encapsulation is random in `cryptography`: hold its result against the slow decapsulation, and back."""
    d, z = hashlib.sha256(case["ek"].encode()).digest(), hashlib.sha256(b"z").digest()
    ek, dk = mlkem.keygen(d, z)
    shared, ciphertext = Ephemerals().encapsulate(ek)
    assert mlkem.decapsulate(dk, ciphertext) == shared
    shared, ciphertext = mlkem.encapsulate(ek, z)
    assert MLKEM768PrivateKey.from_seed_bytes(d + z).decapsulate(ciphertext) == shared
    MLKEM768PublicKey.from_public_bytes(unhex(case["ek"]))


def test_pattern_is_the_one_of_the_page() -> None:
    assert pattern(reference.SHADOWMESH) == XX_HFS_PSK0


def test_message_sizes() -> None:
    messages = exchange(pair(), [b"", b"x" * 10, b"y" * 20])
    assert [len(message) for message in messages] == [1256 - 8, 1212 + 10 - 12, 76 + 20 - 12]


@pytest.mark.parametrize("step", range(3))
def test_every_byte_counts_and_a_failure_changes_nothing(step: int) -> None:
    """The reader whose state survived every forgery then takes the genuine message."""
    parties = pair()
    payloads = [b"", b"second", b"third"]
    exchange(parties, payloads[:step])
    writer, reader = parties[step % 2], parties[1 - step % 2]
    message = writer.write_message(payloads[step])
    before = reader.handshake_hash
    for position in range(len(message)):
        bad = bytearray(message)
        bad[position] ^= 0x80  # in the last byte of an ephemeral this is the bit that X25519 ignores
        with pytest.raises(HandshakeError):
            reader.read_message(bytes(bad))
        assert reader.handshake_hash == before
    for wrong in (b"", message[:-1], message + b"\0", message[:32], message[:31]):
        with pytest.raises(HandshakeError):
            reader.read_message(wrong)
    assert reader.read_message(message) == payloads[step]
    assert reader.handshake_hash == writer.handshake_hash


@pytest.mark.parametrize("step", range(3))
def test_reordered_messages_fail(step: int) -> None:
    """No message of a handshake verifies in the place of another, nor twice."""
    messages = exchange(pair(), [b"", b"", b""])
    parties = pair()
    exchange(parties, [b""] * step)
    for i, message in enumerate(messages):
        if i != step:
            with pytest.raises(HandshakeError):
                parties[1 - step % 2].read_message(message)


def test_other_psk_or_prologue_fails_in_message_1() -> None:
    alice, bob = pair()
    hello = alice.write_message(b"")
    stranger = secrets_of("bob")
    stranger.psk = bytes(32)
    for reader in (real(False, stranger), real(False, secrets_of("bob"), prologue=b"q")):
        with pytest.raises(HandshakeError):
            reader.read_message(hello)
    assert bob.read_message(hello) == b""


def test_message_of_another_run_fails() -> None:
    alice, bob = pair()
    other = real(True, secrets_of("alice", "other run")), real(False, secrets_of("bob", "other run"))
    _, foreign_answer, foreign_finish = exchange(other, [b"", b"", b""])
    bob.read_message(alice.write_message(b""))
    with pytest.raises(HandshakeError):
        alice.read_message(foreign_answer)
    alice.read_message(bob.write_message(b""))
    with pytest.raises(HandshakeError):
        bob.read_message(foreign_finish)


def low_order_party(monkeypatch: pytest.MonkeyPatch, initiator: bool, public: bytes, what: str) -> Any:
    """A party that knows the psk and gives `public` for one of its keys, whose shared secrets are zero."""
    keys = secrets_of("mallory")
    marked: bytes = getattr(keys, what)
    monkeypatch.setattr(reference, "x25519_public", lambda k: public if k == marked else x25519_public(k))
    monkeypatch.setattr(reference, "x25519", lambda k, u: bytes(32) if k == marked else x25519(k, u))
    return slow(initiator, keys)


@pytest.mark.parametrize("public", LOW_ORDER)
def test_low_order_ephemeral_of_an_initiator(monkeypatch: pytest.MonkeyPatch, public: str) -> None:
    mallory = low_order_party(monkeypatch, True, unhex(public), "ephemeral")
    bob = real(False, secrets_of("bob"))
    assert bob.read_message(mallory.write()) == b""
    before = bob.handshake_hash
    with pytest.raises(HandshakeError):
        bob.write_message(b"")
    assert bob.handshake_hash == before


@pytest.mark.parametrize("public", LOW_ORDER)
@pytest.mark.parametrize("what", ["ephemeral", "static"])
def test_low_order_key_of_a_responder(monkeypatch: pytest.MonkeyPatch, what: str, public: str) -> None:
    mallory = low_order_party(monkeypatch, False, unhex(public), what)
    alice = real(True, secrets_of("alice"))
    mallory.read(alice.write_message(b""))
    before = alice.handshake_hash
    with pytest.raises(HandshakeError):
        alice.read_message(mallory.write())
    assert alice.handshake_hash == before
    with pytest.raises(LocalProtocolError):
        _ = alice.remote_static


@pytest.mark.parametrize("public", LOW_ORDER)
def test_low_order_static_of_an_initiator(monkeypatch: pytest.MonkeyPatch, public: str) -> None:
    mallory = low_order_party(monkeypatch, True, unhex(public), "static")
    bob = real(False, secrets_of("bob"))
    bob.read_message(mallory.write())
    mallory.read(bob.write_message(b""))
    with pytest.raises(HandshakeError):
        bob.read_message(mallory.write())
    assert not bob.finished


def test_encapsulation_key_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """FIPS 203 section 7.2: a coefficient that is not below 3329."""
    mallory, keys = slow(True, secrets_of("mallory")), secrets_of("bob")
    ek, dk = mlkem.keygen(bytes(32), bytes(32))
    monkeypatch.setattr(mallory, "_kem_keys", lambda: (b"\xff\xff\xff" + ek[3:], dk))
    bob = HandshakeState(
        XX_HFS_PSK0, initiator=False, prologue=b"p", static=private(keys.static), psk=keys.psk
    )
    bob.read_message(mallory.write())
    with pytest.raises(HandshakeError):
        bob.write_message(b"")


def test_forged_kem_ciphertext_by_one_who_knows_the_psk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Implicit rejection gives another secret, so the next tag fails."""
    mallory, alice = slow(False, secrets_of("mallory")), real(True, secrets_of("alice"))
    mallory.read(alice.write_message(b""))
    shared, ciphertext = mlkem.encapsulate(mallory.remote_kem, bytes(32))
    forged = bytes([ciphertext[0] ^ 1]) + ciphertext[1:]
    monkeypatch.setattr(mlkem, "encapsulate", lambda _ek, _m: (shared, forged))
    with pytest.raises(HandshakeError):
        alice.read_message(mallory.write())


def test_own_calls_out_of_turn() -> None:
    alice, bob = pair()
    with pytest.raises(LocalProtocolError):
        alice.read_message(bytes(1248))
    with pytest.raises(LocalProtocolError):
        bob.write_message(b"")
    with pytest.raises(LocalProtocolError):
        alice.split()
    with pytest.raises(LocalProtocolError):
        _ = alice.remote_static
    exchange((alice, bob), [b"", b"", b""])
    for party in (alice, bob):
        with pytest.raises(LocalProtocolError):
            party.write_message(b"")


def test_psk_is_required() -> None:
    keys = secrets_of("alice")
    for psk in (b"", bytes(31)):
        keys.psk = psk
        with pytest.raises(LocalProtocolError, match="32 bytes"):
            real(True, keys)


def test_a_copy_is_independent() -> None:
    alice, bob = pair()
    hello = alice.write_message(b"")
    twin = bob.copy()
    assert twin.read_message(hello) == b""
    assert bob.handshake_hash != twin.handshake_hash
    assert bob.read_message(hello) == b""
    assert bob.handshake_hash == twin.handshake_hash


def test_keys_differ_by_direction_and_by_handshake() -> None:
    seen: set[bytes] = set()
    for run in ("first", "second"):
        parties = real(True, secrets_of("alice", run)), real(False, secrets_of("bob", run))
        exchange(parties, [b"", b"", b""])
        assert parties[0].split() == parties[1].split()
        seen.update(parties[0].split())
    assert len(seen) == 4


def test_repr_shows_no_secret() -> None:
    alice, bob = pair()
    exchange((alice, bob), [b"", b"", b""])
    assert repr(alice) == "<HandshakeState initiator step=3>"
