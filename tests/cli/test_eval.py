"""`fsvit-edge eval` as a user types it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest
from command_line import Cli, is_one_error
from sample_files import write_data

from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, MANIFEST_NAME, read_manifest
from fsvit_edge.runtime.pictures import read_image

if TYPE_CHECKING:
    from fsvit_edge.model.network import FewShotNetwork


@pytest.fixture
def cli(cli: Cli) -> Cli:
    return lambda line, *more: cli(f"eval {line}", *more)


@pytest.fixture(autouse=True)
def folder(here: Path) -> Path:
    """Four classes of three pictures with masks."""
    write_data(here / "data", "ant", "bee", "cat", "dog")
    return here


SCENES = "--data data --protocol scenes --threads 1"
SHORT = "--data data --episodes 8 --threads 1"


def result_of(cli: Cli, *arguments: str) -> dict[str, Any]:
    done = cli(f"{SHORT} --json", *arguments)
    assert done.code == 0, done.err
    return dict(json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")))


def test_tables_and_the_next_command_are_printed(cli: Cli) -> None:
    done = cli(f"{SHORT} --ways 2")
    assert done.code == 0
    version = onnxruntime.__version__
    title = (
        f"cst-nano at 256 px, FP32 in ONNX Runtime {version} on the CPU: 2-way 1-shot, supports with masks, 8 episodes"
    )
    assert title in done.out
    for word in ("0/1 exact ratio", "mIoU", "95 % interval", "ant", "bee", "cat", "dog", "presence correct %"):
        assert word in done.out
    assert "Next: " in done.err


def test_json_is_printed_and_written_to_the_file(cli: Cli, folder: Path) -> None:
    done = cli(f"{SHORT} --json --output out/result.json --supports names --shots 2")
    printed = json.loads(done.out)
    assert (folder / "out" / "result.json").read_text() == done.out
    assert (printed["ways"], printed["shots"], printed["episodes"], printed["masks"]) == (1, 2, 8, False)
    assert (printed["engine"], printed["precision"], printed["model"]["precision"]) == ("onnxruntime", "fp32", "fp32")
    assert printed["model"]["name"] == "cst-nano"
    assert len(printed["episodes_sha256"]) == 64
    assert {"python", "fsvit-edge", "numpy", "onnxruntime"} <= printed["versions"].keys()
    assert (
        0 <= printed["exact_ratio"]["low"] <= printed["exact_ratio"]["value"] <= printed["exact_ratio"]["high"] <= 100
    )
    assert [one["name"] for one in printed["classes"]] == ["ant", "bee", "cat", "dog"]


@pytest.mark.slow(reason="evaluates in torch too, 2 s")
def test_bundle_and_checkpoint_give_the_same_scores(cli: Cli) -> None:
    checkpoint = DEFAULT_BUNDLE / "cst-nano.safetensors"
    by_onnx = result_of(cli)
    by_torch = result_of(cli, "--checkpoint", str(checkpoint), "--engine", "torch")
    assert (by_torch["engine"], by_torch["precision"]) == ("torch", "fp32")
    assert by_torch["exact_ratio"] == by_onnx["exact_ratio"]
    assert by_torch["miou"]["value"] == pytest.approx(by_onnx["miou"]["value"], abs=0.1)
    assert by_torch["episodes_sha256"] == by_onnx["episodes_sha256"]


@pytest.mark.slow(reason="evaluates several times, 2 s")
def test_classes_are_chosen_by_name_or_by_fold(cli: Cli) -> None:
    for chosen in (("--classes", "bee,dog"), ("--classes", "bee", "--classes", "dog")):
        assert [one["name"] for one in result_of(cli, *chosen)["classes"]] == ["bee", "dog"]
    (only,) = result_of(cli, "--fold", "2")["classes"]
    assert (only["label"], only["name"], only["asked"]) == (2, "cat", 8)


def test_pictures_of_the_first_episodes_are_drawn(cli: Cli, folder: Path) -> None:
    result_of(cli, "--preview", "drawn", "--max-pictures", "3")
    names = sorted(path.name for path in (folder / "drawn").iterdir())
    assert names == ["episode-0.png", "episode-1.png", "episode-2.png"]
    assert read_image(folder / "drawn" / names[0]).shape[1] == 4 * 264 + 8


@pytest.mark.slow(reason="evaluates twice, 2 s; a baseline is always a gate")
def test_a_failing_gate_still_prints_the_result(cli: Cli, folder: Path) -> None:
    done = cli(f"{SHORT} --json --output result.json --min-miou 100")
    assert done.code == 5
    assert json.loads(done.out) == json.loads((folder / "result.json").read_text())
    assert done.err.splitlines()[-1].startswith("Error: The accuracy gate failed: mIoU is ")
    assert "Next" not in done.err
    assert cli(f"{SHORT} --min-exact-ratio 101").code == 5
    assert cli(f"{SHORT} --min-exact-ratio 0 --min-miou 0").code == 0


def test_a_baseline_is_a_gate(cli: Cli, folder: Path) -> None:
    baseline = result_of(cli, "--output", "before.json")
    assert cli(f"{SHORT} --baseline before.json --max-drop 0").code == 0
    baseline["exact_ratio"]["value"] += 1.5
    (folder / "better.json").write_text(json.dumps(baseline))
    assert cli(f"{SHORT} --baseline better.json --max-drop 2").code == 0
    failed = cli(f"{SHORT} --baseline better.json")
    assert failed.code == 5
    assert "exact ratio" in failed.err
    other = cli(f"{SHORT} --shots 2 --baseline before.json")
    assert other.code == 2
    assert "it has shots 1, this evaluation has shots 2" in other.err


@pytest.fixture
def telling(hybrid_network: FewShotNetwork, folder: Path) -> tuple[str, str]:
    """A checkpoint that tells objectness."""
    from fsvit_edge.model.checkpoint import save_network

    save_network(hybrid_network, folder / "telling.safetensors")
    return "--checkpoint", "telling.safetensors"


@pytest.mark.slow(reason="evaluates six times, 4 s")
def test_outlines_are_chosen_and_reported(cli: Cli, telling: tuple[str, str]) -> None:
    sharp, plain = result_of(cli, *telling), result_of(cli, *telling, "--outlines", "plain")
    assert (sharp["outlines"], plain["outlines"]) == ("sharp", "plain")
    assert sharp == {**result_of(cli, *telling, "--outlines", "sharp"), "elapsed_s": sharp["elapsed_s"]}
    assert sharp["exact_ratio"] == plain["exact_ratio"]
    assert sharp["miou"] != plain["miou"]
    assert " s, plain outlines" in cli(SHORT, *telling, "--outlines", "plain").out
    for kind in ("plain", "sharp"):
        assert json.loads(cli(SCENES, *telling, "--json", "--outlines", kind).out)["outlines"] == kind


@pytest.mark.slow(reason="evaluates twice, 2 s; refusals are shown with other files too")
def test_a_baseline_with_other_outlines_is_refused(cli: Cli, telling: tuple[str, str]) -> None:
    baseline = result_of(cli, *telling, "--output", "sharp.json")
    assert cli(SHORT, *telling, "--baseline", "sharp.json", "--max-drop", "0").code == 0
    refused = cli(SHORT, *telling, "--baseline", "sharp.json", "--outlines", "plain")
    assert (refused.code, refused.out) == (2, "")
    assert "it has outlines sharp, this evaluation has outlines plain; use the settings of the baseline" in refused.err
    del baseline["outlines"]  # as in results from before --outlines existed
    Path("older.json").write_text(json.dumps(baseline))
    assert "it has outlines plain, this evaluation" in cli(SHORT, *telling, "--baseline", "older.json").err


def test_sharp_outlines_are_refused_if_the_model_has_no_objectness(cli: Cli, tiny_network: FewShotNetwork) -> None:
    from fsvit_edge.model.checkpoint import save_network

    save_network(tiny_network, Path("tiny.safetensors"))
    assert result_of(cli, "--checkpoint", "tiny.safetensors")["outlines"] == "plain"
    for asked in (SHORT, SCENES):
        done = cli(f"{asked} --checkpoint tiny.safetensors --outlines sharp")
        assert (done.code, done.out) == (2, "")
        assert done.err.splitlines()[-1].startswith("Error: Bundle tiny has no objectness, which sharp outlines need")


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("", 2, "Missing option '--data'"),
        ("--data nowhere", 2, "The data folder nowhere does not exist"),
        ("--data data/ant", 2, "has no class folder"),
        ("--data data --ways 5", 2, "The number of ways must be 1 to 4 (the classes here); got 5"),
        ("--data data --shots 3", 2, "too few for 3"),
        ("--data data --fold 4", 2, "Fold 4 does not exist"),
        ("--data data --benchmark imagenet", 2, "Unknown benchmark 'imagenet'"),
        ("--data data --benchmark pascal", 2, "--splits"),
        ("--data data --classes cow", 2, "has no class 'cow'"),
        ("--data data --classes ant --fold 0", 2, "works only with --benchmark folder and without --fold"),
        ("--data data --bundle b --checkpoint c.ckpt", 2, "not both"),
        ("--data data --engine torch", 2, "give one with --checkpoint FILE"),
        ("--data data --checkpoint c.ckpt --engine onnxruntime", 2, "--engine onnxruntime runs a bundle"),
        ("--data data --checkpoint c.ckpt --precision int8", 2, "PyTorch runs checkpoints in fp32"),
        ("--data data --engine abacus", 2, "Engine 'abacus' is unknown"),
        ("--data data --precision fp64", 2, "Precision 'fp64' is unknown; choose one of: auto, fp32"),
        ("--data data --precision int8", 4, "fsvit-edge build-engine --engine onnxruntime --precision int8"),
        ("--data data --bundle nowhere", 4, "Bundle nowhere does not exist"),
        ("--data data --checkpoint c.ckpt", 4, "c.ckpt does not exist"),
        ("--data data --baseline none.json", 4, "The baseline none.json cannot be read"),
        ("--data data --max-drop 1", 2, "give one with --baseline FILE"),
        ("--data data --output data", 2, "data is a folder; give the name of a file"),
        ("--data data --supports guesses", 2, "--supports"),
        ("--data data --outlines round", 2, "--outlines"),
        ("--data data --protocol streams", 2, "--protocol"),
        (f"{SCENES} --per-class 0", 2, "--per-class"),
        (f"{SCENES} --shots 3", 2, "Class 'ant' has 3 pictures, too few for 3 supports and a scene"),
        (f"{SCENES} --classes ant", 2, "Scenes need at least 2 classes"),
    ],
)
def test_an_error_is_one_sentence(cli: Cli, line: str, code: int, text: str) -> None:
    is_one_error(cli(line), code, text, "Evaluate")


@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        ("episodes", "--ways 1, --episodes 9, --preview drawn, --max-pictures 9, --baseline before.json, --max-drop 1"),
        ("episodes", "--min-miou 9, --min-exact-ratio 9"),
        ("scenes", "--per-class 3, --max-false-alarms 3, --min-hits 3"),
    ],
)
def test_an_option_of_the_other_protocol_is_refused(cli: Cli, protocol: str, options: str) -> None:
    for option in options.split(", "):
        text = f"{option.split()[0]} works only with --protocol {protocol}; leave it out here."
        is_one_error(cli(f"{SCENES if protocol == 'episodes' else SHORT} {option}"), 2, text)


@pytest.mark.slow(reason="evaluates twice, 2 s")
def test_a_folder_without_masks_can_be_evaluated_with_names_only(cli: Cli, folder: Path) -> None:
    for path in folder.glob("data/*/masks"):
        shutil.rmtree(path)
    assert "has no mask" in cli(SHORT).err
    result = result_of(cli, "--supports", "names")
    assert (result["segmented"], result["miou"]) == (0, None)
    assert "mIoU covers 0 episodes" in cli(f"{SHORT} --supports names").out


def test_scenes_are_printed_as_tables_or_json(cli: Cli, folder: Path) -> None:
    done = cli(SCENES)
    assert done.code == 0
    for words in (
        "1 support per class with masks, 4 classes, 8 pictures",
        "hits at the current levels",
        "false alarms %",
    ):
        assert words in done.out
    assert "Next: " in done.err
    done = cli(f"{SCENES} --json --output out/scenes.json --shots 2 --supports names")
    result = json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (folder / "out" / "scenes.json").read_text() == done.out
    assert [result[key] for key in ("protocol", "shots", "masks", "per_class", "pictures")] == [
        "scenes",
        2,
        False,
        None,
        4,
    ]
    assert result["interval"]["resampled"] == "pictures"
    assert (result["engine"], result["model"]["name"], result["data"]["folder"]) == ("onnxruntime", "cst-nano", "data")
    for name in ("hits", "false_alarms", "area", "hits_at_1_percent", "pooled_hits_at_01_percent"):
        assert 0 <= result[name]["low"] <= result[name]["value"] <= result[name]["high"] <= 100
    assert [(one["name"], one["pictures"], one["scenes"]) for one in result["classes"]] == [
        (name, 1, 3) for name in ("ant", "bee", "cat", "dog")
    ]
    assert json.loads(cli(f"{SCENES} --json --per-class 1").out)["pictures"] == 4


@pytest.mark.slow(reason="evaluates twice, 3 s; other gates are always run")
def test_a_failing_gate_on_scenes_still_prints_the_result(cli: Cli, folder: Path) -> None:
    kept = cli(f"{SCENES} --max-false-alarms 100 --min-hits 0")
    assert (kept.code, "Error" in kept.err) == (0, False)
    missed = cli(f"{SCENES} --json --output scenes.json --max-false-alarms -1")
    assert missed.code == 5
    assert json.loads(missed.out) == json.loads((folder / "scenes.json").read_text())
    assert missed.err.splitlines()[-1].startswith("Error: The accuracy gate failed: false alarms are ")
    assert "Next" not in missed.err
    missed = cli(f"{SCENES} --min-hits 100.5")
    assert missed.code == 5
    assert "hits " in missed.err.splitlines()[-1]


@pytest.mark.slow(reason="scenes in torch, 3 s; episodes in torch are always evaluated")
def test_scenes_of_a_checkpoint_run_in_torch(cli: Cli) -> None:
    bundle = Path("with-all-tokens")  # as torch compares them
    shutil.copytree(DEFAULT_BUNDLE, bundle)
    (bundle / MANIFEST_NAME).write_text(replace(read_manifest(bundle), most_tokens=0).to_json())
    by_onnx = json.loads(cli(f"{SCENES} --json --bundle", str(bundle)).out)
    checkpoint = str(DEFAULT_BUNDLE / "cst-nano.safetensors")
    by_torch = json.loads(cli(f"{SCENES} --json --checkpoint", checkpoint).out)
    assert by_torch["engine"] == "torch"
    assert by_torch["area"]["value"] == pytest.approx(by_onnx["area"]["value"], abs=0.1)


def test_a_bundle_is_evaluated_without_torch(folder: Path) -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'timm', 'onnx', 'lightning', 'torchmetrics']))\n"
    code = f"sys.argv = ['fsvit-edge', 'eval', *{SHORT.split()!r}]\nfrom fsvit_edge.cli.main import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", blocked + code], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert "0/1 exact ratio" in done.stdout
