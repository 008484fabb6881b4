"""The head as GPUs run it, all supports in one padded run, on the CPU."""

from dataclasses import replace
from pathlib import Path

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.engines.choose import choose_engines


def padded_bundle(path: Path = DEFAULT_BUNDLE) -> Bundle:
    """A bundle without the head for CPUs, as older ones are."""
    return replace(Bundle.load(path), cpu_graphs={})


def padded_model(path: Path = DEFAULT_BUNDLE) -> FewShotModel:
    bundle = padded_bundle(path)
    return FewShotModel(bundle.manifest, *choose_engines(bundle, "onnxruntime", "fp32", 1))
