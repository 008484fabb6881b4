"""`fsvit-edge bank key` and `bank sign`: a fleet trusts the banks that a key has signed."""

from pathlib import Path
from typing import Annotated

import typer

from fsvit_edge.cli.bank import BankFile
from fsvit_edge.cli.terminal import open_model, say
from fsvit_edge.runtime.errors import FsvitEdgeError


def key(
    file: Annotated[
        Path,
        typer.Argument(
            help="File for the private key, which signs; keep it secret. The public one gets the suffix .pub."
        ),
    ],
) -> None:
    """Make a key to sign banks with. Its public key, for run --trust, is written and printed."""
    from fsvit_edge.fewshot.bank_signature import PUBLIC_SUFFIX, make_key

    public = make_key(file)
    say(f"Wrote the private key to {file}, and the public key, for run --trust, to {file.with_suffix(PUBLIC_SUFFIX)}:")
    print(public)


def sign(
    bank: BankFile,
    key: Annotated[Path, typer.Option(help="The private key, as bank key writes it.")],
) -> None:
    """Sign a bank for the runs that trust the key.

    This writes BANK.sig and prints the public key. Warns if an answer contradicts a verdict in the bank, because
    devices refuse it then.
    """
    from fsvit_edge.fewshot.bank_signature import sign_bank, signature_of

    print(sign_bank(bank, key))
    say(f"Wrote {signature_of(bank)}; publish it before the bank.")
    _warn_of_verdicts(bank)


def _warn_of_verdicts(bank: Path) -> None:
    from fsvit_edge.fewshot.bank import SupportBank

    if all(one.verdict is None for one in SupportBank.load(bank).review):
        return
    try:
        with open_model(None, "auto", "auto", bank=bank) as model:
            model.load_bank(bank)
            checked = model.review.check()
    except FsvitEdgeError as error:  # a bank for another bundle, or signed where no model is
        say(f"Note: Devices hold the bank to its verdicts, which were not checked here: {error}")
        return
    if checked.contradicting:
        say(
            f"Warning: {len(checked.contradicting)} of {len(checked.items)} verdicts in {bank} are contradicted, and "
            f"devices refuse such a bank; see: fsvit-edge bank check {bank}"
        )
