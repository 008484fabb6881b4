"""One suite for all packages: the fake memory, the real ones on fake modules, and the real ones on a real GPU."""

import ctypes
import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from fake_cuda import FakePycuda, FakeRuntime, Status, forbid, install_pycuda, install_runtime
from fake_memory import FakeMemory

from fsvit_edge.runtime.engines import cuda_packages, gpu_memory
from fsvit_edge.runtime.engines.cuda_packages import MEMORY_PACKAGES, open_device_memory
from fsvit_edge.runtime.engines.gpu_memory import DeviceMemory
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError
from fsvit_edge.runtime.gpu import Gpu, find_gpu, gpu_missing_reason

GPU = Gpu("Orin", (8, 7), 14, 8 * 2**30, "12.6")


class Opened(NamedTuple):
    """A memory, and a function that starts a kernel that adds 1 to every byte at an address."""

    memory: DeviceMemory
    increment: Callable[[int, int], None]


def with_kernels(memory: DeviceMemory, submit: Callable[[Callable[[], None]], None]) -> Opened:
    def increment(address: int, nbytes: int) -> None:
        def kernel() -> None:
            array = np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8)
            array += 1

        submit(kernel)

    return Opened(memory, increment)


def over_fake_modules(name: str, monkeypatch: pytest.MonkeyPatch) -> Opened:
    runtime = install_runtime(monkeypatch)
    install_pycuda(monkeypatch)
    monkeypatch.setattr(cuda_packages, "find_gpu", lambda: GPU)
    return with_kernels(open_device_memory(name), runtime.submit)


def on_the_gpu(name: str) -> Opened:
    pytest.importorskip("pycuda.driver" if name == "pycuda" else "cuda.bindings.runtime")
    memory = open_device_memory(name)

    def increment(address: int, nbytes: int) -> None:
        """The driver fills the memory with the expected value, because we have no kernel of our own."""
        runtime = pytest.importorskip("cuda.bindings.runtime")
        cuda_packages.call(runtime, "cudaMemsetAsync", address, 8, nbytes, memory.stream)

    return Opened(memory, increment)


@pytest.fixture(
    params=[
        "fake",
        *(f"{name} over a fake module" for name in MEMORY_PACKAGES),
        *(pytest.param(f"{name} on a GPU", marks=pytest.mark.requires_cuda) for name in MEMORY_PACKAGES),
    ]
)
def opened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    name, _, where = request.param.partition(" ")
    if not where:
        memory = FakeMemory()
        found = with_kernels(memory, memory.submit)
    else:
        found = over_fake_modules(name, monkeypatch) if "fake module" in where else on_the_gpu(name)
    yield found
    found.memory.close()


def round_trip(memory: DeviceMemory, array: np.ndarray) -> np.ndarray:
    buffer = memory.alloc(array.nbytes)
    memory.upload(array, buffer)
    return memory.download(buffer, array.shape, array.dtype)


