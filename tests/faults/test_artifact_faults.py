"""A hundred thousand damaged banks and bundles: none is taken for another, none crashes, none hangs."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from safetensors import safe_open

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.cached_support import CachedSupport
from fsvit_edge.fewshot.identity import EncoderIdentity
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, MANIFEST_NAME, Bundle, sealed
from fsvit_edge.runtime.errors import FsvitEdgeError

pytestmark = pytest.mark.slow(reason="damages a hundred thousand files")

BANKS, MANIFESTS, GRAPHS = 60_000, 38_000, 2_000
PARTS = 4  # which workers of pytest-xdist share
SLOWEST_S = 2.0
DTYPES = {
    "float32": TensorProto.FLOAT,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "float16": TensorProto.FLOAT16,
}


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage some bytes as disks, networks and people do: flips, cuts, insertions, zeros, and copied pieces."""
    out = bytearray(data)
    at, length = int(rng.integers(0, len(out))), int(rng.integers(1, 64))
    kind = int(rng.integers(0, 6))
    if kind == 0:
        out[at] ^= 1 << int(rng.integers(0, 8))
    elif kind == 1:
        del out[at:]
    elif kind == 2:
        out[at:at] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
    elif kind == 3:
        out[at : at + length] = bytes(min(length, len(out) - at))
    elif kind == 4:
        other = int(rng.integers(0, len(out)))
        out[at : at + length] = out[other : other + length]
    else:
        del out[at : at + length]
    return bytes(out)


def bank_of_two() -> SupportBank:
    rng = np.random.default_rng(1)
    bank = SupportBank(EncoderIdentity("x", "ab" * 32, 32, 2, 4, "fp32"))
    for name, tokens in (("cat", 3), ("Größe 猫", 2)):
        support = CachedSupport(
            rng.standard_normal((2, tokens, 4)).astype(np.float16),
            rng.standard_normal((2, 9, 4)).astype(np.float16),
            rng.random(9) > 0.5,
            rng.integers(0, 256, (5, 6, 3), dtype=np.uint8),
            rng.random((5, 6)) > 0.5,
            True,
        )
        bank.add(name, [support])
    return bank


def meaning(bank: SupportBank) -> object:
    """All that a bank says."""
    return (
        bank.identity,
        [
            (name, *(value.tobytes() if isinstance(value, np.ndarray) else repr(value) for value in vars(one).values()))
            for name in bank.classes
            for one in bank.supports(name)
        ],
    )


def attack(
    path: Path, count: int, load: Callable[[], object], is_same: Callable[[object], bool], seed: int = 0
) -> tuple[int, float]:
    """Damage a file again and again; give how often it was taken for something else, and the slowest refusal."""
    data, rng = path.read_bytes(), np.random.default_rng(seed)
    wrong, slowest_s = 0, 0.0
    for _ in range(count):
        damaged = mutated(data, rng)
        path.write_bytes(damaged)
        started = time.perf_counter()
        try:
            loaded = load()
        except FsvitEdgeError:
            pass
        else:
            wrong += not is_same(loaded)
        slowest_s = max(slowest_s, time.perf_counter() - started)
    path.write_bytes(data)
    return wrong, slowest_s


@pytest.mark.parametrize("seed", range(PARTS))
def test_no_damaged_bank_is_accepted(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "bank.safetensors"
    bank = bank_of_two()
    bank.save(path)
    expected = meaning(bank)
    wrong, slowest_s = attack(
        path, BANKS // PARTS, lambda: SupportBank.load(path), lambda loaded: meaning(loaded) == expected, seed
    )
    print(f"{BANKS // PARTS} banks: {wrong} wrong, slowest {slowest_s * 1e3:.0f} ms")
    assert wrong == 0
    assert slowest_s < SLOWEST_S


def declaring(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> bytes:
    """An ONNX file with these tensors, as a manifest describes them, and no nodes."""
    kinds = (
        [helper.make_tensor_value_info(one["name"], DTYPES[one["dtype"]], one["shape"]) for one in part]
        for part in (inputs, outputs)
    )
    model: bytes = helper.make_model(helper.make_graph([], "g", *kinds)).SerializeToString()
    return model


@pytest.fixture
def small_bundle(tmp_path: Path) -> Path:
    """A bundle like the one shipped, whose graphs only declare their inputs and outputs."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    manifest = json.loads((DEFAULT_BUNDLE / MANIFEST_NAME).read_text())
    for graph in (*manifest["graphs"].values(), *manifest["cpu_graphs"].values()):
        data = declaring(graph["inputs"], graph["outputs"])
        (folder / graph["file"]).write_bytes(data)
        graph["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / MANIFEST_NAME).write_text(json.dumps(sealed(manifest), indent=2))
    return folder


def test_no_damaged_graph_is_accepted(small_bundle: Path) -> None:
    whole = Bundle.load(small_bundle)
    for name in ("encoder.onnx", "outline.onnx"):
        path = small_bundle / name
        wrong, slowest_s = attack(path, GRAPHS // 2, lambda: Bundle.load(small_bundle), lambda one: one == whole)
        assert wrong == 0
        assert slowest_s < SLOWEST_S


def test_no_damaged_manifest_is_accepted(small_bundle: Path) -> None:
    whole = Bundle.load(small_bundle)
    path = small_bundle / MANIFEST_NAME
    wrong, slowest_s = attack(path, MANIFESTS, lambda: Bundle.load(small_bundle), lambda loaded: loaded == whole)
    print(f"{MANIFESTS} manifests: {wrong} wrong, slowest {slowest_s * 1e3:.0f} ms")
    assert wrong == 0
    assert slowest_s < SLOWEST_S


def test_a_parser_alone_accepts_damaged_tensors(tmp_path: Path) -> None:
    """The control: safetensors checks the shape of a file, not what is in it."""
    path = tmp_path / "bank.safetensors"
    bank_of_two().save(path)

    def load() -> object:
        try:
            with safe_open(path, framework="numpy") as file:
                return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118 - not a mapping
        except Exception as error:
            raise FsvitEdgeError(type(error).__name__) from error

    whole = load()
    wrong, _ = attack(path, 2000, load, lambda loaded: loaded == whole)
    assert wrong > 100
