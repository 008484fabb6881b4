"""`fsvit-edge bench`: measure the speed on this machine."""

import json
from typing import Annotated

import typer

from fsvit_edge.cli.options import (
    BundleOption,
    EngineOption,
    JsonOption,
    PrecisionOption,
    ShotsOption,
    ThreadsOption,
    WaysOption,
)
from fsvit_edge.cli.terminal import open_model, print_table


def bench(
    bundle: BundleOption = None,
    ways: WaysOption = 3,
    shots: ShotsOption = 1,
    frames: Annotated[int, typer.Option(min=1, help="Number of frames to measure, after a warm-up.")] = 30,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    growth: Annotated[bool, typer.Option(help="Also measure 1, 2, 5, 10 and 20 classes.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Measure the speed of each stage of a frame, 1280 x 720."""
    from fsvit_edge.inspect.benchmark import GROWTH_WAYS, measure

    with open_model(bundle, engine, precision, threads) as model:
        main = measure(model, ways, shots, frames)
        counts = [count for count in GROWTH_WAYS if growth and count <= model.max_classes]
        grown = [measure(model, count, shots, max(frames // 3, 5)) for count in counts]
        name, size, choice = model.manifest.name, model.manifest.image_size, model.choice
    if as_json:
        made_by = {"engine": choice.engine, "precision": choice.precision, "computed_by": choice.description}
        growth_ms = [one.to_dict() for one in grown]
        print(json.dumps({"model": name, "image_size": size, **made_by, **main.to_dict(), "growth": growth_ms}))
        return
    title = (
        f"{name} at {size} px, {choice.description}, {ways} ways x {shots} shots, 1280 x 720 frames: "
        f"{main.fps:.1f} frames/s, peak memory {main.peak_rss_mb:.0f} MB"
    )
    rows = [(stage, f"{p50:.2f}", f"{p95:.2f}") for stage, (p50, p95) in main.latency_ms.items()]
    print_table(title, ("stage", "p50 ms", "p95 ms"), rows)
    if grown:
        stages = ("encoder", "head", "total")
        cells = [
            (str(m.ways), *(f"{m.latency_ms[s][0]:.1f}" for s in stages), f"{m.fps:.1f}", f"{m.peak_rss_mb:.0f}")
            for m in grown
        ]
        print_table("Growth", ("ways", *(f"{s} ms" for s in stages), "frames/s", "peak MB"), cells)
