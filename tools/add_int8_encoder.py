"""Add the encoder in INT8 to a bundle that has a calibration: `python tools/add_int8_encoder.py [BUNDLE]`.

Without BUNDLE, to the bundled model. It runs on any machine: the graph is for x86 processors with VNNI.
"""

import sys
from pathlib import Path

from fsvit_edge.export.int8_encoder import add_int8_encoder
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE


def main() -> None:
    """Add it and say where."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_BUNDLE
    info = add_int8_encoder(path).int8_encoder
    assert info is not None
    print(f"Wrote {path / info.file}: {(path / info.file).stat().st_size / 1e6:.1f} MB, sha256 {info.sha256[:12]}.")


if __name__ == "__main__":
    main()
