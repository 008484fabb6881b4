"""`fsvit-edge bank key`, `bank sign` and `run --trust`."""

import base64
from pathlib import Path

import pytest
from bank_server import bank_of, foreign_bank
from command_line import Cli, is_one_error, json_lines

from fsvit_edge import FewShotModel

pytest.importorskip("cryptography", reason="needs the extra sign")


def test_a_run_accepts_a_bank_that_the_trusted_key_signed_and_no_other(folder: Path, cli: Cli) -> None:
    made = cli("bank key fleet.key")
    assert made.code == 0
    assert len(base64.b64decode(made.out)) == 32
    assert made.err == "Wrote the private key to fleet.key, and the public key, for run --trust, to fleet.pub:\n"
    assert (folder / "fleet.pub").read_text() == made.out
    signed = cli("bank sign bank.safetensors --key fleet.key")
    assert (signed.code, signed.out) == (0, made.out)
    assert signed.err == "Wrote bank.safetensors.sig; publish it before the bank.\n"
    run = "run photo.jpg --bank bank.safetensors --sink -"
    trusted = cli(f"{run} --trust @fleet.pub")
    assert trusted.code == 0, trusted.err
    (bank,) = (one for one in json_lines(trusted.out) if one["event"] == "bank")
    assert f"Bank bank.safetensors: {bank['sha256']:.12} answers.\n" in trusted.err
    (frame,) = (one for one in json_lines(trusted.out) if one["event"] == "frame")
    (unfollowed,) = json_lines(cli(run).out)
    assert frame["classes"] == unfollowed["classes"]
    cli("bank key other.key")
    cli("bank sign bank.safetensors --key other.key")
    (folder / "copy.safetensors").write_bytes((folder / "bank.safetensors").read_bytes())
    (folder / "copy.safetensors.sig").write_bytes((folder / "bank.safetensors.sig").read_bytes())
    refused = cli(f"run photo.jpg --bank copy.safetensors --trust {made.out.strip()}")
    is_one_error(
        refused, 1, "Bank copy.safetensors cannot be used, and there is no copy of an earlier one: The signature "
    )
    unsigned = cli("bank remove copy.safetensors", "Größe 猫")
    assert unsigned.code == 0
    (folder / "copy.safetensors.sig").unlink()
    refused = cli(f"run photo.jpg --bank copy.safetensors --trust {made.out.strip()}")
    is_one_error(refused, 1, "has no signature (there is no copy.safetensors.sig).")


def test_a_key_is_not_replaced(folder: Path, cli: Cli) -> None:
    made = cli("bank key fleet.key")
    before = (folder / "fleet.key").read_bytes()
    is_one_error(cli("bank key fleet.key"), 2, "fleet.key exists, and a key that is lost cannot be made again")
    assert (folder / "fleet.key").read_bytes() == before
    assert (folder / "fleet.pub").read_text() == made.out
    (folder / "fleet.pub").rename(folder / "other.pub")
    is_one_error(cli("bank key other.key"), 2, "other.pub exists, and would be replaced by the public key; give a new")
    is_one_error(cli("bank key fleet.pub"), 2, "fleet.pub is the name of a public key; give another one to the private")
    assert not (folder / "other.key").exists()
    (folder / "empty.pub").touch()  # of a shell: bank key empty.key > empty.pub
    assert cli("bank key empty.key").out == (folder / "empty.pub").read_text()


def test_a_signature_is_checked_before_it_is_published(folder: Path, cli: Cli) -> None:
    cli("bank key fleet.key")
    assert "none" in cli("inspect bank.safetensors").out.splitlines()[-1]
    missing = cli("inspect bank.safetensors --trust @fleet.pub")
    assert missing.code == 4
    assert "- There is no signature bank.safetensors.sig; make it with: fsvit-edge bank sign" in missing.out
    cli("bank sign bank.safetensors --key fleet.key")
    assert "bank.safetensors.sig, not checked: that takes --trust" in cli("inspect bank.safetensors").out
    right = cli("inspect bank.safetensors --trust @fleet.pub")
    assert (right.code, "of these bytes, by the trusted key" in right.out) == (0, True)
    signature, public = cli("inspect bank.safetensors.sig"), cli("inspect fleet.pub")
    assert (signature.code, public.code) == (0, 0)
    assert signature.out.startswith("bank.safetensors.sig: signature\n")
    assert public.out.startswith("fleet.pub: public key\n")
    changed = cli("bank rename bank.safetensors cat dog")
    assert "Note: bank.safetensors was written again, so bank.safetensors.sig no longer fits; " in changed.err
    wrong = cli("inspect bank.safetensors --trust @fleet.pub")
    assert wrong.code == 4
    assert "bank.safetensors.sig is of another bank or by another key than the trusted one" in wrong.out
    assert cli("bank list bank.safetensors").err == ""
    (folder / "bank.safetensors.sig").write_bytes(b"short")
    assert "it has 5 bytes, expected 64" in cli("inspect bank.safetensors.sig").out
    is_one_error(cli("inspect photo.jpg --trust @fleet.pub"), 2, "photo.jpg is a file of an unknown kind")
    is_one_error(cli("inspect fleet.pub --trust @fleet.pub"), 2, "--trust is for a bank, and fleet.pub is of another")


def test_a_bank_that_devices_would_refuse_is_signed_with_a_warning(here: Path, cli: Cli) -> None:
    cli("bank key fleet.key")
    with FewShotModel.load(threads=1) as model:
        banks = {verdict: bank_of(model, here, "cat", verdict=verdict) for verdict in ("yes", "no", None)}
        foreign = foreign_bank(model, here, verdict="no")
    said = {}
    for verdict, data in (*banks.items(), ("foreign", foreign)):
        (here / "bank.safetensors").write_bytes(data)
        signed = cli("bank sign bank.safetensors --key fleet.key")
        assert signed.code == 0
        said[verdict] = signed.err.removeprefix("Wrote bank.safetensors.sig; publish it before the bank.\n")
    assert said["no"].startswith("Warning: 1 of 1 verdicts in bank.safetensors are contradicted, and devices refuse ")
    assert said["yes"] == said[None] == ""
    assert said["foreign"].startswith("Note: Devices hold the bank to its verdicts, which were not checked here: Bank ")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--trust x", "--trust and --poll are for a bank that others change; give it with --bank."),
        ("--bank bank.safetensors --poll 1e-9", "--poll must be 0.05 to 604800 seconds, a week; got 1e-09."),
        ("--bank bank.safetensors --trust x", "--trust takes the public key that fsvit-edge bank key printed"),
        ("--bank http://me:s3cret@host/b.safetensors", "A bank from http:// could be exchanged on the way"),
        ("--bank bank.safetensors --poll 9 --review", "--review writes into the bank, which here comes from elsewhere"),
    ],
)
def test_a_wrong_option_of_a_bank_that_is_followed_is_one_error(
    folder: Path, cli: Cli, options: str, problem: str
) -> None:
    result = cli(f"run photo.jpg {options}")
    is_one_error(result, 2, problem)
    assert "s3cret" not in result.err
    assert not (folder / "result").exists()


def test_an_address_can_be_read_from_a_file_because_ps_shows_the_command(folder: Path, cli: Cli) -> None:
    (folder / "address.txt").write_text("https://me:s3cret@127.0.0.1:1/bank.safetensors?s3cret\n")
    result = cli("run photo.jpg --bank @address.txt")
    is_one_error(result, 1, "Bank https://127.0.0.1:1/bank.safetensors cannot be used, and there is no copy")
    assert "s3cret" not in result.err
