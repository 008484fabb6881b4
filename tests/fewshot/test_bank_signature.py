"""Signatures of bank files: what is signed, what is trusted, and that OpenSSL agrees."""

import base64
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.bank_signature import make_key, read_trusted_key, sign_bank
from fsvit_edge.fewshot.identity import EncoderIdentity
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError, InputError

pytest.importorskip("cryptography", reason="needs the extra sign")


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    path = tmp_path / "bank.safetensors"
    SupportBank(EncoderIdentity("x", "0" * 64, 32, 4, 64, "fp32")).save(path)
    return path


def test_a_signature_is_of_the_key_that_made_it_and_of_these_bytes(bank: Path, tmp_path: Path) -> None:
    public, other = make_key(tmp_path / "fleet.key"), make_key(tmp_path / "other.key")
    assert sign_bank(bank, tmp_path / "fleet.key") == public
    signature, data = (tmp_path / "bank.safetensors.sig").read_bytes(), bank.read_bytes()
    assert len(signature) == 64
    trusted = read_trusted_key(public)
    assert trusted.is_signature_of(signature, data)
    assert not trusted.is_signature_of(signature, data + b" ")
    assert not trusted.is_signature_of(signature[:-1] + bytes([signature[-1] ^ 1]), data)
    assert not trusted.is_signature_of(b"", data)
    assert not trusted.is_signature_of(signature + b"\n", data)
    assert not read_trusted_key(other).is_signature_of(signature, data)


def test_a_private_key_is_for_its_user_alone_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "fleet.key"
    make_key(path)
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(InputError, match=r"fleet\.key exists, and a key that is lost cannot be made again"):
        make_key(path)
    assert path.read_bytes() == before


def test_a_key_that_cannot_be_written_leaves_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise FsvitEdgeError("full")

    monkeypatch.setattr("fsvit_edge.fewshot.bank_signature.atomic_write", fail)
    with pytest.raises(FsvitEdgeError, match="full"):
        make_key(tmp_path / "fleet.key")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_bank_is_not_signed(bank: Path, tmp_path: Path) -> None:
    make_key(tmp_path / "fleet.key")
    bank.write_bytes(bank.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="damaged"):
        sign_bank(bank, tmp_path / "fleet.key")
    assert not (tmp_path / "bank.safetensors.sig").exists()


@pytest.mark.parametrize("text", ["", "key", "AAAA", "ö" * 44, base64.b64encode(b"0" * 33).decode(), "=" * 44])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--trust takes the public key that fsvit-edge bank key printed"):
        read_trusted_key(text)


def test_what_is_no_private_key_is_refused(bank: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Key .*none\.key does not exist; make one with: fsvit-edge bank key"):
        sign_bank(bank, tmp_path / "none.key")
    with pytest.raises(InputError, match="is no private key without a password"):
        sign_bank(bank, bank)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        sign_bank(bank, tmp_path)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_makes_the_same_keys_and_checks_the_same_signatures(bank: Path, tmp_path: Path) -> None:
    def openssl(words: str) -> None:
        subprocess.run(["openssl", *words.split()], cwd=tmp_path, check=True, capture_output=True)

    openssl("genpkey -algorithm ed25519 -out theirs.key")
    openssl("pkey -in theirs.key -pubout -out theirs.pub")
    sign_bank(bank, tmp_path / "theirs.key")
    check = "pkeyutl -verify -pubin -inkey theirs.pub -rawin -in bank.safetensors -sigfile bank.safetensors.sig"
    openssl(check)
    bank.write_bytes(bank.read_bytes() + b" ")
    with pytest.raises(subprocess.CalledProcessError):
        openssl(check)
    openssl("genpkey -algorithm x25519 -out other.key")
    with pytest.raises(InputError, match="is a key of another kind than Ed25519"):
        sign_bank(bank, tmp_path / "other.key")


def test_without_the_package_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("cryptography", "cryptography.hazmat.primitives.asymmetric.ed25519"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    for use in (lambda: read_trusted_key("x"), lambda: make_key(tmp_path / "k")):
        with pytest.raises(EnvironmentLacksError, match=r"cryptography, which is .*fsvit-edge"):
            use()
