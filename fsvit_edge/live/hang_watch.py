"""Tells a model that hangs from one that is slow."""

_LEAST_S, _TIMES = 10.0, 10.0  # a large model on a small processor takes seconds for each frame
# TensorRT-RTX compiles and CUDA loads at the first frame, and once more for another number of classes.
_AT_FIRST_S = 300.0


class HangWatch:
    """Looks now and then which frame is being judged; a call into a graph can be neither interrupted nor asked.

    It counts its looks and no seconds, so that a process that was stopped or a device that slept is not taken for one
    that hangs.

    Args:
        period_s: Seconds between two looks.
    """

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._judging: int | None = None
        self._is_first = True
        self._looks = 0
        self._most_looks = 0

    def check(self, processing: int | None, is_first: bool) -> bool:
        """Look once.

        Args:
            processing: The number of the frame that is being judged; None where none is.
            is_first: Whether it is the first with these classes.

        Returns:
            Whether it hangs: it has taken 10 s, and 10 times as long as any frame before it; 300 s if it is the first.
        """
        if processing != self._judging:
            if self._judging is not None and not self._is_first:
                self._most_looks = max(self._most_looks, self._looks)
            self._judging, self._is_first, self._looks = processing, is_first, 0
        elif processing is not None:
            self._looks += 1
        limit_s = _AT_FIRST_S if self._is_first else max(_LEAST_S, _TIMES * self._most_looks * self._period_s)
        return self._looks * self._period_s > limit_s
