"""`fsvit-edge calib`, as typed, on the bundled model."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fsvit_edge import FewShotModel
from fsvit_edge.calib.calibration import Calibration
from fsvit_edge.calib.ranges import DEFAULT_METHOD
from fsvit_edge.cli import terminal
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.pictures import write_image

Cli = Callable[..., Any]


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(12, axis=0).repeat(12, axis=1)


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-three pictures in folders of two classes."""
    album = tmp_path_factory.mktemp("data") / "album"
    for seed in range(33):
        write_image(album / ("cat", "dog")[seed % 2] / "images" / f"{seed}.png", picture(seed))
        write_image(album / ("cat", "dog")[seed % 2] / "masks" / f"{seed}.png", np.full((72, 96, 3), 255, np.uint8))
    return album


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def is_one_error(result: Any, code: int, text: str) -> None:
    *steps, sentence = result.err.splitlines()
    assert all(line.startswith("[") and "] Calibrate: " in line for line in steps), result.err
    assert sentence.startswith("Error: ")
    assert text in sentence
    assert (result.out, result.code) == ("", code)


def test_a_folder_becomes_a_calibration_of_the_bundled_model(album: Path, folder: Path, cli: Cli) -> None:
    result = cli("calib", str(album))
    assert result.code == 0, result.err
    found = Calibration.load(folder / "calibration.json")
    found.check_fits(Bundle.load(DEFAULT_BUNDLE))
    assert (found.method, found.pictures, found.banked, found.seed) == (DEFAULT_METHOD, 33, 0, 0)
    title, _, _, *rows, wrote = [line for line in result.out.splitlines() if line.strip()]
    assert title == "cst-nano: percentile over 33 pictures"
    assert [row.split()[:2] for row in rows] == [[name, "4"] for name in ("qkv", "proj", "fc1", "fc2", "project")]
    for row in rows:
        low, high, ratio = map(float, row.split()[2:])
        assert low < 0 < high
        assert ratio >= 1
    assert wrote == "Wrote calibration.json: ranges of 20 tensors."
    assert "Warning" not in result.err
    assert "Calibrate: run the encoder on 33 pictures" in result.err
    assert result.err.endswith("Next: fsvit-edge build-engine --int8 --calib calibration.json\n")
    assert list(folder.iterdir()) == [folder / "calibration.json"]


def test_a_seed_makes_the_same_file_and_another_seed_another(album: Path, folder: Path, cli: Cli) -> None:
    for name, seed in [("a", "7"), ("b", "7"), ("c", "8")]:
        assert cli("calib", str(album), "--max-pictures", "5", "--seed", seed, "-o", f"{name}.json").code == 0
    same, again, other = ((folder / f"{name}.json").read_bytes() for name in "abc")
    assert same == again
    assert Calibration.load(folder / "a.json").data_sha256 != Calibration.load(folder / "c.json").data_sha256
    assert same != other


def test_the_methods_differ_and_too_few_pictures_cause_a_warning(album: Path, folder: Path, cli: Cli) -> None:
    for method in ("minmax", "percentile"):
        result = cli("calib", str(album), "--max-pictures", "4", "--method", method, "--output", f"new/{method}.json")
        assert result.code == 0
        assert "Warning: The calibration used only 4 pictures" in result.err
        assert f"cst-nano: {method} over 4 pictures" in result.out
    extremes, narrowed = (
        Calibration.load(folder / f"new/{method}.json").ranges["encoder"] for method in ("minmax", "percentile")
    )
    assert all(extremes[name][0] <= low and high <= extremes[name][1] for name, (low, high) in narrowed.items())
    assert extremes != narrowed


def test_a_banks_pictures_are_used_too_with_another_bundle(
    album: Path, folder: Path, cli: Cli, tiny_bundle: Path
) -> None:
    with FewShotModel.load() as model:
        model.enroll("thing", [picture(100), picture(101)])
        model.enroll("other", [picture(102)])
        model.save_bank(folder / "bank.safetensors")
    result = cli(
        "calib", str(album), "--max-pictures", "30", "--bank", "bank.safetensors", "--bundle", str(tiny_bundle)
    )
    assert result.code == 0, result.err
    found = Calibration.load(folder / "calibration.json")
    found.check_fits(Bundle.load(tiny_bundle))
    assert (found.pictures, found.banked, found.image_size) == (33, 3, 48)
    assert "tiny: percentile over 33 pictures, 3 of them from bank.safetensors" in result.out
    assert f"Next: fsvit-edge build-engine {tiny_bundle} --int8 --calib calibration.json\n" in result.err


def test_damaged_pictures_are_counted(folder: Path, cli: Cli) -> None:
    write_image(folder / "mixed" / "good.png", picture(0))
    (folder / "mixed" / "bad.png").write_bytes(b"garbage")
    result = cli("calib", "mixed")
    assert result.code == 0
    assert "Warning: Skipped 1 picture that could not be read; the first: mixed/bad.png is damaged" in result.err
    assert Calibration.load(folder / "calibration.json").pictures == 1


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("none",), 6, "The source none cannot be opened: No such file or directory"),
        (("empty",), 2, "The folder empty contains no picture"),
        (("garbage",), 2, "garbage has no picture to calibrate with: garbage/x.png is damaged"),
        (("demo",), 2, "The demo cannot be used to calibrate"),
        (
            ("{album}", "--method", "guess"),
            2,
            "Unknown method 'guess'; choose one of: minmax, entropy, percentile.",
        ),
        (("{album}", "--output", "empty"), 2, "empty is a folder; give the name of a file to write"),
        (("{album}", "--output", "c.txt"), 2, "A calibration is a .json file, got c.txt."),
        (("{album}", "--output", "notes/c.json"), 2, "notes is a file, not a folder"),
        (("{album}", "--bundle", "none"), 4, "Bundle none does not exist"),
        (("{album}", "--bank", "none.safetensors"), 4, "Bank none.safetensors does not exist"),
        (("{album}", "--max-pictures", "0"), 2, "Invalid value for '--max-pictures'"),
        (("{album}", "--seconds", "nan"), 2, "Invalid value for '--seconds'"),
        (("{album}", "--seconds", "inf"), 2, "Invalid value for '--seconds'"),
        ((), 2, "Missing argument 'source'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_calibration_that_is_not_possible_is_explained_and_writes_nothing(
    album: Path, folder: Path, cli: Cli, arguments: tuple[str, ...], code: int, text: str
) -> None:
    (folder / "empty").mkdir()
    (folder / "garbage").mkdir()
    (folder / "garbage" / "x.png").write_bytes(b"garbage")
    (folder / "notes").write_text("mine")
    before = sorted(folder.rglob("*"))
    is_one_error(cli("calib", *(argument.format(album=album) for argument in arguments)), code, text)
    assert sorted(folder.rglob("*")) == before


def test_a_full_disk_keeps_the_old_calibration(
    album: Path, folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "calibration.json").write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = cli("calib", str(album), "--max-pictures", "1")
    is_one_error(result, 1, "calibration.json cannot be written: No space left on device; nothing was changed")
    assert (folder / "calibration.json").read_text() == "old"


def test_without_onnx_the_error_names_the_extra(album: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = terminal.find_spec
    monkeypatch.setattr(terminal, "find_spec", lambda name: None if name == "onnx" else find_spec(name))
    is_one_error(
        cli("calib", str(album)), 3, 'needs onnx, which is not installed; try: pip install "fsvit-edge[build]"'
    )
