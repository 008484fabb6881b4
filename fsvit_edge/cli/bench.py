"""`fsvit-edge bench`: how fast it is here."""

from pathlib import Path
from typing import Annotated

import typer


def bench(
    bundle: Annotated[Path | None, typer.Option(help="The bundle; default: the small model shipped.")] = None,
    ways: Annotated[int, typer.Option(min=1, max=255, help="Enrolled classes.")] = 3,
    shots: Annotated[int, typer.Option(min=1, help="Supports of each class.")] = 1,
    frames: Annotated[int, typer.Option(min=1, help="Frames measured, after a warm-up.")] = 30,
    engine: Annotated[str, typer.Option(help="auto, cpu, cuda, tensorrt or nv-tensorrt-rtx.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the engine; default: every core.")] = None,
    growth: Annotated[bool, typer.Option(help="Also measure 1, 2, 5, 10 and 20 classes.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure encoder, head, pre- and post-processing on 1280 x 720 frames, in milliseconds."""
    import json

    from fsvit_edge.cli.terminal import print_table
    from fsvit_edge.runtime.benchmark import GROWTH_WAYS, measure
    from fsvit_edge.runtime.predictor import FewShotModel

    with FewShotModel.load(bundle, engine, threads) as model:
        main = measure(model, ways, shots, frames)
        grown = [measure(model, count, shots, max(frames // 3, 5)) for count in GROWTH_WAYS] if growth else []
        name, size = model.manifest.name, model.manifest.image_size
    if as_json:
        print(json.dumps({"model": name, "image_size": size, **main.to_dict(), "growth": [m.to_dict() for m in grown]}))
        return
    title = (
        f"{name} at {size} px, {ways} ways x {shots} shots, 1280 x 720 frames: {main.fps:.1f} frames/s, "
        f"peak memory {main.peak_rss_mb:.0f} MB"
    )
    rows = [(stage, f"{p50:.2f}", f"{p95:.2f}") for stage, (p50, p95) in main.latency_ms.items()]
    print_table(title, ("stage", "p50 ms", "p95 ms"), rows)
    if grown:
        cells = [
            (
                str(m.ways),
                f"{m.latency_ms['encoder'][0]:.1f}",
                f"{m.latency_ms['head'][0]:.1f}",
                f"{m.latency_ms['total'][0]:.1f}",
                f"{m.fps:.1f}",
                f"{m.peak_rss_mb:.0f}",
            )
            for m in grown
        ]
        print_table("Growth", ("ways", "encoder ms", "head ms", "total ms", "frames/s", "peak MB"), cells)
