"""The configuration next to the weights: its defaults, and what is said of a file that is not one."""

import json
from pathlib import Path

import pytest

from fsvit_edge.model.config import ModelConfig
from fsvit_edge.runtime.errors import ArtifactError

LEAST = {"name": "a", "backbone": "vit_nano_patch8_64", "image_size": 48}


def read(folder: Path, text: str) -> ModelConfig:
    path = folder / "a.json"
    path.write_text(text, encoding="latin-1")
    return ModelConfig.from_json(path)


def test_what_a_file_leaves_out_has_the_value_of_old_files(tmp_path: Path) -> None:
    assert read(tmp_path, json.dumps(LEAST)) == ModelConfig("a", "vit_nano_patch8_64", 48, 12, "cst", False, 0.5, 0.0)


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    config = ModelConfig("a", "b", 48, 6, "prototype", True, 0.62, 1.5)
    assert read(tmp_path, config.to_json()) == config
    assert repr(read(tmp_path, json.dumps({**LEAST, "support_crop": 2})).support_crop) == "2.0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "is not a readable JSON file", id="not JSON"),
        pytest.param("\xff", "is not a readable JSON file", id="not UTF-8"),
        pytest.param(
            "[]",
            r"the fields name, backbone, .*, head, objectness, presence_level, support_crop, most_tokens; got list",
            id="a list",
        ),
        pytest.param('{"name": "a"}', r"must have the fields .*; got \['name'\]", id="incomplete"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("x", 1, "must have the fields"),
        ("image_size", "48", "image_size must be int, got '48'"),
        ("image_size", True, "image_size must be int, got True"),
        ("backbone", 3, "backbone must be str, got 3"),
        ("support_grid", 10, "support grid must be a positive multiple of 3, got 10"),
        ("head", "linear", "must be one of cst, prototype"),
        ("head", 3, "head must be str"),
        ("presence_level", 0.0, "must be between 0 and 1, got 0"),
        ("presence_level", 1.5, "must be between 0 and 1, got 1.5"),
        ("presence_level", float("nan"), "must be between 0 and 1, got nan"),
        ("presence_level", "high", "presence_level must be float"),
        ("presence_level", 10**400, "presence_level must be float, got 1000"),
        ("support_crop", 0.5, "must be 0 or at least 1"),
        ("support_crop", -2.0, "must be 0 or at least 1"),
        ("most_tokens", -1, "must be 0 to 144, the image tokens of a support, got -1"),
        ("most_tokens", 145, "must be 0 to 144, the image tokens of a support, got 145"),
        ("support_crop", float("inf"), "must be 0 or at least 1"),
        ("support_crop", float("nan"), "must be 0 or at least 1"),
    ],
)
def test_a_value_that_cannot_be_is_refused(tmp_path: Path, field: str, value: object, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        read(tmp_path, json.dumps({**LEAST, field: value}))