@pytest.mark.parametrize("dtype", ["uint8", "bool", "float16", "float32", "int64"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5, 7), (2, 0, 3)])
def test_an_uploaded_array_is_downloaded_unchanged(opened: Opened, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    back = round_trip(opened.memory, array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert np.array_equal(back, array)


def test_an_array_larger_than_the_pinned_memory_goes_in_pieces(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_memory, "STAGING_BYTES", 1000)
    array = np.random.default_rng(1).integers(0, 256, 3333, dtype=np.uint8)
    assert np.array_equal(round_trip(opened.memory, array), array)


def test_an_array_of_any_layout_is_uploaded_in_c_order(opened: Opened) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)[:, ::-1]
    assert np.array_equal(round_trip(opened.memory, array), array)


def test_an_array_may_change_after_its_upload_and_the_next_upload_leaves_the_first_alone(opened: Opened) -> None:
    first, second = opened.memory.alloc(64), opened.memory.alloc(64)
    array = np.arange(64, dtype=np.uint8)
    opened.memory.upload(array, first)
    array += 100
    opened.memory.upload(array, second)
    assert np.array_equal(opened.memory.download(first, (64,), np.uint8), np.arange(64))
    assert np.array_equal(opened.memory.download(second, (64,), np.uint8), np.arange(100, 164))


def test_buffers_do_not_overlap(opened: Opened) -> None:
    buffers = [opened.memory.alloc(100) for _ in range(5)]
    addresses = sorted(buffer.address for buffer in buffers)
    assert all(after - before >= 100 for before, after in itertools.pairwise(addresses))


def test_a_download_leaves_earlier_ones_alone(opened: Opened) -> None:
    buffer = opened.memory.alloc(4)
    opened.memory.upload(np.full(4, 1, np.uint8), buffer)
    first = opened.memory.download(buffer, (4,), np.uint8)
    opened.memory.upload(np.full(4, 2, np.uint8), buffer)
    opened.memory.download(buffer, (4,), np.uint8)
    assert np.array_equal(first, np.full(4, 1))


def test_it_has_a_stream_that_waits_and_knows_the_free_memory(opened: Opened) -> None:
    assert opened.memory.stream > 2, "0, 1 and 2 are the default streams"
    opened.memory.synchronize()
    free, total = opened.memory.free_bytes()
    assert 0 < free <= total


def test_a_captured_graph_runs_only_when_launched_and_on_the_current_contents(opened: Opened) -> None:
    memory = opened.memory
    buffer = memory.alloc(4)
    memory.upload(np.full(4, 7, np.uint8), buffer)
    memory.synchronize()
    graph = memory.capture(lambda: opened.increment(buffer.address, 4))
    if graph is None:
        pytest.skip("this backend cannot capture here")
    assert np.array_equal(memory.download(buffer, (4,), np.uint8), np.full(4, 7))
    graph.launch()
    assert np.array_equal(memory.download(buffer, (4,), np.uint8), np.full(4, 8))
    memory.upload(np.full(4, 7, np.uint8), buffer)
    graph.launch()
    assert np.array_equal(memory.download(buffer, (4,), np.uint8), np.full(4, 8))
    graph.free()
    graph.free()


def test_failed_work_is_not_captured_and_the_stream_still_works(opened: Opened) -> None:
    def work() -> None:
        raise FsvitEdgeError("It failed.")

    assert opened.memory.capture(work) is None
    assert np.array_equal(round_trip(opened.memory, np.arange(3)), np.arange(3))


def test_it_works_in_another_thread(opened: Opened) -> None:
    array = np.arange(10)
    answers: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: answers.append(round_trip(opened.memory, array)))
    thread.start()
    thread.join()
    assert np.array_equal(answers[0], array)


def test_closing_twice_and_freeing_afterwards_do_no_harm(opened: Opened) -> None:
    buffers = [opened.memory.alloc(10) for _ in range(3)]
    opened.memory.release(buffers[0])
    opened.memory.release(buffers[0])
    opened.memory.upload(np.zeros(10, np.uint8), buffers[1])
    opened.memory.close()
    opened.memory.close()
    for buffer in buffers:
        opened.memory.release(buffer)


def test_a_buffer_without_references_is_freed() -> None:
    memory = FakeMemory()
    buffer = memory.alloc(1000)
    address = buffer.address
    assert memory.allocated_bytes == 1000
    memory.view(address, 1000)
    del buffer
    gc.collect()
    assert memory.allocated_bytes == 0
    with pytest.raises(AssertionError, match="was freed"):
        memory.view(address, 1)


def test_the_fake_refuses_what_would_crash_a_gpu() -> None:
    memory = FakeMemory()
    buffer = memory.alloc(4)
    for work in (
        lambda: memory.upload(np.zeros(4, np.uint8), buffer),
        lambda: memory.download(buffer, (4,), np.uint8),
        lambda: memory.alloc(4),
        memory.synchronize,
    ):
        with pytest.raises(AssertionError, match="during a capture"):
            memory.capture(work)
    with pytest.raises(AssertionError, match="5 bytes at"):
        memory.view(buffer.address, 5)
    assert FakeMemory(can_capture=False).capture(lambda: None) is None


