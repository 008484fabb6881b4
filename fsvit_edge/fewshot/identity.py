"""The networks that a bank belongs to: the encoder that made its supports, and the head that scored them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fsvit_edge.fewshot.names import escaped
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.json_records import record_from_json
from fsvit_edge.runtime.presence_level import DEFAULT_LEVEL


@dataclass(frozen=True)
class EncoderIdentity:
    """The encoder that made the supports; a bank belongs to exactly one."""

    name: str  # of the network, for people
    encoder_sha256: str  # of encoder.onnx, in hexadecimal
    image_size: int  # side of the input in pixels
    num_channels: int  # correlation channels C
    head_dim: int  # values d per channel
    precision: str  # of the encoder's engine: "fp32", "bf16", "fp16" or "int8"


@dataclass(frozen=True)
class HeadIdentity:
    """The head, on which the level of a class depends besides its supports."""

    sha256: str = ""  # of head.onnx, in hexadecimal; empty if unknown
    presence_level: float = DEFAULT_LEVEL  # of a class with one support, in (0, 1)


def read_encoder(path: Path, values: dict[str, Any]) -> EncoderIdentity:
    """Read what a bank says of its encoder, which may come from elsewhere: what a terminal would obey is escaped."""
    read = record_from_json(EncoderIdentity, path, values)
    return replace(
        read,
        name=escaped(read.name),
        encoder_sha256=escaped(read.encoder_sha256),
        precision=escaped(read.precision),
    )


def check_same_encoder(
    path: Path, made_by: EncoderIdentity, identity: EncoderIdentity, lacks: Mapping[str, str]
) -> None:
    """Refuse a bank that another encoder made, with an ArtifactError; `lacks` is as in `EngineChoice`."""
    if made_by == replace(identity, name=made_by.name):
        return
    for field, what in (("image_size", "image size"), ("encoder_sha256", "encoder")):
        theirs, ours = getattr(made_by, field), getattr(identity, field)
        if theirs != ours:
            if field == "encoder_sha256":
                theirs, ours = f"{theirs!s:.12}... ({made_by.name})", f"{ours:.12}... ({identity.name})"
            raise ArtifactError(
                f"Bank {path} was made with a different {what}: {theirs}, but this bundle has {ours}; "
                "use the bundle that made it or enroll its classes again."
            )
    if reason := lacks.get(made_by.precision, ""):
        raise ArtifactError(
            f"Bank {path} was made in {made_by.precision}, which does not run here ({reason.rstrip('.')}); mend that, "
            "or enroll its classes again."
        )
    if made_by.precision != identity.precision:
        raise ArtifactError(
            f"Bank {path} was made in {made_by.precision!s:.40}, but the engines here compute in "
            f"{identity.precision}; use it with --engine auto --precision {made_by.precision!s:.40}, or enroll its "
            "classes again."
        )
    raise ArtifactError(f"Bank {path} has tokens of a different shape than this bundle's; enroll its classes again.")
