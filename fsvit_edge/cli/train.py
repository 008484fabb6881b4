"""`fsvit-edge train`: pictures of classes become a head that knows how to compare."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    data: Annotated[Path, typer.Option(help="Pictures, <class>/images/* and masks/*; or the benchmark's root.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The trained network, .safetensors.")],
    benchmark: Annotated[str, typer.Option(help="How DATA is laid out: folder, pascal or coco.")] = "folder",
    splits: Annotated[Path | None, typer.Option(help="Folder of the standard lists, for pascal and coco.")] = None,
    fold: Annotated[
        int | None, typer.Option(help="Leave out the classes of this fold, 0 to 3; default: train on all.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Network to start from, as for export; default: the small model shipped.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Start from this backbone of timm's and a new head, without a checkpoint.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="The backbone's weights: .pth or .safetensors.")] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Fetch the backbone's weights from timm's hub.")
    ] = False,
    image_size: Annotated[int | None, typer.Option(min=1, help="Side of the square input in pixels.")] = None,
    is_new_head: Annotated[
        bool, typer.Option("--new-head", help="Of a checkpoint, take the backbone alone and begin with a new head.")
    ] = False,
    supervision: Annotated[
        str, typer.Option(help="mask, image (no mask is opened) or mixed (masks for a few, enhanced for the rest).")
    ] = "mask",
    mask_fraction: Annotated[float, typer.Option(help="mixed: share of the photographs with masks.")] = 0.05,
    mask_list: Annotated[
        Path | None, typer.Option(help="mixed: text file of the pictures with masks, a line each, class/stem.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pictures.")] = 50,
    batch: Annotated[int, typer.Option(min=1, help="Episodes a step.")] = 12,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Episodes at once, to save memory; default: the batch.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(min=0, help="Of Adam.")] = 1e-3,
    decay: Annotated[bool, typer.Option(help="Lower the learning rate along a cosine; the paper does not.")] = True,
    class_weight: Annotated[float, typer.Option(min=0, help="Weight of the presence loss.")] = 0.1,
    foreground_weight: Annotated[float, typer.Option(min=0, help="Weight of a foreground pixel.")] = 1.0,
    ways: Annotated[
        int, typer.Option(min=1, help="Classes that each query is asked for; more than 1 makes scores comparable.")
    ] = 1,
    label_noise: Annotated[
        float, typer.Option(help="Share of classes taken for absent that may be present after all.")
    ] = 0.0,
    kept_tokens: Annotated[
        int | None, typer.Option(min=1, help="Draw at most so many tokens of a support in each step; default: all.")
    ] = None,
    views: Annotated[int, typer.Option(min=1, help="Cached views of each picture; above 1 is augmentation.")] = 1,
    same_picture: Annotated[
        float, typer.Option(help="Share of positive episodes about two views of one photograph.")
    ] = 0.0,
    nameless: Annotated[float, typer.Option(help="Share of supports whose mask is hidden.")] = 0.0,
    validation_fraction: Annotated[float, typer.Option(help="Share of the photographs to validate on.")] = 0.1,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many epochs without a better validation mIoU.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = "32-true",
    accelerator: Annotated[str, typer.Option(help="auto, cpu or gpu.")] = "auto",
    devices: Annotated[int | None, typer.Option(min=1, help="Processes; default: every GPU, or one.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of a process on the CPU.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where tokens are kept; default: the user's cache folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, if there is one.")] = False,
) -> None:
    """Train the correlation head on a data set; the encoder stays as it is."""
    from fsvit_edge.cli.terminal import advise, print_table, progress, require
    from fsvit_edge.runtime.errors import InputError

    if output.suffix != ".safetensors":
        raise InputError(f"{output} must end in .safetensors.")
    if checkpoint is None and (weights or pretrained) and backbone is None:
        raise InputError("Name the backbone whose weights these are with --backbone.")
    require("fsvit-edge train", ("torch", "timm", "lightning", "torchmetrics"), "train")
    with progress("Train") as step:
        step("load torch and Lightning")
        from fsvit_edge.learn.batches import TrainOptions, check_supervision
        from fsvit_edge.learn.datasets import open_data
        from fsvit_edge.learn.tokens import TokenCache, default_cache_folder
        from fsvit_edge.learn.training import new_head
        from fsvit_edge.learn.training import train as run_training
        from fsvit_edge.model.checkpoint import build_network, load_network, save_network
        from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE

        options = TrainOptions(
            supervision=check_supervision(supervision),
            mask_fraction=mask_fraction,
            mask_list=_lines(mask_list),
            epochs=epochs,
            batch=batch,
            micro_batch=micro_batch or batch,
            learning_rate=learning_rate,
            decay=decay,
            class_weight=class_weight,
            ways=ways,
            label_noise=label_noise,
            kept_tokens=kept_tokens,
            foreground_weight=foreground_weight,
            views=views,
            same_picture=same_picture,
            nameless=nameless,
            validation_fraction=validation_fraction,
            patience=patience,
            seed=seed,
            precision=precision,
            accelerator=accelerator,
            devices=devices,
            threads=threads,
        )
        pictures = open_data(benchmark, data, splits, fold, "train", needs_masks=supervision == "mask")
        if checkpoint is None and backbone is not None:
            network = build_network(backbone, weights, pretrained, image_size, name=output.stem)
            new_head(network, seed)
        else:
            source = checkpoint or DEFAULT_BUNDLE / "cst-nano.safetensors"
            network = load_network(source, backbone, weights, pretrained, image_size)
            if is_new_head:
                new_head(network, seed)
        store = TokenCache(network, cache or default_cache_folder(), views)
        workspace = output.with_suffix(".training")
        result = run_training(network, pictures, options, store, workspace, resume, step)
        save_network(network, output)

    rows = [(name, f"{value:.3f}" if name == "loss" else f"{value:.1f}") for name, value in result.validation.items()]
    print_table(f"Validation, photographs set aside, after {result.epochs} epochs", ("figure", "value"), rows)
    if result.enhancer is not None:
        print(result.enhancer.sentence)
    print(f"Wrote {output}; checkpoints and log are in {workspace}.")
    advise(f"Next: fsvit-edge eval --checkpoint {output} --data {data}, or fsvit-edge export --checkpoint {output}")


def _lines(path: Path | None) -> tuple[str, ...]:
    from fsvit_edge.runtime.errors import InputError

    if path is None:
        return ()
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The list {path} cannot be read: {error}.") from error
