"""Keys: who signs versions and rows of the ledger, and whose signatures a workspace believes.

A private key lies in the user's configuration or comes from the environment, never in a workspace. The public keys that
are trusted lie in the workspace's file ``trusted_keys``, in git, out of reach of whoever can write to MLflow's store or
to the ledger's database. Ed25519 (RFC 8032), written as OpenSSH writes it.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segmill.errors import InputError, SegmillError
from segmill.files import write_atomically

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_VARIABLE = "SEGMILL_SIGNING_KEY"  # a file with the private key, or the key itself, as PEM
TRUSTED_VARIABLE = "SEGMILL_TRUSTED_KEYS"  # a file as ``trusted_keys`` is, where there is no workspace
TRUSTED = "trusted_keys"  # in the workspace's root, or in the user's configuration
MAKE_ONE = "make one with `segmill signing setup`, or name one in SEGMILL_SIGNING_KEY"


class SignatureError(SegmillError):
    """Something is not signed, or not by a key that is trusted, or was changed after it was signed."""


class NotSigned(SignatureError):
    """There is no signature."""


class UnknownSigner(SignatureError):
    """The signature is by a key that is not trusted."""


@dataclass(frozen=True)
class PublicKey:
    """A public key that is trusted: whose it is, as the file says, and its ``id``, the start of its sha256."""

    name: str
    line: str  # "ssh-ed25519 AAAA..."

    @property
    def id(self) -> str:
        return hashlib.sha256(base64.b64decode(self.line.split()[1])).hexdigest()[:16]

    def signed(self, message: bytes, signature: str) -> bool:
        """Tell whether ``signature`` is this key's over ``message``, in the only base64 that ``sign`` writes."""
        from cryptography.exceptions import InvalidSignature

        try:
            content = base64.b64decode(signature, validate=True)
            self._key().verify(content, message)
        except (InvalidSignature, ValueError):
            return False
        return base64.b64encode(content).decode() == signature  # its last character has bits to spare

    def _key(self) -> Ed25519PublicKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_ssh_public_key

        key = load_ssh_public_key(self.line.encode())
        assert isinstance(key, Ed25519PublicKey)  # ``parse_trusted`` takes no other
        return key


@dataclass(frozen=True)
class SigningKey:
    """A private key and its public part."""

    public: PublicKey
    _private: Ed25519PrivateKey

    def sign(self, message: bytes) -> str:
        """Return the signature over ``message``, base64. The same message always gets the same one."""
        return base64.b64encode(self._private.sign(message)).decode()


@dataclass(frozen=True)
class TrustedKeys:
    """The public keys whose signatures are believed, and the file that lists them, for messages."""

    keys: tuple[PublicKey, ...]
    source: str

    def signer(self, message: bytes, key_id: str, signature: str) -> PublicKey:
        """Return whose signature it is.

        Raises:
            UnknownSigner: the key is not trusted here.
            SignatureError: the signature is not over this message.
        """
        for key in self.keys:
            if key.id == key_id:
                if key.signed(message, signature):
                    return key
                raise SignatureError(f"the signature by {key.name} ({key.id}) does not fit: what it signed was changed")
        raise UnknownSigner(
            f"it is signed by key {key_id}, which {self.source} does not list (it lists "
            f"{', '.join(f'{key.name} {key.id}' for key in self.keys) or 'none'})"
        )


def signing_key() -> SigningKey:
    """Return the key of whoever runs this: that of SEGMILL_SIGNING_KEY, else that of the user's configuration.

    Raises:
        InputError: there is none, or it is no Ed25519 key in PEM.
    """
    named = os.environ.get(KEY_VARIABLE, "")
    if named.lstrip().startswith("-----BEGIN"):
        return _read(named.encode(), KEY_VARIABLE)
    path = Path(named) if named else own_key_path()
    try:
        return _read(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise InputError(f"there is no signing key at {path}", MAKE_ONE) from None


def make_signing_key() -> SigningKey:
    """Make a private key in the user's configuration, readable by the user alone; the existing one where there is one.

    Raises:
        InputError: the existing one is no Ed25519 key in PEM.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    path = own_key_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return signing_key()
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    return _read(pem, str(path))


def own_key_path() -> Path:
    """Return where the user's private key lies (XDG base directory specification)."""
    return _configuration() / "signing_key.pem"


def trusted_keys(root: Path | None) -> TrustedKeys:
    """Return whose signatures the workspace at ``root`` believes, else SEGMILL_TRUSTED_KEYS, else the user.

    Raises InputError where a file has a line that is no key. A file that is not there lists none.
    """
    named = os.environ.get(TRUSTED_VARIABLE)
    own = root / TRUSTED if root is not None else None
    path = own if own is not None and (own.is_file() or not named) else Path(named or _configuration() / TRUSTED)
    text = path.read_text() if path.is_file() else ""
    return TrustedKeys(tuple(parse_trusted(text, str(path))), str(path))


def trust(root: Path, key: PublicKey) -> None:
    """Add a key to the workspace's ``trusted_keys``; nothing where it is there under any name."""
    path = root / TRUSTED
    text = path.read_text() if path.is_file() else ""
    if key.id not in {known.id for known in parse_trusted(text, str(path))}:
        write_atomically(path, f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{key.line} {key.name}\n")


def parse_trusted(text: str, source: str) -> Iterable[PublicKey]:
    """Yield the keys of lines such as ``ssh-ed25519 AAAA... anna``; ``#`` begins a comment.

    Raises InputError for any other line.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    for number, line in enumerate(text.splitlines(), 1):
        kind, _, rest = line.strip().partition(" ")
        if not kind or kind.startswith("#"):
            continue
        data, _, name = rest.strip().partition(" ")
        try:
            if not isinstance(load_ssh_public_key(f"{kind} {data}".encode()), Ed25519PublicKey):
                raise ValueError(kind)
        except ValueError:
            raise InputError(
                f"{source}, line {number} is no Ed25519 key", "write `ssh-ed25519 KEY NAME`, as ssh-keygen does"
            ) from None
        yield PublicKey(name.strip() or "unnamed", f"{kind} {data}")


def _read(pem: bytes, source: str) -> SigningKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_pem_private_key,
        load_ssh_private_key,
    )

    load = load_ssh_private_key if b"OPENSSH" in pem[:80] else load_pem_private_key
    try:
        private = load(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise InputError(f"{source} holds no Ed25519 private key in PEM without a passphrase", MAKE_ONE)
    line = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return SigningKey(PublicKey(_who(), line), private)


def _who() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a container whose user has no name
        return f"{os.getuid()}@{socket.gethostname()}"


def _configuration() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "segmill"
