from collections.abc import Callable

import numpy as np
import pytest
from engine_records import GPU, MANIFEST
from fake_memory import FakeMemory
from fake_tensorrt import FakeTensorRT, api_of, make_plan

from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE
from fsvit_edge.runtime.engines import tensorrt
from fsvit_edge.runtime.engines.base import Engine
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.engines.openvino import OpenVinoEngine
from fsvit_edge.runtime.engines.tensorrt import TensorRtEngine
from fsvit_edge.runtime.errors import FsvitEdgeError

ENCODER = DEFAULT_BUNDLE / "encoder.onnx"


def in_onnx_runtime(_: pytest.MonkeyPatch) -> Engine:
    return OnnxRuntimeEngine(ENCODER, "cpu", threads=1)


def in_openvino(_: pytest.MonkeyPatch) -> Engine:
    pytest.importorskip("openvino._pyopenvino", reason="the extra openvino is not installed", exc_type=ImportError)
    return OpenVinoEngine(ENCODER.read_bytes(), MANIFEST.graphs["encoder"], threads=1)


def in_tensorrt(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(tensorrt, "find_gpu", lambda: GPU)
    memory = FakeMemory()
    return TensorRtEngine(*make_plan("encoder"), api_of(FakeTensorRT(memory)), memory)


@pytest.mark.parametrize("opened", [in_onnx_runtime, in_openvino, in_tensorrt])
def test_a_closed_engine_refuses_to_run_and_closes_twice_also_after_an_error(
    opened: Callable[[pytest.MonkeyPatch], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(monkeypatch)
    feed = {"image": np.zeros((1, MANIFEST.image_size, MANIFEST.image_size, 3), np.uint8)}
    engine.run(feed)
    with pytest.raises(ZeroDivisionError), engine:
        raise ZeroDivisionError
    engine.close()
    with pytest.raises(FsvitEdgeError, match=r"^The engine is closed\.$"):
        engine.run(feed)
