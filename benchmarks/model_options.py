"""What the benchmarks of answers share: the options that choose a model."""

import argparse
from pathlib import Path

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE


def model_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with --bundle, --precision and --threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--precision", default="auto", help="of the encoder, as in: fsvit-edge run")
    parser.add_argument("--threads", type=int)
    return parser


def open_model(options: argparse.Namespace) -> FewShotModel:
    """Open the chosen model and print what computes it."""
    model = FewShotModel.load(options.bundle, precision=options.precision, threads=options.threads)
    print(f"{model.manifest.name}, {model.choice.description}")
    return model
