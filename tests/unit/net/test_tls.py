"""The certificate's files: each mistake in words, renewals, and what administrators are warned of."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from shadowmesh.errors import StartError
from shadowmesh.net.tls import Certificate
from shadowmesh.testing.certificates import Paths, make_certificate


def certificate(paths: Paths) -> Certificate:
    return Certificate(str(paths.cert), str(paths.key))


def test_certificate(tmp_path: Path) -> None:
    loaded = certificate(make_certificate(tmp_path, ["127.0.0.1", "relay.example"]))
    assert loaded.warnings == []
    assert 29 < (loaded.not_after - time.time()) / 86400 < 31
    assert not loaded.changed()


def encrypt_key(paths: Paths) -> None:
    key = load_pem_private_key(paths.key.read_bytes(), None)
    locked = BestAvailableEncryption(b"secret words")
    paths.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))


def der_key(paths: Paths) -> None:
    key = load_pem_private_key(paths.key.read_bytes(), None)
    paths.key.write_bytes(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))


def weak_key(paths: Paths) -> None:
    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "weak")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(datetime.now(UTC))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .sign(key, SHA256())
    )
    paths.cert.write_bytes(made.public_bytes(Encoding.PEM))
    paths.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def swap(paths: Paths) -> None:
    cert, key = paths.cert.read_bytes(), paths.key.read_bytes()
    paths.cert.write_bytes(key)
    paths.key.write_bytes(cert)


def wrong_order(paths: Paths) -> None:
    paths.cert.write_bytes(paths.ca.read_bytes() + paths.cert.read_bytes())


def spoil(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[2:]]))


def directory(paths: Paths) -> None:
    paths.key.unlink()
    paths.key.mkdir()


def spoil_both(paths: Paths) -> None:
    paths.cert.unlink()
    spoil(paths.key)


MISTAKES: list[tuple[Callable[[Paths], object], str]] = [
    (lambda paths: paths.cert.unlink(), "tls.cert_file {cert}: no such file"),
    (lambda paths: paths.key.unlink(), "tls.key_file {key}: no such file"),
    (directory, "tls.key_file {key}: a directory; give the file in it"),
    (lambda paths: paths.cert.write_text("hello"), "tls.cert_file {cert}: no PEM certificate in this file"),
    (lambda paths: paths.key.write_text(""), "tls.key_file {key}: no PEM private key in this file"),
    (der_key, "no PEM private key in this file; DER becomes PEM with: openssl x509 (or pkey)"),
    (swap, "tls.cert_file {cert}: no PEM certificate in this file; are tls.cert_file and tls.key_file sw"),
    (lambda paths: make_certificate(paths.key.parent / "o", []).key.replace(paths.key), "does not belong to"),
    (
        wrong_order,
        "tls.key_file {key}: the key does not belong to the first certificate in {cert}; a chain b",
    ),
    (encrypt_key, "tls.key_file {key}: the key has a passphrase"),
    (weak_key, "tls.cert_file {cert} with tls.key_file {key}: ee key too small"),
    (lambda paths: spoil(paths.cert), "tls.cert_file {cert}: a certificate in it is malformed; write"),
    (lambda paths: spoil(paths.key), "tls.key_file {key}: the key in it is malformed; write"),
    (
        spoil_both,
        "tls.cert_file {cert}: no such file; tls.key_file {key}: the key in it is malformed; write",
    ),
]


@pytest.mark.parametrize(("change", "words"), MISTAKES)
def test_mistakes_in_the_files(change: Callable[[Paths], object], words: str, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    paths = make_certificate(tmp_path, ["127.0.0.1"])
    loaded = certificate(paths)
    before, until_then = loaded.context, loaded.not_after
    change(paths)
    expected = words.format(cert=paths.cert, key=paths.key)
    with pytest.raises(StartError) as failure:
        certificate(paths)
    assert expected in str(failure.value)
    assert "\n" not in str(failure.value)
    assert "secret" not in str(failure.value)

    assert loaded.changed()
    with pytest.raises(StartError):
        loaded.reload()
    assert loaded.context is before
    assert loaded.not_after == until_then
    assert not loaded.changed()  # the same mistake is reported once


def test_no_permission(tmp_path: Path) -> None:
    paths = make_certificate(tmp_path, ["127.0.0.1"])
    paths.key.chmod(0)
    paths.cert.chmod(0o644)
    user = os.geteuid()
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(StartError, match=r"tls\.key_file .*: no permission to read it"):
            certificate(paths)
    finally:
        os.seteuid(user)


def test_what_administrators_are_warned_of(tmp_path: Path) -> None:
    paths = make_certificate(tmp_path, ["127.0.0.1"], days=-1)
    paths.key.chmod(0o644)
    loaded = certificate(paths)
    assert loaded.not_after < time.time()
    expired, readable = loaded.warnings
    assert expired.startswith(f"tls.cert_file {paths.cert}: expired on 20")
    assert readable.startswith(f"tls.key_file {paths.key}: everybody on this host can read the key")


def test_no_expired_certificate_replaces_a_valid_one(tmp_path: Path) -> None:
    loaded = certificate(make_certificate(tmp_path, ["127.0.0.1"], days=10))
    context, valid = loaded.context, loaded.not_after
    make_certificate(tmp_path, ["127.0.0.1"], days=-1)
    with pytest.raises(StartError, match=r"expired on 20.*; the one in use is valid"):
        loaded.reload()
    assert (loaded.context, loaded.not_after, loaded.warnings) == (context, valid, [])
    make_certificate(tmp_path, ["127.0.0.1"], days=20)
    loaded.reload()
    assert loaded.not_after > valid


def test_renewal_behind_a_symbolic_link(tmp_path: Path) -> None:
    """As certbot has it: live/relay/privkey.pem -> ../../archive/relay/privkey2.pem."""
    for number in ("1", "2"):
        (tmp_path / number).mkdir()
        make_certificate(tmp_path / number, ["127.0.0.1"], days=int(number) * 10)
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.symlink_to(tmp_path / "1/cert.pem")
    key.symlink_to(tmp_path / "1/key.pem")
    loaded = Certificate(str(cert), str(key))
    first = loaded.context
    for link in (cert, key):
        link.unlink()
        link.symlink_to(tmp_path / "2" / link.name)
    assert loaded.changed()
    loaded.reload()
    assert not loaded.changed()
    assert loaded.context is not first
    assert loaded.not_after > time.time() + 15 * 86400
