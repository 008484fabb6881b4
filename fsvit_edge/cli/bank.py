"""`fsvit-edge bank`: list and edit the classes of a bank; needs no engine."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fsvit_edge.cli.options import JsonOption
from fsvit_edge.cli.terminal import print_table

bank_app = typer.Typer(
    help="List, remove or rename the classes of a bank, or set their levels.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

BankFile = Annotated[Path, typer.Argument(help="The bank, a .safetensors file.")]


@bank_app.command("list")
def list_classes(bank: BankFile, as_json: JsonOption = False) -> None:
    """List the classes of a bank."""
    from fsvit_edge.runtime.bank import SupportBank

    loaded = SupportBank.load(bank)
    entries, rows = [], []
    for name in loaded.classes:
        supports, level, origin = loaded.supports(name), loaded.level(name), loaded.level_source(name)
        masks, nbytes = sum(one.has_mask for one in supports), sum(one.nbytes for one in supports)
        counts = {"name": name, "shots": len(supports), "masks": masks}
        sizes = {"kept_tokens": [one.kept.shape[1] for one in supports], "bytes": nbytes}
        entries.append({**counts, **sizes, "level": level, "level_source": origin})
        rows.append((name, str(len(supports)), str(masks), f"{nbytes / 1e3:.0f}", f"{level:.2f} ({origin})"))
    if as_json:
        print(json.dumps({"encoder": vars(loaded.identity), "classes": entries}, ensure_ascii=False))
        return
    print_table(f"{bank}, made with {loaded.identity.name}", ("class", "shots", "with mask", "kB", "level"), rows)


@bank_app.command()
def remove(bank: BankFile, name: Annotated[str, typer.Argument(help="The class to remove.")]) -> None:
    """Remove a class from a bank."""
    from fsvit_edge.runtime.bank import SupportBank

    loaded = SupportBank.load(bank)
    loaded.remove(name)
    loaded.save(bank)
    print(f"Removed {name!r}; {bank} contains: {', '.join(loaded.classes) or 'no class'}.")


@bank_app.command()
def rename(
    bank: BankFile,
    old: Annotated[str, typer.Argument(help="The current name.")],
    new: Annotated[str, typer.Argument(help="The new name.")],
) -> None:
    """Rename a class in a bank."""
    from fsvit_edge.runtime.bank import SupportBank

    loaded = SupportBank.load(bank)
    loaded.rename(old, new)
    loaded.save(bank)
    print(f"Renamed {old!r} to {new!r}; {bank} contains: {', '.join(loaded.classes)}.")


@bank_app.command("level")
def set_level(
    bank: BankFile,
    name: Annotated[str, typer.Argument(help="The class.")],
    level: Annotated[
        float | None,
        typer.Argument(help="Score above which the class is present, 0 to 1; default: derived from its pictures."),
    ] = None,
) -> None:
    """Set the level of a class, or derive it from its pictures again."""
    from fsvit_edge.runtime.bank import SupportBank

    loaded = SupportBank.load(bank)
    loaded.set_level(name, level)
    loaded.save(bank)
    print(f"The level of {name!r} is now {loaded.level(name):.2f} ({loaded.level_source(name)}).")
