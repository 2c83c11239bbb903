"""The relay's TLS certificate and key: what is wrong with the files in words, and loading them again.

TLS 1.2 or later with forward secrecy and authenticated encryption only. The key exchange is OpenSSL's own
choice: since 3.5 the hybrid X25519MLKEM768 comes first.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from os import stat
from pathlib import Path
from ssl import SSLContext, SSLError
from time import time

from shadowmesh.errors import StartError

_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; all of 1.3 are as good
FAILURES = (
    "not_tls",
    "tls_off",
    "version",
    "cipher",
    "alert",
    "malformed",
    "broken_off",
    "too_slow",
)
"""Why a connection does not get through TLS: it begins with another byte; TLS is off; no common version; no
common cipher, curve or signature; the client refuses, in words of TLS; this is no TLS; it ends; it takes too
long."""
_NO_VERSION = ("UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW", "VERSION_TOO_HIGH", "INAPPROPRIATE_FALLBACK")
_NOTHING_IN_COMMON = ("NO_SHARED", "NO_SUITABLE", "NO_CIPHERS", "NO_COMMON")
_MISMATCH = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH")


class Certificate:
    """A certificate chain and its key, PEM files named by `tls.cert_file` and `tls.key_file`.

    To make one and `reload` raise StartError, which says what is wrong with which file.
    """

    context: SSLContext
    """Server settings with this certificate; each `reload` makes new ones."""
    not_after = 0.0
    """When the certificate expires, as Unix time."""
    warnings: list[str]
    """What clients or administrators will mind, in words."""

    def __init__(self, cert_file: str, key_file: str) -> None:
        self._cert_file = cert_file
        self._key_file = key_file
        self.reload()

    def changed(self) -> bool:
        """Whether a file is another one than at the latest attempt to load it, be it that it failed."""
        return self._files() != self._seen

    def differs(self, other: Certificate) -> bool:
        """Whether it was loaded from other files than `other`, or from other contents of them."""
        return (self._cert_file, self._key_file, self._seen) != (
            other._cert_file,
            other._key_file,
            other._seen,
        )

    def reload(self) -> None:
        """Load both files; when it raises, what was loaded stays. None that expired replaces a valid one."""
        self._seen = self._files()  # before reading, so that a change meanwhile is one
        context = _context()
        try:
            chain = Path(self._cert_file).read_bytes()
            context.load_cert_chain(self._cert_file, self._key_file, lambda: b"")  # never ask a terminal
            mode = stat(self._key_file).st_mode
        except OSError as error:
            found = mistakes(self._cert_file, self._key_file)
            raise StartError("; ".join(found) or self._in_words(error)) from None
        not_after, warnings = self._dates(chain)
        if not_after < time() < self.not_after:
            raise StartError(f"{warnings[0]}; the one in use is valid")
        self.not_after, self.warnings = not_after, warnings
        if mode & 0o007:
            self.warnings.append(
                f"tls.key_file {self._key_file}: everybody on this host can read the key; "
                f"mend it with: chmod o= {self._key_file}"
            )
        self.context = context

    def _files(self) -> list[tuple[int, int, int] | None]:
        return [_identity(self._cert_file), _identity(self._key_file)]

    def _in_words(self, error: OSError) -> str:
        if not isinstance(error, SSLError):
            reason = _why(error)
        elif error.reason in _MISMATCH:
            return (
                f"tls.key_file {self._key_file}: the key does not belong to the first certificate in "
                f"{self._cert_file}; a chain begins with the relay's own certificate"
            )
        else:
            reason = (error.reason or "malformed").lower().replace("_", " ")
        return f"tls.cert_file {self._cert_file} with tls.key_file {self._key_file}: {reason}"

    def _dates(self, chain: bytes) -> tuple[float, list[str]]:
        # Here, because it takes 5 MB, which a relay without TLS can do without.
        from cryptography import x509

        try:
            own = x509.load_pem_x509_certificates(chain)[0]
        except ValueError:
            raise StartError(
                f"tls.cert_file {self._cert_file}: a certificate in it is malformed; write the file anew"
            ) from None
        now, warnings = datetime.now(UTC), []
        if now > own.not_valid_after_utc:
            until = f"{own.not_valid_after_utc:%Y-%m-%d}"
            warnings.append(
                f"tls.cert_file {self._cert_file}: expired on {until}; clients refuse it: renew it"
            )
        elif now < own.not_valid_before_utc:
            since = f"{own.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
            warnings.append(f"tls.cert_file {self._cert_file}: not valid before {since}; is the clock right?")
        return own.not_valid_after_utc.timestamp(), warnings


def failure(error: BaseException | None) -> str:
    """Which of FAILURES the error of a handshake is; never a word of the client's."""
    if not isinstance(error, SSLError) or isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "too_slow" if isinstance(error, TimeoutError) else "broken_off"
    reason = getattr(error, "reason", None) or ""  # of OpenSSL's table
    if "ALERT" in reason:
        return "alert"
    if reason in _NO_VERSION:
        return "version"
    return "cipher" if reason.startswith(_NOTHING_IN_COMMON) else "malformed"


def mistakes(cert_file: str, key_file: str) -> list[str]:
    """What is wrong with each of the two files by itself, in words; for when they could not be loaded."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    found = []
    try:
        x509.load_pem_x509_certificates(_pem("tls.cert_file", cert_file, b"CERTIFICATE-----"))
    except StartError as error:
        found.append(str(error))
    except ValueError:
        found.append(f"tls.cert_file {cert_file}: a certificate in it is malformed; write the file anew")
    try:
        load_pem_private_key(_pem("tls.key_file", key_file, b"PRIVATE KEY-----"), None)
    except StartError as error:
        found.append(str(error))
    except TypeError:
        found.append(
            f"tls.key_file {key_file}: the key has a passphrase, which a service cannot be asked for; "
            f"write it without one: openssl pkey -in {key_file} -out NEW_FILE"
        )
    except ValueError:
        found.append(f"tls.key_file {key_file}: the key in it is malformed; write the file anew")
    except UnsupportedAlgorithm:
        pass  # what OpenSSL says of it is better
    return found


def _context() -> SSLContext:
    context = SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    # As all suites are good, a client without AES in hardware may choose ChaCha20.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    # Nobody comes back to resume a session: our clients do not, and connections live long.
    context.num_tickets = 0
    return context


def _identity(path: str) -> tuple[int, int, int] | None:
    try:
        found = stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _pem(what: str, path: str, marker: bytes) -> bytes:
    """The file's bytes; StartError if they cannot be had or have no such PEM block."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise StartError(f"{what} {path}: {_why(error)}") from None
    if marker in data:
        return data
    hint = ""
    if b"PRIVATE KEY-----" in data or b"CERTIFICATE-----" in data:
        hint = "; are tls.cert_file and tls.key_file swapped?"
    elif data.startswith(b"\x30"):
        hint = "; DER becomes PEM with: openssl x509 (or pkey) -inform der"
    kind = "certificate" if marker == b"CERTIFICATE-----" else "private key"
    raise StartError(f"{what} {path}: no PEM {kind} in this file{hint}")


def _why(error: OSError) -> str:
    match error:
        case FileNotFoundError():
            return "no such file"
        case IsADirectoryError():
            return "a directory; give the file in it"
        case PermissionError():
            return "no permission to read it; the service's user needs it for the file and its directories"
        case _:
            return error.strerror or str(error)
