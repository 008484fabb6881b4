"""`fsvit-edge calib`: pictures become the ranges that an INT8 engine is built with."""

from pathlib import Path
from typing import Annotated

import typer

from fsvit_edge.cli.options import BundleOption, SeedOption
from fsvit_edge.cli.terminal import print_table, require, say, show_progress
from fsvit_edge.runtime.errors import InputError


def calib(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of pictures, video, camera (0, /dev/video0), rtsp://..., or .txt file that lists pictures, "
            "folders and videos."
        ),
    ],
    max_pictures: Annotated[int, typer.Option(min=1, help="Maximum number of pictures.")] = 256,
    seed: SeedOption = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("calibration.json"),
    method: Annotated[str, typer.Option(help="How to choose ranges: minmax, entropy or percentile.")] = "percentile",
    bank: Annotated[
        Path | None, typer.Option(help="Also use the thumbnails (96 px) that this bank keeps of its pictures.")
    ] = None,
    bundle: BundleOption = None,
    seconds: Annotated[
        float, typer.Option(min=0, max=86400, help="Seconds, at least, over which to sample a camera or stream.")
    ] = 60.0,
) -> None:
    """Collect the ranges for INT8 from pictures like the camera's."""
    from fsvit_edge.fewshot.bank import SupportBank
    from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle

    require("fsvit-edge calib", ("onnx",), "build")
    if output.is_dir():
        raise InputError(f"{output} is a folder; give the name of a file to write.")
    if output.suffix != ".json":  # build-engine tells a calibration from a SOURCE by its suffix
        raise InputError(f"A calibration is a .json file, got {output}.")
    with show_progress("Calibrate") as progress:
        from fsvit_edge.calib.pictures import sample_pictures
        from fsvit_edge.calib.ranges import collect_ranges, layer_kinds

        progress("look for pictures")
        loaded = Bundle.load(bundle or DEFAULT_BUNDLE)
        enrolled = SupportBank.load(bank) if bank else None
        banked = (
            [support.thumbnail for name in enrolled.classes for support in enrolled.supports(name)] if enrolled else []
        )
        pictures = sample_pictures(source, max_pictures, seed, seconds)
        progress(f"run the encoder on {pictures.count + len(banked)} pictures")
        calibration = collect_ranges(loaded, pictures, method, banked=banked, seed=seed, progress=progress)
        calibration.save(output)

    if pictures.unreadable:
        skipped = "1 picture" if pictures.unreadable == 1 else f"{pictures.unreadable} pictures"
        say(f"Warning: Skipped {skipped} that could not be read; the first: {pictures.first_error}")
    for warning in calibration.warnings():
        say(f"Warning: {warning}")
    kinds = layer_kinds(loaded, calibration)
    rows = [
        (kind.name, str(kind.tensors), f"{kind.low:.4g}", f"{kind.high:.4g}", f"{kind.outlier_ratio:.1f}")
        for kind in kinds
    ]
    from_bank = f", {calibration.banked} of them from {bank}" if bank else ""
    print_table(
        f"{loaded.manifest.name}: {calibration.method} over {calibration.pictures} pictures{from_bank}",
        ("inputs of", "tensors", "lowest", "highest", "largest / median channel"),
        rows,
    )
    print(f"Wrote {output}: ranges of {sum(map(len, calibration.ranges.values()))} tensors.")
    say(f"Next: fsvit-edge build-engine {f'{bundle} ' if bundle else ''}--int8 --calib {output}")
