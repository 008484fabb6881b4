"""What decoding, journal and label files cost beside the model: pictures per second of `label` and of the model alone.

    python benchmarks/label.py FOLDER [--pictures 100] [--turns 7] [--format jsonl] [--threads N] [--precision P]

FOLDER has pictures, of which the first is enrolled by its name. The model alone answers pictures that are decoded and
in memory; `label` reads files and writes labels. Both take turns with one model each, and their opening does not count.
Prints the median and range of both, their ratio, the processor's time of both, which other programs disturb less, and
the largest memory of a `label` in a process of its own.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from model_options import model_parser, open_model

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.label.fill import Progress
from fsvit_edge.label.job import LabelOptions, label
from fsvit_edge.label.labeler import LabelerOptions
from fsvit_edge.label.pictures import list_pictures
from fsvit_edge.runtime.pictures import read_image

# A child starts with the memory of the process that forks it, which must be a small one.
_WATCH = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def of_model(model: FewShotModel, images: list[Image]) -> tuple[float, float]:
    """Pictures per second of `predict`, and milliseconds of the processor for each."""
    started_s, used_s = time.perf_counter(), time.process_time()
    for image in images:
        model.predict(image)
    count = len(images)
    return count / (time.perf_counter() - started_s), (time.process_time() - used_s) * 1e3 / count


def of_label(options: LabelOptions) -> tuple[float, float]:
    """The same from the second picture, when the model is open, to the label files."""
    first: tuple[float, float] | None = None

    def note(_: Progress) -> None:
        nonlocal first
        first = first or (time.perf_counter(), time.process_time())

    count = label(options, on_progress=note).labeled - 1
    assert first is not None
    return count / (time.perf_counter() - first[0]), (time.process_time() - first[1]) * 1e3 / count


def peak_mb(options: LabelOptions) -> float:
    """Largest resident memory of the command."""
    words = ["label", *options.sources, "--output", str(options.output), "--format", options.format]
    words += ["--bank", str(options.labeler.bank), "--bundle", str(options.labeler.bundle)]
    words += ["--precision", options.labeler.precision]
    words += [] if options.labeler.threads is None else ["--threads", str(options.labeler.threads)]
    command = [sys.executable, "-m", "fsvit_edge.cli.main", *words]
    done = subprocess.run([sys.executable, "-c", _WATCH, *command], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def main() -> None:
    """Measure and print."""
    parser = model_parser((__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--format", default="jsonl")
    given = parser.parse_args()
    listing = list_pictures([str(given.folder)])
    files = [listing.file(entry) for entry in listing.entries[: given.pictures]]
    images = [read_image(file) for file in files]
    with tempfile.TemporaryDirectory() as name, open_model(given) as model:
        folder = Path(name)
        bank, chosen = folder / "bank.safetensors", folder / "pictures.txt"
        model.enroll("thing", images[:1])
        model.save_bank(bank)
        chosen.write_text("".join(f"{file}\n" for file in files))
        labeler = LabelerOptions(bank, given.bundle, "auto", given.precision, given.threads)
        rates: dict[str, list[float]] = {"model alone": [], "label": []}
        used_ms: dict[str, list[float]] = {name: [] for name in rates}
        for turn in range(given.turns + 1):
            options = LabelOptions(labeler, (str(chosen),), folder / str(turn), given.format)
            for kind, (rate, ms) in (("model alone", of_model(model, images)), ("label", of_label(options))):
                if turn:  # the first one warms up
                    rates[kind].append(rate)
                    used_ms[kind].append(ms)
        for kind, found in rates.items():
            spread = f"({min(found):.1f} to {max(found):.1f}), {statistics.median(used_ms[kind]):.1f} ms CPU each"
            print(f"{kind:12} {statistics.median(found):6.1f} pictures/s {spread}")
        ratios = [after / before for before, after in zip(*rates.values(), strict=True)]
        print(f"{'ratio':12} {statistics.median(ratios):6.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        print(f"{'memory':12} {peak_mb(LabelOptions(labeler, (str(chosen),), folder / 'last', given.format)):6.0f} MB")


if __name__ == "__main__":
    main()
