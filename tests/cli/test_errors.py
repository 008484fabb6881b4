"""What every command does if it cannot go on: one sentence, the exit code of its kind, and no file changed."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from command_line import Cli, contents, fill_disk, is_one_error, json_lines, spawn

from fsvit_edge import FewShotModel


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        # 1: anything else
        ("run photo.jpg --sink http://203.0.113.7:80", 1, "cannot be served at 203.0.113.7:80: Cannot assign"),
        # 2: an input cannot be used
        ("run photo.jpg --xyzzy", 2, "No such option: --xyzzy; fsvit-edge run has --cameras, --camera, "),
        ("run photo.jpg --num 5", 2, "No such option: --num; fsvit-edge run has --cameras, --camera, --sink, "),
        ("fly", 2, "No such command 'fly'; see: fsvit-edge --help"),
        ("bank fly", 2, "No such command 'fly'; see: fsvit-edge bank --help"),
        ("enroll cat", 2, "Missing argument"),
        ("run photo.jpg --max-frames 0", 2, "--max-frames"),
        ("run photo.jpg --sink", 2, "--sink"),
        ("bench --ways 256", 2, "--ways"),
        ("enroll cat broken.jpg", 2, "broken.jpg is damaged or cut short"),
        ("enroll cat notes.txt", 2, "notes.txt is damaged or not a PNG"),
        ("enroll cat cat1.jpg --mask cat1_mask.png --mask black.png", 2, "1 picture but 2 masks"),
        ("enroll cat cat1.jpg --mask black.png", 2, "The mask black.png marks no pixel"),
        ("enroll cat cat2.png --mask cat1_mask.png", 2, "is 160x120 pixels, but its picture is 60x90"),
        ("enroll cat cat1.jpg --level 1", 2, "must be between 0 and 1, both excluded; got 1.0"),
        ("run photo.jpg --level 0", 2, "must be between 0 and 1, both excluded; got 0.0"),
        ("bank level bank.safetensors cat 1.5", 2, "must be between 0 and 1, both excluded; got 1.5"),
        ("bank level bank.safetensors dog 0.5", 2, "'dog' is not enrolled"),
        ("enroll ' cat' cat1.jpg", 2, "A class name must be 1 to 80 printable characters, got ' cat'"),
        ("enroll cat cat1.jpg --bank bank.pt", 2, "A bank must be a .safetensors file, got bank.pt"),
        ("enroll cat cat1.jpg --bank notes.txt/bank.safetensors", 2, "is a file, not a folder"),
        (f"run {'x' * 256}.jpg", 2, "x.jpg cannot be reached: File name too long; give another path."),
        (f"inspect {'x' * 256}", 2, "x cannot be reached: File name too long; give another path."),
        (f"enroll cat cat1.jpg --bank {'x' * 256}.safetensors", 2, "x.safetensors cannot be reached: File name too"),
        (f"enroll cat cat1.jpg --preview {'x' * 256}.png", 1, "x.png cannot be written: File name too long; nothing"),
        ("bank list notes.txt", 2, "A bank must be a .safetensors file, got notes.txt"),
        ("bank remove bank.safetensors dog", 2, "'dog' is not enrolled; enrolled: cat, Größe 猫"),
        ("bank rename bank.safetensors cat ''", 2, "A class name must be"),
        ("bank rename bank.safetensors cat 'Größe 猫'", 2, "'Größe 猫' already exists"),
        ("run", 2, "Give a source"),
        ("run ''", 2, "Unsupported source ''; expected a picture"),
        ("run notes.txt", 2, "notes.txt is not a picture or video"),
        ("run broken.jpg", 2, "broken.jpg is damaged or cut short"),
        ("run empty", 2, "The folder empty contains no pictures"),
        ("run ftp://127.0.0.1/video.mp4", 2, "Unsupported source ftp:...; expected a picture"),
        ("run rtsp://", 2, "Invalid stream address rtsp://; expected rtsp://HOST/PATH."),
        ("run --camera photo.jpg", 2, "--camera reads a camera, but SOURCE is 'photo.jpg'"),
        ("run photo.jpg --sink notes.txt/", 2, "notes.txt cannot be a folder: notes.txt is a file"),
        ("run photo.jpg --sink photo.jpg", 2, "The sink photo.jpg is the source, which it would overwrite"),
        ("run video.mp4 --sink ./video.mp4", 2, "is the source, which it would overwrite; give another name"),
        (
            "enroll cat cat1.jpg --preview ./cat1.jpg",
            2,
            "cat1.jpg is read, and would be replaced; give another name with",
        ),
        ("enroll cat cat1.jpg --mask cat1_mask.png --preview cat1_mask.png", 2, "cat1_mask.png is read, and would be"),
        ("enroll cat . --preview cat1.jpg", 2, "cat1.jpg is read, and would be replaced"),
        ("eval --data . --checkpoint notes.txt --output notes.txt", 2, "notes.txt is read, and would be replaced"),
        (
            "run photo.jpg --health notes.txt",
            2,
            "The file notes.txt is not the health of a run, which would replace it",
        ),
        ("run photo.jpg --sink a.jsonl --sink ./a.jsonl", 2, "Two sinks would write to ./a.jsonl; give each its own"),
        ("run album --sink album/", 2, "The sink album/ is the source, which it would overwrite"),
        ("build-engine --engine cpu --int8", 2, "Engine 'cpu' is now called 'onnxruntime'"),
        ("run photo.jpg --engine cpu", 2, "Engine 'cpu' is now called 'onnxruntime'"),
        (
            "run photo.jpg --engine gpu",
            2,
            "Engine 'gpu' is unknown; choose one of: auto, onnxruntime, onnxruntime-cuda",
        ),
        ("run photo.jpg --precision fp64", 2, "Precision 'fp64' is unknown; choose one of: auto, fp32, bf16"),
        ("run photo.jpg --engine onnxruntime-cuda --precision int8", 2, "-cuda runs the bundle's own FP32 graphs"),
        ("enroll cat cat1.jpg --precision fp16 --engine onnxruntime", 2, "use --precision fp32 or int8"),
        ("export --backbone vit_small_patch16_224.dino", 2, "A backbone has no head"),
        ("build-engine --int8 --fp16", 2, "Build one precision at a time, got fp16, int8"),
        ("build-engine --max-drop 1", 2, "--max-drop limits the loss on a data set; name the data set with"),
        ("build-engine --fp16 --calib album", 2, "--calib has no effect here"),
        ("run photo.jpg --flip left", 2, "--flip must be one of none, horizontal, vertical, both, got 'left'."),
        ("run photo.jpg --width 640", 2, "--width and --height are for cameras; photo.jpg has a fixed size."),
        ("run rtsp://me:S3cret@host/cam --loop", 2, "--realtime are for files and the demo; rtsp://host/cam"),
        ("run photo.jpg --health .", 2, "The health file . is a folder; give the name of a file with --health."),
        ("run photo.jpg --segment 0.1 --sink x.mp4", 2, "--segment must be at least 1 second, got 0.1."),
        ("run photo.jpg --keep 0 --sink x/", 2, "--keep must be at least 1 file, got 0."),
        ("run photo.jpg --sink http://127.0.0.1:0 --token ''", 2, "--token must be 8 to 128 letters"),
        ("run photo.jpg --sink out.mp4 --sink out.avi", 2, "Unsupported sink 'out.avi'"),
        ("run photo.jpg --sink mqtt://me:S3cret@host", 2, "Invalid MQTT address mqtt://host; expected"),
        ("run photo.jpg --sink mqtt://a..b/t", 2, "Invalid MQTT address mqtt://a..b/t; expected"),
        ("run photo.jpg --sink http://a..b:0", 2, "Unsupported page address"),
        ("run photo.jpg --sink @none.txt", 2, "The file none.txt cannot be read: No such file"),
        ("run --camera rtsp://me:S3cret@host/cam", 2, "--camera reads a camera, but SOURCE is 'rtsp://host/cam'; give"),
        ("rtsp://me:S3cret@host/cam", 2, "No such command 'rtsp://host/cam'"),
        ("bench rtsp://me:S3cret@host/cam", 2, "unexpected extra argument(s) (rtsp://host/cam)"),
        ("enroll cat rtsp://me:S3cret@host/cam", 2, "The picture rtsp://host/cam cannot be read"),
        (
            "enroll cat cat1.jpg --bank=rtsp://me:S3cret@host/cam",
            2,
            "A bank must be a .safetensors file, got the address rtsp://host/cam; only run reads",
        ),
        (
            "bank scene https://me:S3cret@host/b.safetensors video.mp4",
            2,
            "got the address https://host/b.safetensors; only run reads a bank from an address. Change its file, and",
        ),
        ("calib album --bank https://host/b.safetensors", 2, "got the address https://host/b.safetensors; only run"),
        ("label album -o out --format yolo --bank http://host/b.safetensors", 2, "got the address http://host/b.safe"),
        ("bank scene bank.safetensors rtsp//me:S3cret@host/cam", 2, "The source is no file, and it looks like an"),
        ("calib rtsp//me:S3cret@host/cam", 2, "The source is no file, and it looks like an address"),
        ("calib", 2, "Missing argument 'source'"),
        ("calib empty", 2, "The folder empty contains no picture"),
        ("calib garbage", 2, "garbage has no picture to calibrate with: garbage/x.png is damaged"),
        ("calib demo", 2, "The demo cannot be used to calibrate"),
        ("calib album --method guess", 2, "Unknown method 'guess'; choose one of: minmax, entropy, percentile."),
        ("calib album --output empty", 2, "empty is a folder; give the name of a file to write"),
        ("calib album --output c.txt", 2, "A calibration is a .json file, got c.txt."),
        ("calib album --output notes.txt/c.json", 2, "notes.txt is a file, not a folder"),
        ("calib album --max-pictures 0", 2, "Invalid value for '--max-pictures'"),
        ("calib album --seconds nan", 2, "Invalid value for '--seconds'"),
        ("build-engine --target sm90", 2, "does not support Hopper"),
        ("build-engine --target sm75 --precision fp32", 2, "no FP32 matrix products for Turing"),
        ("build-engine --target ada", 2, "TensorRT-RTX does not support --target ada; choose from: sm75, sm80, sm86"),
        ("build-engine --engine onnxruntime --target sm86", 2, "--target has no effect here"),
        ("build-engine --data nowhere", 2, "The data folder nowhere does not exist"),
        ("inspect none", 2, "none does not exist; give an engine"),
        ("inspect photo.jpg", 2, "is a file of an unknown kind"),
        ("inspect broken.json", 2, "is not readable JSON"),
        # 3: something is missing on this machine
        ("build-engine --engine tensorrt", 3, "engine tensorrt needs tensorrt, which is not installed; try: pip"),
        ("run photo.jpg --engine tensorrt", 3, "--engine tensorrt needs a GPU, but no NVIDIA driver"),
        ("run photo.jpg --precision fp16", 3, "--precision fp16 needs a GPU, but no NVIDIA driver"),
        ("enroll cat cat1.jpg --engine onnxruntime-cuda", 3, "--engine onnxruntime-cuda needs ONNX Runtime's CUDA"),
        ("run csi://0", 3, "csi://0 needs OpenCV with GStreamer, which pip's OpenCV lacks"),
        # 4: an artifact is damaged or does not fit
        ("run photo.jpg --bundle altered", 4, "head.onnx was altered or damaged: sha256"),
        ("build-engine altered", 4, "head.onnx was altered or damaged: sha256"),
        ("build-engine --int8 --calib none.json", 4, "The calibration none.json does not exist"),
        ("bench --precision int8", 4, "with: fsvit-edge build-engine --engine onnxruntime --precision int8"),
        ("run photo.jpg --bundle album", 4, "album is not a bundle: it has no bundle.json"),
        ("enroll cat cat1.jpg --bundle none", 4, "Bundle none does not exist"),
        ("run photo.jpg --bank foreign.safetensors", 4, "was made with a different encoder: abababababab"),
        ("enroll dog cat1.jpg --bank foreign.safetensors", 4, "was made with a different encoder"),
        ("run photo.jpg --bank broken.safetensors", 4, "Bank broken.safetensors is damaged"),
        ("run photo.jpg --bank none.safetensors", 4, "make one with: fsvit-edge enroll"),
        ("bank list broken.safetensors", 4, "Bank broken.safetensors is damaged"),
        ("bank remove none.safetensors cat", 4, "Bank none.safetensors does not exist"),
        ("calib album --bundle none", 4, "Bundle none does not exist"),
        ("calib album --bank none.safetensors", 4, "Bank none.safetensors does not exist"),
        ("inspect old.json", 4, "has format version None"),
        # 6: a source cannot be reached
        ("run 987", 6, "Camera /dev/video987 does not exist; plug it in"),
        ("run --camera /dev/video987", 6, "Camera /dev/video987 does not exist"),
        ("calib none", 6, "The source none cannot be opened: No such file or directory"),
        ("build-engine --int8 --calib nowhere", 6, "nowhere"),
        ("run none.mp4", 6, "The source none.mp4 cannot be opened: No such file"),
    ],
)
def test_an_error_is_one_sentence_and_changes_no_file(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, line: str, code: int, text: str
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("fsvit_edge.runtime.gpu._LIBRARY", "no-driver.so.1")
    before = contents(folder)
    result = cli(line)
    is_one_error(result, code, text, steps="Calibrate" if line.startswith("calib") else "")
    assert "S3cret" not in result.err
    assert contents(folder) == before


@pytest.mark.parametrize("line", ["run photo.jpg --sink circle.mp4", "run photo.jpg --bundle circle"])
def test_links_in_a_circle_are_one_sentence(folder: Path, cli: Cli, line: str) -> None:
    for name in ("circle", "circle.mp4"):
        (folder / name).symlink_to(name)
    result = cli(line)
    assert result.code in (1, 2, 4)  # which step meets them depends on Python's version
    is_one_error(result, result.code, "circle")


def test_the_error_for_a_damaged_video_has_no_output_of_ffmpeg(folder: Path) -> None:
    # In its own process: the first video that a process opens settles FFmpeg's log level.
    is_one_error(spawn("run", "broken.mp4", cwd=folder), 6, "The video broken.mp4 cannot be opened; it is damaged")


def test_a_file_cannot_be_processed_without_a_bank(folder: Path, cli: Cli) -> None:
    (folder / "bank.safetensors").unlink()
    before = contents(folder)
    is_one_error(
        cli("run photo.jpg --sink out.jsonl"), 2, "No classes are enrolled; enroll one with: fsvit-edge enroll"
    )
    assert contents(folder) == before


def test_a_damaged_picture_is_left_out_of_a_run_which_then_ends_with_1(folder: Path, cli: Cli) -> None:
    shutil.copy("photo.jpg", "album/1.jpg")
    whole = json_lines(cli("run album --json").out)[0]
    assert (whole["frames"], whole["left_out"]) == (3, 0)
    shutil.copy("broken.jpg", "album/1.jpg")
    result = cli("run album --json --sink out.jsonl")
    assert result.code == 1
    assert result.err.startswith("Left out: album/1.jpg is damaged or cut short: its pixels cannot be decoded")
    (summary,) = json_lines(result.out)
    assert (summary["frames"], summary["left_out"]) == (2, 1)
    assert len(json_lines((folder / "out.jsonl").read_text())) == 2


@pytest.mark.parametrize(
    "line",
    [
        "enroll dog cat1.jpg",
        "enroll dog cat1.jpg --bank new.safetensors",
        "bank remove bank.safetensors cat",
        "bank rename bank.safetensors cat dog",
        "run photo.jpg --sink pictures/",
        "calib album --output old.json",
    ],
)
def test_a_full_disk_is_a_failure_and_changes_nothing(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    (folder / "pictures").mkdir()
    before = contents(folder)
    fill_disk(monkeypatch)
    steps = "Calibrate" if line.startswith("calib") else ""
    is_one_error(cli(line), 1, "cannot be written: No space left on device; nothing was changed", steps)
    assert contents(folder) == before


def environment(is_buffered: bool) -> dict[str, str]:
    """This process's environment, in which Python's output is buffered or not."""
    others = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return others if is_buffered else {**others, "PYTHONUNBUFFERED": "1"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device that is always full")
@pytest.mark.parametrize("line", ["inspect bank.safetensors", "--help", "bank list bank.safetensors"])
@pytest.mark.parametrize("is_buffered", [True, False], ids=["buffered", "unbuffered"])
def test_a_full_standard_output_is_an_error_of_one_sentence(folder: Path, line: str, is_buffered: bool) -> None:
    with open("/dev/full", "w") as full:
        result = spawn(*line.split(), cwd=folder, stdout=full, env=environment(is_buffered))
    is_one_error(result, 1, "Standard output cannot be written to: No space left on device")


@pytest.mark.parametrize(
    "line",
    ["inspect bank.safetensors", "inspect bank.safetensors --json", "run album --sink -", "bank list bank.safetensors"],
)
def test_a_reader_that_leaves_early_is_not_an_error(folder: Path, line: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = spawn(*line.split(), cwd=folder, stdout=writer, env=environment(is_buffered=True))
    os.close(writer)
    assert result.code == 0
    assert "rror" not in result.err
    assert "Traceback" not in result.err
    assert "Exception" not in result.err


@pytest.mark.parametrize(
    ("line", "missing", "text"),
    [
        ("export", "torch", 'fsvit-edge export needs torch, which is not installed; try: pip install "fsvit-edge[exp'),
        ("export", "onnxsim", "fsvit-edge export needs onnxsim, which is not installed"),
        ("export", "timm onnx onnxsim", "fsvit-edge export needs timm, onnx and onnxsim, which are not installed; try"),
        ("calib album", "onnx", 'needs onnx, which is not installed; try: pip install "fsvit-edge[build]"'),
        ("build-engine --data .", "lightning torchmetrics", "needs lightning and torchmetrics, which are not in"),
        ("run photo.jpg --sink http://127.0.0.1:0", "fastapi", "The page needs fastapi, which is not installed; try: "),
        ("run photo.jpg --sink http://127.0.0.1:0", "fastapi", 'pip install "fsvit-edge[web]"'),
    ],
)
def test_missing_packages_are_named_with_the_extra_that_installs_them(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, line: str, missing: str, text: str
) -> None:
    before = contents(folder)
    monkeypatch.setattr(
        "fsvit_edge.cli.terminal.find_spec", lambda name: None if name in missing.split() else find_spec(name)
    )
    is_one_error(cli(line), 3, text)
    assert contents(folder) == before


@pytest.mark.usefixtures("folder")
def test_ctrl_c_before_the_run_exits_with_130_and_prints_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FewShotModel, "load", interrupt)
    result = cli("enroll dog cat1.jpg")
    assert (result.code, result.out, result.err) == (130, "", "")