def test_a_full_device_is_one_sentence_with_the_free_memory() -> None:
    memory = FakeMemory(total_bytes=10 * 2**20)
    held = memory.alloc(6 * 2**20)
    with pytest.raises(FsvitEdgeError) as full:
        memory.alloc(5 * 2**20 - 1)
    assert full.value.exit_code == 1
    assert str(full.value) == (
        "The GPU's memory is full: 5 MiB needed, 4 of the GPU's 10 MiB free; close other programs that use the "
        "GPU, or use --engine onnxruntime."
    )
    memory.release(held)
    memory.alloc(5 * 2**20)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    monkeypatch.setattr(cuda_packages, "find_gpu", lambda: GPU)
    return install_runtime(monkeypatch)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, runtime: FakeRuntime) -> FakePycuda:
    assert runtime.calls == []
    return install_pycuda(monkeypatch)


@pytest.mark.parametrize(
    ("package", "allocate", "pin"),
    [("cuda-bindings", "cudaMalloc", "cudaHostAlloc"), ("pycuda", "mem_alloc", "pagelocked_empty")],
)
def test_a_package_out_of_memory_is_one_sentence(
    package: str, allocate: str, pin: str, runtime: FakeRuntime, driver: FakePycuda
) -> None:
    memory = open_device_memory(package)
    fake: Any = driver if package == "pycuda" else runtime
    full = driver.MemoryError("out of memory") if package == "pycuda" else Status.cudaErrorMemoryAllocation
    fake.fail = {allocate: full}
    with pytest.raises(FsvitEdgeError, match=r"^The GPU's memory is full: 64 MiB needed, 3 of the GPU's 8192 MiB"):
        memory.alloc(64 * 2**20)
    assert ("cudaGetLastError" in runtime.calls) == (package == "cuda-bindings")
    fake.fail = {pin: full}
    with pytest.raises(FsvitEdgeError, match=r"^The machine's pinned memory is full: 4 MiB needed"):
        memory.upload(np.zeros(4, np.uint8), memory.alloc(4))
    memory.close()


@pytest.mark.parametrize("function", ["cudaSetDevice", "cudaMalloc"])
def test_the_error_for_an_old_driver_names_what_to_install(runtime: FakeRuntime, function: str) -> None:
    runtime.fail[function] = Status.cudaErrorInsufficientDriver
    with pytest.raises(EnvironmentLacksError) as old:
        open_device_memory("cuda-bindings").alloc(4)
    assert old.value.exit_code == 3
    assert str(old.value) == (
        "The NVIDIA driver supports CUDA 12.6, but the installed cuda-bindings needs CUDA 13; update the driver, or: "
        'pip install "cuda-bindings<13".'
    )


@pytest.mark.parametrize(
    ("package", "functions", "what"),
    [
        (
            "cuda-bindings",
            ("cudaStreamSynchronize", "cudaFree", "cudaFreeHost", "cudaStreamDestroy"),
            "cudaStreamSynchronize: cudaErrorIllegalAddress",
        ),
        ("pycuda", ("synchronize", "free", "unpin"), "synchronization: cuStreamSynchronize failed: illegal address"),
    ],
)
def test_a_lost_gpu_is_one_sentence_and_can_still_be_closed(
    package: str, functions: tuple[str, ...], what: str, runtime: FakeRuntime, driver: FakePycuda
) -> None:
    memory = open_device_memory(package)
    buffer = memory.alloc(4)
    for function in functions:
        runtime.fail[function] = Status.cudaErrorIllegalAddress
        driver.fail[function] = driver.LogicError("cuStreamSynchronize failed: illegal address.")
    with pytest.raises(FsvitEdgeError) as lost:
        memory.download(buffer, (4,), np.uint8)
    assert lost.value.exit_code == 1
    assert str(lost.value) == f"The GPU failed during {what}; restart the program."
    memory.close()


@pytest.mark.parametrize("package", MEMORY_PACKAGES)
def test_a_package_leaves_nothing_behind(package: str, runtime: FakeRuntime, driver: FakePycuda) -> None:
    memory = open_device_memory(package)
    buffers = [memory.alloc(10) for _ in range(3)]
    memory.upload(np.zeros(10, np.uint8), buffers[0])
    memory.download(buffers[0], (10,), np.uint8)
    graph = memory.capture(lambda: None)
    assert graph is not None
    own = 1 if package == "cuda-bindings" else 0
    assert runtime.open == {"stream": own, "graph": 0, "executable": 1}
    # Three buffers and a pinned one per direction.
    assert (len(runtime.memory), len(driver.memory), driver.pinned) == ((5, 0, 0) if own else (0, 3, 2))
    assert (driver.retained, driver.current) == (1 - own, 0)
    graph.free()
    memory.close()
    assert set(runtime.open.values()) == {0}
    assert runtime.memory == driver.memory == {}
    assert (driver.retained, driver.pinned, driver.current) == (0, 0, 0)


