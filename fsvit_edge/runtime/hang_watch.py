"""Tells a model that hangs from one that is slow."""

# TensorRT-RTX compiles and CUDA loads at the first frame; a large model on a small processor takes seconds for each.
_LEAST_S, _TIMES, _AT_FIRST_S = 10.0, 10.0, 300.0


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
        self._looks = 0
        self._most_looks: int | None = None

    def look(self, judging: int | None) -> bool:
        """Look once.

        Args:
            judging: The number of the frame that is being judged; None where none is.

        Returns:
            Whether it hangs: it has taken 10 s, and 10 times as long as any frame before it; 300 s if it is the first.
        """
        if judging != self._judging:
            if self._judging is not None:
                self._most_looks = max(self._most_looks or 0, self._looks)
            self._judging, self._looks = judging, 0
        elif judging is not None:
            self._looks += 1
        limit_s = _AT_FIRST_S
        if self._most_looks is not None:
            limit_s = max(_LEAST_S, _TIMES * self._most_looks * self._period_s)
        return self._looks * self._period_s > limit_s
