"""`fsvit-edge train`: train the head on a data set."""

from pathlib import Path
from typing import Annotated

import typer

from fsvit_edge.cli.options import (
    BenchmarkOption,
    DataOption,
    FoldOption,
    SeedOption,
    SplitsOption,
    ThreadsOption,
    WaysOption,
)
from fsvit_edge.cli.outputs import refuse_to_replace


def train(
    data: DataOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the trained network, .safetensors.")],
    benchmark: BenchmarkOption = "folder",
    splits: SplitsOption = None,
    fold: FoldOption = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint of a network, .safetensors or .ckpt; default: the bundled model.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="timm name of the backbone; without --checkpoint, start from it with a random head."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights of the backbone, .safetensors or .pth.")] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Download the backbone's weights from timm's hub.")
    ] = False,
    image_size: Annotated[int | None, typer.Option(min=1, help="Side of the square input in pixels.")] = None,
    is_new_head: Annotated[
        bool, typer.Option("--new-head", help="Keep only the backbone of the checkpoint; start from a random head.")
    ] = False,
    supervision: Annotated[
        str,
        typer.Option(
            help="What to learn from: mask (every picture has one), image (opens no masks), or mixed (masks for a few "
            "pictures, improved guesses for the rest)."
        ),
    ] = "mask",
    mask_fraction: Annotated[
        float, typer.Option(help="With --supervision mixed: share of the photographs with masks.")
    ] = 0.05,
    mask_list: Annotated[
        Path | None,
        typer.Option(
            help="With --supervision mixed: text file that lists the pictures with masks, one class/stem per line."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pictures.")] = 50,
    batch: Annotated[
        int,
        typer.Option(min=1, help="Episodes per step. An episode compares one query picture with support pictures."),
    ] = 12,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Episodes computed at once; lower it to save memory; default: --batch.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(min=0, help="Learning rate of Adam.")] = 1e-3,
    decay: Annotated[
        bool, typer.Option(help="Lower the learning rate to 0 along a cosine; the paper keeps it constant.")
    ] = True,
    class_weight: Annotated[
        float, typer.Option(min=0, help="Weight of the presence loss; the mask loss has weight 1.")
    ] = 0.1,
    foreground_weight: Annotated[
        float, typer.Option(min=0, help="Weight of a foreground pixel in the mask loss; a background pixel has 1.")
    ] = 1.0,
    ways: WaysOption = 1,
    label_noise: Annotated[
        float, typer.Option(help="Share of the classes labeled absent that may be present; at least 0, below 1.")
    ] = 0.0,
    kept_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of tokens per support, sampled anew in each step; default: all."),
    ] = None,
    views: Annotated[int, typer.Option(min=1, help="Cached views per picture; more than 1 augments the data.")] = 1,
    same_picture: Annotated[
        float, typer.Option(help="Share of the positive episodes that use two views of one photograph.")
    ] = 0.0,
    mask_dropout: Annotated[float, typer.Option(help="Share of the supports whose mask is hidden.")] = 0.0,
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the photographs set aside for validation.")
    ] = 0.1,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many epochs without a better validation mIoU.")
    ] = None,
    seed: SeedOption = 0,
    trainer_precision: Annotated[
        str, typer.Option(help="Precision of the trainer, Lightning's name: 32-true, bf16-mixed or 16-mixed.")
    ] = "32-true",
    accelerator: Annotated[str, typer.Option(help="Where to train: auto, cpu or gpu.")] = "auto",
    devices: Annotated[
        int | None, typer.Option(min=1, help="Number of devices to train on; default: every GPU, or 1 CPU process.")
    ] = None,
    threads: ThreadsOption = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for the cached tokens; default: in the user's cache folder.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint, if there is one.")
    ] = False,
) -> None:
    """Train the head on a data set; the encoder stays frozen."""
    from fsvit_edge.cli.terminal import print_table, require, say, show_progress
    from fsvit_edge.runtime.errors import InputError

    if output.suffix != ".safetensors":
        raise InputError(f"{output} must end in .safetensors.")
    refuse_to_replace(output, [weights], "--output")
    if checkpoint is None and (weights or pretrained) and backbone is None:
        raise InputError("--weights and --pretrained need the name of the backbone; give it with --backbone.")
    require("fsvit-edge train", ("torch", "timm", "lightning", "torchmetrics"), "train")
    with show_progress("Train") as progress:
        progress("load PyTorch and Lightning")
        from fsvit_edge.learn.datasets import open_data
        from fsvit_edge.learn.options import TrainOptions, read_mask_list
        from fsvit_edge.learn.tokens import TokenCache, default_cache_folder
        from fsvit_edge.learn.training import new_head
        from fsvit_edge.learn.training import train as run_training
        from fsvit_edge.model.checkpoint import build_network, load_network, save_network
        from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE

        options = TrainOptions(
            supervision=supervision,
            mask_fraction=mask_fraction,
            mask_list=read_mask_list(mask_list) if mask_list else (),
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
            mask_dropout=mask_dropout,
            validation_fraction=validation_fraction,
            patience=patience,
            seed=seed,
            trainer_precision=trainer_precision,
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
        result = run_training(network, pictures, options, store, workspace, resume, progress)
        save_network(network, output)

    rows = [
        (name, *(f"{value:.3f}" if name == "loss" else f"{value:.1f}" for value in (result.before[name], after)))
        for name, after in result.validation.items()
    ]
    trained = "1 epoch" if result.epochs == 1 else f"{result.epochs} epochs"
    print_table(f"Validation before and after {trained}, on photographs set aside", ("metric", "before", "after"), rows)
    if result.enhancer is not None:
        print(result.enhancer.sentence)
    print(f"Wrote {output}; checkpoints and log are in {workspace}.")
    say(f"Next: fsvit-edge eval --checkpoint {output} --data {data}, or fsvit-edge export --checkpoint {output}")
