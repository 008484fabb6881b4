"""Convert an overlay video to a small animated WebP for a web page.

python examples/make_webp.py demo.mp4 demo.webp
"""

import io
import sys
from pathlib import Path

from PIL import Image

from fsvit_edge.live.sources.open import open_source
from fsvit_edge.runtime.storage import atomic_write

KEEP_EVERY = 2
WIDTH = 640
QUALITY = 40


def main(video: str, output: Path) -> None:
    """Write every second frame of `video` at a width of 640 pixels, at the speed of the video."""
    with open_source(video) as frames:
        period_ms = round(1000 * KEEP_EVERY / (frames.fps or 25.0))
        kept = [_shrunk(Image.fromarray(frame.image)) for frame in frames if frame.index % KEEP_EVERY == 0]
    data = io.BytesIO()
    kept[0].save(
        data, "WEBP", save_all=True, append_images=kept[1:], duration=period_ms, loop=0, quality=QUALITY, method=4
    )
    atomic_write(output, data.getvalue())
    print(f"Wrote {output}: {len(kept)} frames, {len(data.getvalue()) / 1e6:.1f} MB")


def _shrunk(image: Image.Image) -> Image.Image:
    size_wh = (WIDTH, round(WIDTH * image.height / image.width))
    return image if image.size == size_wh else image.resize(size_wh, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]))
