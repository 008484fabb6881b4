"""Put four frames of the demo side by side: python tools/four_frames.py demo.mp4 docs/pictures/demo.jpg."""

import sys
from pathlib import Path

import numpy as np

from fsvit_edge.live.sources.open import open_source
from fsvit_edge.runtime.pictures import write_image

FRAMES = (20, 310, 120, 230)  # cat, motorcycle, coffee (not enrolled), rocket


def main(video: str, output: Path) -> None:
    """Write a picture of 2 x 2 frames; the video is what `fsvit-edge run demo` wrote."""
    with open_source(video) as frames:
        kept = {frame.index: frame.image for frame in frames if frame.index in FRAMES}
    top, bottom = (np.hstack([kept[index] for index in pair]) for pair in (FRAMES[:2], FRAMES[2:]))
    write_image(output, np.vstack([top, bottom]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
