"""Shrink an overlay video to a GIF for a page: python examples/make_gif.py demo.mp4 examples/demo.gif."""

import io
import sys
from pathlib import Path

from PIL import Image

from fsvit_edge.runtime.atomic import atomic_write
from fsvit_edge.runtime.sources.open import open_source

KEEP_EVERY = 8
SIZE_WH = (352, 198)
COLOURS = 64


def main(video: str, output: Path) -> None:
    """Keep every eighth frame of `video` at 352 x 198 pixels, at the video's own pace."""
    with open_source(video) as frames:
        period_ms = round(1000 * KEEP_EVERY / (frames.fps or 25.0))
        kept = [
            Image.fromarray(frame.image)
            .resize(SIZE_WH, Image.Resampling.LANCZOS)
            .quantize(COLOURS, dither=Image.Dither.NONE)
            for frame in frames
            if frame.index % KEEP_EVERY == 0
        ]
    data = io.BytesIO()
    kept[0].save(data, "GIF", save_all=True, append_images=kept[1:], duration=period_ms, loop=0, optimize=True)
    atomic_write(output, data.getvalue())
    print(f"Wrote {output}: {len(kept)} frames, {len(data.getvalue()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
