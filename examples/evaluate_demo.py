"""Compare a bundle's answers on the demo video with the truth.

    python examples/evaluate_demo.py [BUNDLE]

The demo's scenes and supports were chosen for the bundled model, so this shows that the parts work together, but it is
not a benchmark. Presence is not scored if a class fills less than 1 % of the frame.
"""

import sys

import numpy as np

from fsvit_edge import FewShotModel
from fsvit_edge.live.sources.demo import DEMO_CLASSES, demo_frame, demo_length, demo_supports, demo_truth

SLIVER = 0.01


def main(bundle: str | None) -> None:
    """Print presence accuracy and IoU of each class, and the share of frames in which every presence is right."""
    ways = len(DEMO_CLASSES)
    right, scored, intersection, union = (np.zeros(ways, np.int64) for _ in range(4))
    all_right = all_scored = 0
    with FewShotModel.load(bundle) as model:
        for support in demo_supports():
            model.enroll(support.name, [support.image], [support.mask])
        assert model.classes == DEMO_CLASSES
        for index in range(demo_length()):
            prediction, truth = model.predict(demo_frame(index)), demo_truth(index)
            guessed = [prediction.label_map == way + 1 for way in range(ways)]
            actual = [truth == way + 1 for way in range(ways)]
            intersection += [int((a & b).sum()) for a, b in zip(guessed, actual, strict=True)]
            union += [int((a | b).sum()) for a, b in zip(guessed, actual, strict=True)]
            cover = np.array([mask.mean() for mask in actual])
            clear = (cover == 0) | (cover >= SLIVER)
            correct = prediction.present == (cover > 0)
            right += correct & clear
            scored += clear
            if clear.all():
                all_scored += 1
                all_right += bool(correct.all())
    for way, name in enumerate(DEMO_CLASSES):
        print(f"{name:10} presence {right[way] / scored[way]:.1%}, IoU {intersection[way] / union[way]:.1%}")
    print(f"every presence right in {all_right / all_scored:.1%} of {all_scored} frames")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
