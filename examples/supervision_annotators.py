"""Draw what is found in a picture with supervision's annotators, and count the instances in each half of it.

python examples/supervision_annotators.py photo.jpg bank.safetensors drawn.jpg

Needs supervision: pip install "fsvit-edge[supervision]". Its trackers and slicers take the same detections.
"""

import sys
from pathlib import Path

import numpy as np
import supervision as sv

from fsvit_edge import FewShotModel
from fsvit_edge.runtime.pictures import read_image, write_image


def main(photo: Path, bank: Path, output: Path) -> None:
    """Write `output`, a picture with masks, names and scores."""
    rgb = read_image(photo)
    with FewShotModel.load(bank=bank) as model:
        model.load_bank(bank)
        detections = model.predict(rgb).to_supervision()
    scores = np.zeros(0, np.float32) if detections.confidence is None else detections.confidence
    named = zip(detections.data["class_name"], scores, strict=True)
    drawn = rgb[..., ::-1].copy()  # supervision draws in BGR, as OpenCV does
    drawn = sv.MaskAnnotator().annotate(drawn, detections)
    drawn = sv.RichLabelAnnotator().annotate(drawn, detections, [f"{name} {score:.2f}" for name, score in named])
    write_image(output, np.ascontiguousarray(drawn[..., ::-1]))
    height, width = rgb.shape[:2]
    for name, left, right in (("left", 0, width // 2), ("right", width // 2, width)):
        corners = np.array([(left, 0), (right, 0), (right, height), (left, height)])
        zone = sv.PolygonZone(corners, triggering_anchors=[sv.Position.CENTER])
        print(f"{name} half: {int(zone.trigger(detections).sum())} of {len(detections)} instances")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:4]))
