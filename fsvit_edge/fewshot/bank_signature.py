"""Signatures of bank files: Ed25519 over the exact bytes of the file, 64 bytes in a file beside it.

The private key is a PEM file, as OpenSSL reads and writes it; the public key is 44 characters of base64, to be typed.
"""

import base64
import binascii
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.runtime.disk_steps import write_errors
from fsvit_edge.runtime.errors import InputError, package_error
from fsvit_edge.runtime.given_text import read_given
from fsvit_edge.runtime.storage import atomic_write

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_SUFFIX = ".sig"
PUBLIC_SUFFIX = ".pub"
SIGNATURE_BYTES = 64
_PUBLIC_BYTES = 32
_MAX_KEY_BYTES = 10_000
_INSTALL = 'pip install "fsvit-edge[sign]"'


@dataclass(frozen=True)
class TrustedKey:
    """A public key; `read_trusted_key` makes one."""

    text: str  # base64
    _key: "Ed25519PublicKey" = field(repr=False)

    def is_signature_of(self, signature: bytes, data: bytes) -> bool:
        """Whether the owner of the key signed these bytes."""
        from cryptography.exceptions import InvalidSignature

        if len(signature) != SIGNATURE_BYTES:
            return False
        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


def read_trusted_key(text: str) -> TrustedKey:
    """Read the text of a public key.

    Raises:
        InputError: It is no such text.
        EnvironmentLacksError: The package for signatures is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise package_error("--trust needs cryptography", "cryptography", _INSTALL, error) from error
    try:
        return TrustedKey(text, Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True)))
    except (ValueError, binascii.Error) as error:
        raise InputError(
            "--trust takes the public key that fsvit-edge bank key printed, 44 characters that end with =, or @FILE "
            f"with them; got {len(text)} other ones."
        ) from error


def signature_of(bank: Path) -> Path:
    """Return where the signature of a bank is: beside it."""
    return Path(f"{bank}{SIGNATURE_SUFFIX}")


def is_public_key(text: str) -> bool:
    """Whether a text is a public key, as `make_key` writes it."""
    try:
        return len(base64.b64decode(text, validate=True)) == _PUBLIC_BYTES
    except (ValueError, binascii.Error):
        return False


def signature_problem(bank: Path, trusted: TrustedKey) -> str:
    """Say in a sentence why the signature beside a bank does not do for runs that trust a key; "" if it does."""
    path = signature_of(bank)
    if not path.is_file():
        return f"There is no signature {path}; make it with: fsvit-edge bank sign {bank} --key FILE"
    try:
        with path.open("rb") as file:
            is_right = trusted.is_signature_of(file.read(SIGNATURE_BYTES + 1), bank.read_bytes())
    except OSError as error:
        return f"The signature {path} cannot be read: {error.strerror}."
    if is_right:
        return ""
    return (
        f"The signature {path} is of another bank or by another key than the trusted one; make it again with: "
        f"fsvit-edge bank sign {bank} --key FILE"
    )


def make_key(path: Path) -> str:
    """Make a key pair: write the private key to a new file that only its user may read, the public key beside it.

    Returns:
        The public key, as it is in the file with the suffix .pub.

    Raises:
        InputError: There is a file of one of these names; an empty one is filled with the public key.
        EnvironmentLacksError: The package for signatures is not installed.
        FsvitEdgeError: The file cannot be written.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    except ImportError as error:
        raise package_error("A key needs cryptography", "cryptography", _INSTALL, error) from error
    if not path.name:
        raise InputError(f"{path} is a folder; give the private key the name of a file, as fleet.key.")
    public = path.with_suffix(PUBLIC_SUFFIX)
    if public == path:
        raise InputError(f"{path} is the name of a public key; give another one to the private key, as fleet.key.")
    # A shell makes an empty one for `> fleet.pub`; that the private key exists is told below.
    if not path.exists() and public.exists() and public.stat().st_size:
        raise InputError(f"{public} exists, and would be replaced by the public key; give a new name.")
    key = Ed25519PrivateKey.generate()
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.touch(mode=0o600, exist_ok=False)  # before the key is in it, and the write keeps the mode
        except FileExistsError as error:
            raise InputError(
                f"{path} exists, and a key that is lost cannot be made again; give a new name. If you want the public "
                "key again: fsvit-edge bank sign prints it."
            ) from error
    try:
        atomic_write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        atomic_write(public, f"{_public_text(key)}\n".encode())
    except BaseException:
        path.unlink()
        raise
    return _public_text(key)


def sign_bank(bank: Path, key: Path) -> str:
    """Sign a bank, write the signature beside it, and return the public key.

    Raises:
        InputError: The key cannot be read.
        ArtifactError: The bank is missing or damaged.
        EnvironmentLacksError: The package for signatures is not installed.
        FsvitEdgeError: The signature cannot be written.
    """
    private = _read_private_key(key)
    SupportBank.load(bank)  # what no device could read is not signed
    atomic_write(signature_of(bank), private.sign(bank.read_bytes()))
    return _public_text(private)


def _read_private_key(path: Path) -> "Ed25519PrivateKey":
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise package_error("A signature needs cryptography", "cryptography", _INSTALL, error) from error
    try:
        key = load_pem_private_key(read_given(path, _MAX_KEY_BYTES), password=None)
    except FileNotFoundError as error:
        raise InputError(f"Key {path} does not exist; make one with: fsvit-edge bank key {path}") from error
    except OSError as error:
        raise InputError(f"Key {path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # a TypeError if it has a password
        raise InputError(
            f"{path} is no private key without a password; make one with: fsvit-edge bank key FILE"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path} is a key of another kind than Ed25519; make one with: fsvit-edge bank key FILE")
    return key


def _public_text(key: "Ed25519PrivateKey") -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()
