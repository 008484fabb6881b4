"""`fsvit-edge export`: a checkpoint becomes a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from fsvit_edge.cli.terminal import print_table, require, say, show_progress
from fsvit_edge.runtime.errors import InputError


def export(
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Published CST .ckpt, or a .safetensors from train; default: the bundled model."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="The backbone's name in timm, if the checkpoint does not contain it.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The backbone's weights: a .pth from DINO or a .safetensors file.")
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Download the backbone's weights from timm's hub.")
    ] = False,
    head: Annotated[
        str | None,
        typer.Option(
            help="cst (trained) or prototype (needs no training and no checkpoint); default: the checkpoint's head."
        ),
    ] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="Side of the square input in pixels.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the bundle.")] = Path("bundle"),
    opset: Annotated[int, typer.Option(help="ONNX opset.")] = 20,
    simplify: Annotated[bool, typer.Option(help="Simplify the graphs with onnxsim.")] = True,
    verify: Annotated[bool, typer.Option(help="Compare torch with ONNX Runtime; write nothing if they differ.")] = True,
    objectness: Annotated[
        bool,
        typer.Option("--objectness", help="Add the bundled model's objectness (where objects end) for sharp outlines."),
    ] = False,
) -> None:
    """Export a network to a bundle, a folder of ONNX graphs. With no options, export the bundled model."""
    from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, HEADS, PROTOTYPE_HEAD

    if head not in (None, *HEADS):
        raise InputError(f"Head {head!r} is unknown; choose one of: {', '.join(HEADS)}.")
    is_only_backbone = checkpoint is None and bool(backbone or weights or pretrained)
    if is_only_backbone and head != PROTOTYPE_HEAD:
        raise InputError(
            "A backbone has no head; give the checkpoint of a trained head with --checkpoint FILE, "
            "or use the head that needs no training with --head prototype."
        )
    require("fsvit-edge export", ("torch", "timm", "onnx", "onnxsim", "onnxscript"), "export")
    with show_progress("Export") as progress:
        progress("load torch")
        from fsvit_edge.export.pipeline import ExportOptions, export_bundle
        from fsvit_edge.model.checkpoint import build_network, load_network

        progress("load weights")
        bundled = DEFAULT_BUNDLE / "cst-nano.safetensors"
        if is_only_backbone:
            name = weights.stem if weights is not None else str(backbone)
            network = build_network(backbone, weights, pretrained or weights is None, image_size, name, PROTOTYPE_HEAD)
        else:
            network = load_network(checkpoint or bundled, backbone, weights, pretrained, image_size, head)
        objectness_from = load_network(bundled) if objectness else None
        result = export_bundle(network, output, ExportOptions(opset, simplify, verify, objectness_from), progress)

    if result.parity:
        rows = [
            (row.output, f"{row.max_error:.1e}", f"{row.tolerance:.0e}", f"{row.scale:.3g}") for row in result.parity
        ]
        print_table("torch compared with ONNX Runtime", ("output", "max error", "tolerance", "scale"), rows)
    sizes = ", ".join(f"{name} {size:.1f} MB" for name, size in result.sizes_mb.items())
    print(f"Wrote {result.path}: {result.manifest.name}, {result.manifest.image_size} px, {sizes}.")
    say(f"Next: fsvit-edge enroll NAME IMAGE --bundle {result.path}")
