"""What Ray costs on one machine: pictures per second and memory of one process of `label`, of two, and of `--ray`.

    python benchmarks/label_on_ray.py FOLDER [--pictures 200] [--turns 7] [--cores 2] [--bundle B] [--precision P]

FOLDER has pictures, of which the first is enrolled by its name. In turns, each a command of its own:

- one process: `label`, with as many threads as there are cores;
- two processes: two commands at once, each with one thread and half of the pictures;
- Ray: `label --ray`, with a process of one thread per core.

Commands also open models, and Ray starts, so each is timed for all pictures and for a tenth of them, and the rate is
that of the difference; what is left is the start. So is the processor's time, which other programs disturb less. The
labels of Ray are compared with those of one process, byte for byte. Memory is the largest sum over the processes of a
command, each with its share of what several map (PSS).
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from model_options import model_parser, open_model

from fsvit_edge.label.pictures import list_pictures
from fsvit_edge.runtime.pictures import read_image

KINDS = ("one process", "two processes", "Ray")
_PERIOD_S = 0.5


class Cost(NamedTuple):
    """What commands took."""

    wall_s: float
    used_s: float  # of processors
    peak_mb: float


def watch(commands: list[list[str]]) -> Cost:
    """Run commands beside each other, and look at all of their processes now and then."""
    started_s, peak_mb, used = time.perf_counter(), 0.0, dict[int, float]()
    running = [psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for command in commands]
    while any(one.poll() is None for one in running):
        mb = 0.0
        for one in running:
            for process in tree(one):
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it ended meanwhile
                    times = process.cpu_times()
                    used[process.pid] = times.user + times.system
                    mb += process.memory_full_info().pss / 1e6
        peak_mb = max(peak_mb, mb)
        time.sleep(_PERIOD_S)
    took_s = time.perf_counter() - started_s
    for one in running:
        assert one.returncode == 0, one.stderr.read().decode()
    return Cost(took_s, sum(used.values()), peak_mb)


def tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that it started."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def contents(folder: Path) -> dict[str, bytes]:
    """The label files of an output."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".parquet")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if ".fsvit" not in str(path)}


def main() -> None:
    """Measure and print."""
    parser = model_parser((__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--cores", type=int, default=2)
    given = parser.parse_args()
    listing = list_pictures([str(given.folder)])
    files = [listing.file(entry) for entry in listing.entries]
    files = [files[index % len(files)] for index in range(given.pictures)]
    few = given.pictures // 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open_model(given) as model:
            model.enroll("thing", [read_image(files[0])])
            model.save_bank(folder / "bank.safetensors")
        for number, file in enumerate(files):  # links, because a picture that is listed twice is labeled once
            for kind in ("all", "few")[: 1 + (number < few)]:
                half = folder / kind / str(number % 2)
                half.mkdir(parents=True, exist_ok=True)
                (half / f"{number:06}{file.suffix}").symlink_to(file.resolve())

        def command(source: str, output: str, *more: str) -> list[str]:
            words = ["label", str(folder / source), "--output", str(folder / output), "--format", "jsonl"]
            words += ["--bank", str(folder / "bank.safetensors"), "--bundle", str(given.bundle)]
            words += ["--precision", given.precision, *more]
            return [sys.executable, "-m", "fsvit_edge.cli.main", *words]

        def run(kind: str, count: str) -> Cost:
            for output in folder.glob("out-*"):
                shutil.rmtree(output)
            if kind == "one process":
                return watch([command(count, "out-one", "--threads", str(given.cores))])
            if kind == "two processes":
                return watch([command(f"{count}/{half}", f"out-{half}", "--threads", "1") for half in "01"])
            return watch([command(count, "out-ray", "--threads", "1", "--ray")])

        rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
        used_ms: dict[str, list[float]] = {kind: [] for kind in KINDS}
        starts: dict[str, list[float]] = {kind: [] for kind in KINDS}
        peaks = dict.fromkeys(KINDS, 0.0)
        labels = {}
        for _ in range(given.turns):
            for kind in KINDS:
                of_few, of_all = run(kind, "few"), run(kind, "all")
                each_s = (of_all.wall_s - of_few.wall_s) / (given.pictures - few)
                rates[kind].append(1 / each_s)
                used_ms[kind].append((of_all.used_s - of_few.used_s) / (given.pictures - few) * 1e3)
                starts[kind].append(of_few.wall_s - few * each_s)
                peaks[kind] = max(peaks[kind], of_all.peak_mb)
                if kind != "two processes":
                    labels[kind] = contents(folder / ("out-ray" if kind == "Ray" else "out-one"))
        assert labels["Ray"] == labels["one process"], "Ray's labels differ"
        print(f"{given.pictures} pictures, {given.turns} turns; Ray's labels are those of one process, byte for byte")
        for kind in KINDS:
            found, start = rates[kind], statistics.median(starts[kind])
            ms = statistics.median(used_ms[kind])
            spread = f"({min(found):.1f} to {max(found):.1f}), {ms:.0f} ms CPU each, {start:.0f} s before the first"
            spread += f", {peaks[kind]:.0f} MB"
            print(f"{kind:14} {statistics.median(found):6.1f} pictures/s {spread}")
        ratios = [ray / one for one, ray in zip(rates["one process"], rates["Ray"], strict=True)]
        print(f"{'Ray / one':14} {statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
