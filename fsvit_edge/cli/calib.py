"""`fsvit-edge calib`: pictures become the ranges that an INT8 engine is built with."""

from pathlib import Path
from typing import Annotated

import typer


def calib(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of pictures, text list (.txt) of pictures, folders and videos, video, camera (0, /dev/video0) "
            "or rtsp://..."
        ),
    ],
    num: Annotated[int, typer.Option(min=1, help="Pictures to take.")] = 256,
    seed: Annotated[int, typer.Option(help="Another one takes other pictures.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("calibration.json"),
    method: Annotated[str, typer.Option(help="How to choose ranges: minmax, entropy or percentile.")] = "percentile",
    bank: Annotated[
        Path | None, typer.Option(help="Also use the small pictures (96 px) that this bank keeps of its classes.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="The bundle; default: the small model shipped.")] = None,
    seconds: Annotated[
        float, typer.Option(min=0, max=86400, help="Spread a camera's or stream's pictures over this time, at least.")
    ] = 60.0,
) -> None:
    """Collect the ranges that INT8 needs from pictures of the kind that the camera will see."""
    from fsvit_edge.cli.terminal import advise, print_table, progress, require
    from fsvit_edge.runtime.bank import SupportBank
    from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
    from fsvit_edge.runtime.errors import InputError

    require("fsvit-edge calib", ("onnx",), "build")
    if output.is_dir():
        raise InputError(f"{output} is a folder; give the name of a file to write.")
    if output.suffix != ".json":  # by which build-engine tells it from a SOURCE
        raise InputError(f"A calibration is a .json file, got {output}.")
    with progress("Calibrate") as step:
        from fsvit_edge.calib.pictures import sample_pictures
        from fsvit_edge.calib.ranges import collect_ranges, layer_kinds

        step("look for pictures")
        loaded = Bundle.load(bundle or DEFAULT_BUNDLE)
        enrolled = SupportBank.load(bank) if bank else None
        banked = (
            [support.thumbnail for name in enrolled.classes for support in enrolled.supports(name)] if enrolled else []
        )
        pictures = sample_pictures(source, num, seed, seconds)
        step(f"run the encoder on {pictures.count + len(banked)} pictures")
        calibration = collect_ranges(loaded, pictures, method, banked=banked, seed=seed, step=step)
        calibration.save(output)

    if pictures.unreadable:
        left_out = "1 picture" if pictures.unreadable == 1 else f"{pictures.unreadable} pictures"
        was = "was" if pictures.unreadable == 1 else "were"
        advise(f"Warning: {left_out} could not be read and {was} left out; the first: {pictures.first_error}")
    for warning in calibration.warnings():
        advise(f"Warning: {warning}")
    kinds = layer_kinds(loaded, calibration)
    rows = [
        (kind.name, str(kind.tensors), f"{kind.low:.4g}", f"{kind.high:.4g}", f"{kind.outlier_ratio:.1f}")
        for kind in kinds
    ]
    of_bank = f", {calibration.banked} of them of {bank}" if bank else ""
    print_table(
        f"{loaded.manifest.name}: {calibration.method} over {calibration.pictures} pictures{of_bank}",
        ("inputs of", "tensors", "lowest", "highest", "largest / median channel"),
        rows,
    )
    print(f"Wrote {output}: ranges of {sum(kind.tensors for kind in kinds)} tensors.")
    advise(f"Next: fsvit-edge build-engine {f'{bundle} ' if bundle else ''}--int8 --calib {output}")
