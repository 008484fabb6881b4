"""The connection to Ray, without Ray: a cluster that is away, Ctrl-C while Ray ends, and what the register counts."""

import os
import signal
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import pytest

from fsvit_edge.label import cluster
from fsvit_edge.label.actor import Register
from fsvit_edge.runtime.errors import FsvitEdgeError


class FakeRay(ModuleType):
    """A Ray that finds no cluster."""

    data = SimpleNamespace(DataContext=SimpleNamespace(get_current=SimpleNamespace))

    @staticmethod
    def is_initialized() -> bool:
        return False

    @staticmethod
    def init(address: str, **_: object) -> None:
        raise ConnectionError(f"Could not find any running Ray instance at {address}.\nmore")


def test_a_cluster_that_is_away_is_a_failure_as_a_box_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay("ray")
    modules = {"ray": fake, "ray.data": fake.data, "pyarrow": ModuleType("pyarrow"), "pyarrow.parquet": fake}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    for name in cluster._VARIABLES:
        monkeypatch.setenv(name, "")
    with (
        pytest.raises(FsvitEdgeError, match=r"Ray cannot be reached at auto: Could not .* at auto\.$") as error,
        cluster.connected("auto"),
    ):
        pytest.fail("there is none")
    assert error.value.exit_code == 1


def interrupted_end(steps: list[str]) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)
    steps.append("ended")


def test_ctrl_c_while_ray_ends_waits_for_its_end() -> None:
    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt), cluster._uninterrupted():
        interrupted_end(steps)
    assert steps == ["ended"]
    with cluster._uninterrupted():
        steps.append("without Ctrl-C")
    with pytest.raises(KeyboardInterrupt):  # the control; and Ctrl-C is as it was
        interrupted_end(steps)
    assert steps == ["ended", "without Ctrl-C"]


def test_ray_also_ends_in_another_thread() -> None:
    steps: list[str] = []

    def end() -> None:
        with cluster._uninterrupted():
            steps.append("ended")

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    assert steps == ["ended"]


def test_time_is_counted_from_the_first_task() -> None:
    register = Register()
    time.sleep(0.02)
    assert register.working_s() == 0
    register.begin("one")
    time.sleep(0.02)
    assert register.working_s() >= 0.02
    before = register.working_s()
    register.begin("two")
    assert register.working_s() >= before
