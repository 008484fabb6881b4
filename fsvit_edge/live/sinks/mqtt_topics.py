"""What an MQTT broker keeps of a run: the state and the score of each class, as retained messages."""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.sinks.home_assistant import discovery_messages, discovery_topics

_SCORE_STEP = 0.05
_SCORE_PERIOD_S = 10.0
_SHOWN_CHARACTERS = 40

Publish = Callable[[str, bytes], bool]
"""Publishes a retained message on a topic, an empty one to clear it; returns whether it was taken."""


@functools.lru_cache(maxsize=1024)  # asked for every class of every frame
def topic_level(name: str) -> str:
    """Turn a name into one level of a topic, of ASCII letters, digits, _ and -; no two names share one.

    A name of other characters gets the start of its SHA-256 appended, and so does one that looks like that already.
    """
    readable = re.sub("[^A-Za-z0-9_-]+", "_", name)[:_SHOWN_CHARACTERS]
    if readable == name and name and not re.search("_[0-9a-f]{8}$", name):
        return name
    return f"{readable}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


class RetainedMessages:
    """Keeps the retained messages of a broker as they should be, with as few messages as that takes."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._kept: dict[str, bytes | None] = {}  # what the broker has of ours; None: it may have anything

    def distrust(self, topics: Iterable[str] = ()) -> None:
        """Send everything again, because the broker may have restarted; `topics` may be there from an earlier run."""
        self._kept = dict.fromkeys([*self._kept, *topics])

    def update(self, wanted: Mapping[str, bytes]) -> None:
        """Publish what has changed and clear what is no longer wanted; what is not taken is tried again next time."""
        for topic in [topic for topic in self._kept if topic not in wanted]:
            if self._publish(topic, b""):
                del self._kept[topic]
        for topic, payload in wanted.items():
            if self._kept.get(topic) != payload and self._publish(topic, payload):
                self._kept[topic] = payload


class ClassTopics:
    """The retained messages of the classes: TOPIC/classes, TOPIC/<class>/state, TOPIC/<class>/score, and discovery.

    Args:
        topic: The topic of the sink.
        home_assistant: Whether Home Assistant is told of each class.
    """

    def __init__(self, topic: str, home_assistant: bool) -> None:
        self._topic, self._home_assistant = topic, home_assistant
        self._device = topic_level(topic)
        self._scores: dict[str, tuple[float, float]] = {}  # of each class: the score last published, and when

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """Topics whose retained messages name the classes of an earlier run."""
        found = discovery_topics(self._device, "+") if self._home_assistant else ()
        return (f"{self._topic}/classes", *found)

    def earlier(self, topic: str, payload: bytes) -> tuple[str, ...]:
        """Return the topics of the classes that a retained message of an earlier run names; none if it is not ours."""
        if topic != f"{self._topic}/classes":
            # The second to last level of a topic of discovery is the class.
            return self._topics(topic.split("/")[-2]) if payload else ()
        try:
            levels = list(json.loads(payload))
        except (ValueError, TypeError, RecursionError):  # anyone may publish there
            return ()
        safe = [level for level in levels if isinstance(level, str) and re.fullmatch("[A-Za-z0-9_-]+", level)]
        return tuple(topic for level in safe for topic in self._topics(level))

    def messages(self, prediction: Prediction, now_s: float) -> dict[str, bytes]:
        """Return what the broker should keep after a frame captured at `now_s`, on a clock that never jumps."""
        levels = {name: topic_level(name) for name in prediction.classes}
        self._scores = {name: known for name, known in self._scores.items() if name in levels}
        by_level = {level: name for name, level in levels.items()}
        wanted = {f"{self._topic}/classes": json.dumps(by_level, ensure_ascii=False).encode()}
        for name, score, is_present in zip(prediction.classes, prediction.scores, prediction.present, strict=True):
            base = f"{self._topic}/{levels[name]}"
            wanted[f"{base}/state"] = b"ON" if is_present else b"OFF"
            wanted[f"{base}/score"] = f"{self._calm_score(name, float(score), now_s):.4f}".encode()
            if self._home_assistant:
                wanted.update(discovery_messages(self._topic, self._device, levels[name], name))
        return wanted

    def _topics(self, level: str) -> tuple[str, ...]:
        base = f"{self._topic}/{level}"
        found = discovery_topics(self._device, level) if self._home_assistant else ()
        return (f"{base}/state", f"{base}/score", *found)

    def _calm_score(self, name: str, score: float, now_s: float) -> float:
        """The score to show: the one before, unless this one differs by a step or some time has passed."""
        known = self._scores.get(name)
        if known is None or abs(score - known[0]) >= _SCORE_STEP or now_s - known[1] >= _SCORE_PERIOD_S:
            known = self._scores[name] = (score, now_s)
        return known[0]