@pytest.mark.parametrize("function", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
@pytest.mark.parametrize("backend", MEMORY_PACKAGES)
def test_a_capture_that_fails_is_none_and_leaves_no_error_and_no_graph(
    backend: str, function: str, runtime: FakeRuntime, driver: FakePycuda
) -> None:
    memory = open_device_memory(backend)
    runtime.fail[function] = Status.cudaErrorStreamCaptureUnsupported
    assert memory.capture(lambda: None) is None
    assert runtime.calls[-1] in ("cudaGetLastError", "cudaGraphDestroy")
    assert "cudaGetLastError" in runtime.calls
    assert runtime.open["graph"] == runtime.open["executable"] == 0
    runtime.fail = {}
    assert memory.capture(lambda: None) is not None
    assert driver.current == 0
    memory.close()


@pytest.mark.usefixtures("driver")
def test_pycuda_alone_cannot_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, "cuda", "cuda.bindings", "cuda.bindings.runtime")
    memory = open_device_memory("pycuda")
    assert memory.capture(lambda: None) is None
    memory.close()


@pytest.mark.usefixtures("driver")
def test_pycuda_is_used_if_it_can_be_imported_else_cuda_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = open_device_memory()
    assert memory.name == "pycuda"
    memory.close()
    forbid(monkeypatch, "pycuda", "pycuda.driver")
    memory = open_device_memory()
    assert memory.name == "cuda-bindings"
    memory.close()


def test_without_either_the_command_matches_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_packages, "find_gpu", lambda: GPU)
    forbid(monkeypatch, "pycuda", "pycuda.driver", "cuda", "cuda.bindings", "cuda.bindings.runtime")
    with pytest.raises(EnvironmentLacksError) as lacking:
        open_device_memory()
    assert lacking.value.exit_code == 3
    assert str(lacking.value) == (
        "TensorRT needs pycuda or cuda-bindings to manage the GPU's memory, which is not installed; try: "
        'pip install "cuda-bindings<13", or: pip install pycuda, or use --engine onnxruntime.'
    )
    with pytest.raises(EnvironmentLacksError, match=r"^TensorRT needs cuda-bindings to"):
        open_device_memory("cuda-bindings")


def test_without_a_gpu_nothing_is_imported(monkeypatch: pytest.MonkeyPatch, runtime: FakeRuntime) -> None:
    monkeypatch.setattr(cuda_packages, "find_gpu", lambda: None)
    monkeypatch.setattr(cuda_packages, "gpu_missing_reason", lambda: "the NVIDIA driver finds no GPU")
    with pytest.raises(EnvironmentLacksError) as lacking:
        open_device_memory()
    assert str(lacking.value) == "The GPU cannot be used: the NVIDIA driver finds no GPU; use --engine onnxruntime."
    assert runtime.calls == []


@pytest.mark.skipif(find_gpu() is not None, reason="a GPU is here")
def test_the_installed_cuda_bindings_have_every_name_that_is_used() -> None:
    real: Any = pytest.importorskip("cuda.bindings.runtime")
    fakes = [name.removeprefix("do_") for name in vars(FakeRuntime) if name.startswith("do_")]
    assert len(fakes) > 15
    for name in (*fakes, "cudaHostAllocDefault", "cudaStreamNonBlocking"):
        assert hasattr(real, name), name
    for kind, members in (("cudaError_t", Status), ("cudaMemcpyKind", type(FakeRuntime.cudaMemcpyKind(1)))):
        for member in members:
            assert int(getattr(getattr(real, kind), member.name)) == member
    assert real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal == 1
    with pytest.raises((EnvironmentLacksError, FsvitEdgeError)):
        cuda_packages.CudaMemory()
    assert gpu_missing_reason()
