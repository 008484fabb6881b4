"""`fsvit-edge bank key`, `bank sign` and `run --trust`."""

import base64
from pathlib import Path

import pytest
from command_line import Cli, is_one_error, json_lines

pytest.importorskip("cryptography", reason="needs the extra sign")


def test_a_run_accepts_a_bank_that_the_trusted_key_signed_and_no_other(folder: Path, cli: Cli) -> None:
    made = cli("bank key fleet.key")
    assert made.code == 0
    assert len(base64.b64decode(made.out)) == 32
    assert made.err.startswith("Wrote the private key to fleet.key; ")
    (folder / "fleet.pub").write_text(made.out)
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
    cli("bank key fleet.key")
    before = (folder / "fleet.key").read_bytes()
    is_one_error(cli("bank key fleet.key"), 2, "fleet.key exists, and a key that is lost cannot be made again")
    assert (folder / "fleet.key").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--trust x", "--trust and --poll are for a bank that others change; give it with --bank."),
        ("--bank bank.safetensors --poll 0", "--poll must be above 0 and at most 604800 seconds, a week; got 0."),
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
