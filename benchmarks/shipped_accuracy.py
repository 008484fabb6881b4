"""What the speed of the bundled model costs in accuracy: `python benchmarks/shipped_accuracy.py SET [SET ...]`.

On the same episodes: FP32 with all tokens of the supports, FP32 with as many as the model keeps, and INT8 with as many,
which is what runs on an x86 processor with VNNI. Sets are folders of <class>/{images,masks}, used as in `accuracy.py`.
Prints a table: exact ratio / mIoU sharp (CST alone), and the share of pixels whose label is that of the first.
"""

import argparse
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
from accuracy import first_picture_episodes

from fsvit_edge import FewShotModel
from fsvit_edge.learn.datasets import open_data
from fsvit_edge.learn.evaluation import Answer, EvaluationOptions, evaluate
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.engines.choose import choose_engines
from fsvit_edge.runtime.machine import Machine


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    most = Bundle.load(DEFAULT_BUNDLE).manifest.most_tokens
    variants = {"FP32, all tokens": ("fp32", 0), f"FP32, {most} tokens": ("fp32", most), "INT8": ("int8", most)}
    print(f"{Machine.here().cpu}, onnxruntime {version('onnxruntime')}; 1-way 1-shot with masks\n")
    print(f"| data | {' | '.join(variants)} |\n|---|" + "---|" * len(variants))
    for root in asked.sets:
        cells = _cells(root, variants, asked.episodes, asked.threads)
        print(f"| {root.name} | {' | '.join(cells)} |", flush=True)


def _cells(root: Path, variants: dict[str, tuple[str, int]], episodes: int, threads: int) -> list[str]:
    data = open_data("folder", root, None, None, "test")
    follows = first_picture_episodes(data) if root.name.startswith("davis") else None
    options = EvaluationOptions(1, 1, len(follows) if follows else episodes, masks=True)
    first: dict[int, npt.NDArray[np.uint8]] = {}
    cells = []
    for number, (precision, most_tokens) in enumerate(variants.values()):
        equal: list[float] = []

        def note(answer: Answer, equal: list[float] = equal, is_first: bool = number == 0) -> None:
            labels = answer.prediction.label_map
            if is_first:
                first[answer.number] = labels
            equal.append(float(np.mean(labels == first[answer.number])))

        with _open(precision, most_tokens, threads) as model:
            sharp = evaluate(model, data, options, on_answer=note, episodes=follows).scores
            model.outlines = "plain"
            plain = evaluate(model, data, options, episodes=follows).scores
        assert sharp.miou is not None
        assert plain.miou is not None
        cell = f"{sharp.exact_ratio.value:.1f} / {sharp.miou.value:.2f} ({plain.miou.value:.2f})"
        cells.append(cell if number == 0 else f"{cell}; {np.mean(equal):.2%}")
    return cells


def _open(precision: str, most_tokens: int, threads: int) -> FewShotModel:
    bundle = Bundle.load(DEFAULT_BUNDLE)
    manifest = replace(bundle.manifest, most_tokens=most_tokens)
    return FewShotModel(manifest, *choose_engines(bundle, "onnxruntime", precision, threads))


if __name__ == "__main__":
    main()
