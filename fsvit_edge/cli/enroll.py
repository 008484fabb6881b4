"""`fsvit-edge enroll`: pictures become a class in a bank."""

from pathlib import Path
from typing import Annotated

import typer

from fsvit_edge.cli.options import EngineOption, PrecisionOption

_FULL_COVER = 0.95


def enroll(
    name: Annotated[str, typer.Argument(help="Name of the class.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures that show it.")],
    mask: Annotated[
        list[Path] | None, typer.Option(help="Mask of each picture, in their order; none at all: the name alone.")
    ] = None,
    bank: Annotated[Path, typer.Option(help="The bank; made if it is not there.")] = Path("bank.safetensors"),
    level: Annotated[
        float | None, typer.Option(help="The score above which it is present; default: what its pictures say.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="The bundle; default: the small model shipped.")] = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Enrol a class from pictures, with masks or with its name alone; or add pictures to a class."""
    from fsvit_edge.cli.terminal import advise, open_model
    from fsvit_edge.runtime.atomic import remove_leftovers
    from fsvit_edge.runtime.bank import check_bank_path
    from fsvit_edge.runtime.errors import InputError
    from fsvit_edge.runtime.pictures import read_image, read_mask
    from fsvit_edge.runtime.presence_level import check_level

    masks = mask or []
    if masks and len(masks) != len(images):
        raise InputError(f"{len(images)} pictures but {len(masks)} masks: give one --mask for each picture, or none.")
    if level is not None:
        check_level(level)
    check_bank_path(bank)
    remove_leftovers(bank.parent)
    pictures = [read_image(path) for path in images]
    given = [read_mask(path, picture.shape[:2]) for path, picture in zip(masks, pictures, strict=False)]
    with open_model(bundle, engine, precision) as model:
        if bank.exists():
            model.load_bank(bank)
        enrolment = model.enroll(name, pictures, given or None, level)
        model.save_bank(bank)
        classes = model.classes
        decided = f"{model.bank.level(name):.2f} ({model.bank.level_source(name)})"
    for path, cover, tokens in zip(images, enrolment.mask_cover, enrolment.kept_tokens, strict=True):
        kind = "mask" if given else "guessed mask"
        print(f"{path}: {kind} covers {cover:.0%} of the picture, {tokens} tokens")
        if tokens == 0:
            advise(f"Warning: the {kind} of {path} is too small for the network to see; crop the picture closer.")
        elif not given and cover > _FULL_COVER:
            advise(f"Warning: the guessed mask of {path} shows almost all of it; a --mask will do better.")
    shots = "1 support" if enrolment.shots == 1 else f"{enrolment.shots} supports"
    print(f"Enrolled {enrolment.name!r} with {shots}; {bank} holds: {', '.join(classes)}.")
    print(f"It is present above {decided}.")
    options = (f" --bundle {bundle}" if bundle else "") + ("" if precision == "auto" else f" --precision {precision}")
    advise(f"Next: fsvit-edge run --camera --bank {bank}{options}")
