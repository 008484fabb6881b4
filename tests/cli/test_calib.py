"""`fsvit-edge calib`, as typed, on the bundled model."""

from pathlib import Path

import pytest
from command_line import Cli
from sample_files import colors, write_data

from fsvit_edge import FewShotModel
from fsvit_edge.calib.calibration import Calibration
from fsvit_edge.calib.ranges import DEFAULT_METHOD
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.pictures import write_image


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-four pictures in folders of two classes."""
    album = tmp_path_factory.mktemp("data") / "album"
    write_data(album, "cat", "dog", pictures=17)
    return album


def test_a_folder_becomes_a_calibration_of_the_bundled_model(album: Path, here: Path, cli: Cli) -> None:
    result = cli("calib", str(album))
    assert result.code == 0, result.err
    found = Calibration.load(here / "calibration.json")
    found.check_fits(Bundle.load(DEFAULT_BUNDLE))
    assert (found.method, found.pictures, found.banked, found.seed) == (DEFAULT_METHOD, 34, 0, 0)
    title, _, _, *rows, wrote = [line for line in result.out.splitlines() if line.strip()]
    assert title == "cst-nano: percentile over 34 pictures"
    assert [row.split()[:2] for row in rows] == [[name, "4"] for name in ("qkv", "proj", "fc1", "fc2", "project")]
    for row in rows:
        low, high, ratio = map(float, row.split()[2:])
        assert low < 0 < high
        assert ratio >= 1
    assert wrote == "Wrote calibration.json: ranges of 80 tensors."
    assert "Warning" not in result.err
    assert "Calibrate: run the encoder on 34 pictures" in result.err
    assert result.err.endswith("Next: fsvit-edge build-engine --int8 --calib calibration.json\n")
    assert list(here.iterdir()) == [here / "calibration.json"]


@pytest.mark.slow(reason="calibrates three times, 2 s")
def test_a_seed_makes_the_same_file_and_another_seed_another(album: Path, here: Path, cli: Cli) -> None:
    for name, seed in [("a", "7"), ("b", "7"), ("c", "8")]:
        assert cli("calib", str(album), "--max-pictures", "5", "--seed", seed, "-o", f"{name}.json").code == 0
    same, again, other = ((here / f"{name}.json").read_bytes() for name in "abc")
    assert same == again
    assert Calibration.load(here / "a.json").data_sha256 != Calibration.load(here / "c.json").data_sha256
    assert same != other


def test_the_methods_differ_and_too_few_pictures_cause_a_warning(album: Path, here: Path, cli: Cli) -> None:
    for method in ("minmax", "percentile"):
        result = cli("calib", str(album), "--max-pictures", "4", "--method", method, "--output", f"new/{method}.json")
        assert result.code == 0
        assert "Warning: The calibration used only 4 pictures" in result.err
        assert f"cst-nano: {method} over 4 pictures" in result.out
    extremes, narrowed = (
        Calibration.load(here / f"new/{method}.json").ranges["encoder"] for method in ("minmax", "percentile")
    )
    assert all(extremes[name][0] <= low and high <= extremes[name][1] for name, (low, high) in narrowed.items())
    assert extremes != narrowed


def test_a_banks_pictures_are_used_too_with_another_bundle(
    album: Path, here: Path, cli: Cli, tiny_bundle: Path
) -> None:
    with FewShotModel.load() as model:
        model.enroll("thing", [colors(100), colors(101)])
        model.enroll("other", [colors(102)])
        model.save_bank(here / "bank.safetensors")
    result = cli(
        "calib", str(album), "--max-pictures", "30", "--bank", "bank.safetensors", "--bundle", str(tiny_bundle)
    )
    assert result.code == 0, result.err
    found = Calibration.load(here / "calibration.json")
    found.check_fits(Bundle.load(tiny_bundle))
    assert (found.pictures, found.banked, found.image_size) == (33, 3, 48)
    assert "tiny: percentile over 33 pictures, 3 of them from bank.safetensors" in result.out
    assert f"Next: fsvit-edge build-engine {tiny_bundle} --int8 --calib calibration.json\n" in result.err


def test_damaged_pictures_are_counted(here: Path, cli: Cli) -> None:
    write_image(here / "mixed" / "good.png", colors(0))
    (here / "mixed" / "bad.png").write_bytes(b"garbage")
    result = cli("calib mixed")
    assert result.code == 0
    assert "Warning: Skipped 1 picture that could not be read; the first: mixed/bad.png is damaged" in result.err
    assert Calibration.load(here / "calibration.json").pictures == 1
