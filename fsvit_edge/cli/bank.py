"""`fsvit-edge bank`: look into a bank and edit it; no engine is needed."""

from pathlib import Path
from typing import Annotated

import typer

bank_app = typer.Typer(
    help="List, remove or rename the classes of a bank.", no_args_is_help=True, rich_markup_mode=None
)

BankFile = Annotated[Path, typer.Argument(help="The bank, a .safetensors file.")]


@bank_app.command("list")
def list_classes(bank: BankFile, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the classes of a bank."""
    import json

    from fsvit_edge.cli.terminal import print_table
    from fsvit_edge.runtime.bank import SupportBank

    loaded = SupportBank.load(bank)
    entries = [
        {
            "name": name,
            "shots": len(supports),
            "masks": sum(support.has_mask for support in supports),
            "kept_tokens": [support.kept.shape[1] for support in supports],
            "bytes": sum(support.nbytes for support in supports),
        }
        for name in loaded.classes
        for supports in [loaded.supports(name)]
    ]
    if as_json:
        print(json.dumps({"encoder": vars(loaded.identity), "classes": entries}, ensure_ascii=False))
        return
    rows = [
        (
            str(e["name"]),
            str(e["shots"]),
            str(e["masks"]),
            f"{sum(s.nbytes for s in loaded.supports(str(e['name']))) / 1e3:.0f}",
        )
        for e in entries
    ]
    print_table(f"{bank}, made by {loaded.identity.name}", ("class", "shots", "with mask", "kB"), rows)


@bank_app.command()
def remove(bank: BankFile, name: Annotated[str, typer.Argument(help="The class to forget.")]) -> None:
    """Remove a class from a bank."""
    from fsvit_edge.runtime.bank import SupportBank

    loaded = SupportBank.load(bank)
    loaded.remove(name)
    loaded.save(bank)
    print(f"Removed {name!r}; {bank} holds: {', '.join(loaded.classes) or 'no class'}.")


@bank_app.command()
def rename(
    bank: BankFile,
    old: Annotated[str, typer.Argument(help="The class's name.")],
    new: Annotated[str, typer.Argument(help="Its new name.")],
) -> None:
    """Rename a class of a bank."""
    from fsvit_edge.runtime.bank import SupportBank

    loaded = SupportBank.load(bank)
    loaded.rename(old, new)
    loaded.save(bank)
    print(f"Renamed {old!r} to {new!r}; {bank} holds: {', '.join(loaded.classes)}.")
