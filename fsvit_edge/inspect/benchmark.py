"""Time a model on synthetic frames, stage by stage."""

import resource
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fsvit_edge.fewshot.predictor import FewShotModel

FRAME_SIZE_HW = (720, 1280)
GROWTH_WAYS = (1, 2, 5, 10, 20)
MASK_COVER = 0.3
WARM_UP_FRAMES = 3


@dataclass(frozen=True)
class Measurement:
    """Timings with one number of classes."""

    ways: int  # enrolled classes
    shots: int  # supports per class
    frames: int
    # Median and 95th percentile by stage; "total" is the whole call, "overhead" all of it except "encoder" and "head".
    latency_ms: dict[str, tuple[float, float]]
    fps: float  # 1000 / median total
    peak_rss_mb: float  # largest resident memory of the process so far, in 10^6 bytes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with names as in the summary of a run."""
        named = {stage: {"p50": p50, "p95": p95} for stage, (p50, p95) in self.latency_ms.items()}
        return {**asdict(self), "latency_ms": named}


def measure(model: FewShotModel, ways: int, shots: int, frames: int) -> Measurement:
    """Enroll synthetic classes with masks that cover 30 %, and time frames; the model's own classes are removed."""
    rng = np.random.default_rng(0)
    for name in model.classes:
        model.remove(name)
    side = model.manifest.image_size
    mask = np.zeros((side, side), np.bool_)
    edge = round(side * MASK_COVER**0.5)
    mask[(side - edge) // 2 :, (side - edge) // 2 :][:edge, :edge] = True
    for way in range(ways):
        pictures = [_picture(rng, (side, side)) for _ in range(shots)]
        model.enroll(f"class {way}", pictures, [mask] * shots)
    frame = _picture(rng, FRAME_SIZE_HW)
    laps: list[dict[str, float]] = []
    for _ in range(WARM_UP_FRAMES + frames):
        started = time.perf_counter()
        stages = model.predict(frame).latency_ms
        total = (time.perf_counter() - started) * 1e3
        laps.append({**stages, "overhead": total - stages["encoder"] - stages["head"], "total": total})
    counted = laps[WARM_UP_FRAMES:]
    latency_ms = {}
    for stage in counted[0]:
        values = [lap[stage] for lap in counted]
        latency_ms[stage] = (float(np.percentile(values, 50)), float(np.percentile(values, 95)))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return Measurement(ways, shots, frames, latency_ms, 1000 / latency_ms["total"][0], peak_mb)


def _picture(rng: np.random.Generator, size_hw: tuple[int, int]) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Random blocks of color of 16 x 16 pixels: HxWx3 uint8 RGB with structure at the size of patches."""
    height, width = size_hw
    blocks = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width])
