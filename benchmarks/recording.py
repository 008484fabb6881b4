"""What it costs to record a frame: our H.264 beside the MPEG-4 Part 2 that OpenCV writes.

    python benchmarks/recording.py [--turns 7]

Records 40 frames of the demo, enlarged to 1280x720, with one thread, in turns. Prints for each the median and range of
the processor's milliseconds per frame, the quality of what is read back (PSNR), and the size.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.live.sinks.video_file import VideoFile
from fsvit_edge.live.sources.demo import demo_frame
from fsvit_edge.live.sources.open import open_source

_FRAMES, _SIZE_WH, _FPS = 40, (1280, 720), 25.0

_Rgb = npt.NDArray[np.uint8]


def by_pyav(path: Path, frames: list[_Rgb]) -> None:
    """As `run --sink out.mp4` does."""
    video = VideoFile(path, path, _FPS)
    for frame in frames:
        video.write(frame, 1 / _FPS)
    video.finish()


def by_opencv(path: Path, frames: list[_Rgb]) -> None:
    """As `run` did before."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), _FPS, _SIZE_WH)
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=7)
    turns: int = parser.parse_args().turns
    cv2.setNumThreads(1)
    enlarged = (cv2.resize(demo_frame(index), _SIZE_WH, interpolation=cv2.INTER_CUBIC) for index in range(_FRAMES))
    frames: list[_Rgb] = [np.asarray(frame, np.uint8) for frame in enlarged]
    ways: dict[str, Callable[[Path, list[_Rgb]], None]] = {"PyAV, H.264": by_pyav, "OpenCV, MPEG-4 Part 2": by_opencv}
    times_ms: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.mp4"
        for turn in range(turns + 1):
            for name, record in ways.items():
                started_s = time.process_time()
                record(path, frames)
                if turn:  # the first one warms up
                    times_ms[name].append((time.process_time() - started_s) * 1e3 / _FRAMES)
        for name, record in ways.items():
            record(path, frames)
            with open_source(str(path)) as source:
                psnr_db = [cv2.PSNR(shown.image, frame) for shown, frame in zip(source, frames, strict=True)]
            ms, kib = times_ms[name], path.stat().st_size / 1024 / _FRAMES
            print(
                f"{name:22} {statistics.median(ms):5.2f} ms ({min(ms):.2f} to {max(ms):.2f}), "
                f"{statistics.mean(psnr_db):.1f} dB, {kib:.1f} KiB"
            )


if __name__ == "__main__":
    main()
