"""Parquet files with what was found, a row for each picture, by which a repeated `label --ray` goes on.

Each file is written whole, and is never added to. Of two rows of one picture, the later one counts until `tidy` removes
the other: then each picture that is listed has one row, and others read the files as they are.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsvit_edge.label.journal import Failure, Kept, Kind, Record
from fsvit_edge.label.pictures import Listing
from fsvit_edge.label.records import About, LabeledPicture, from_plain, to_plain
from fsvit_edge.runtime.errors import ArtifactError, first_line
from fsvit_edge.runtime.storage import atomic_write, remove_leftovers

if TYPE_CHECKING:  # an extra, which only --ray needs
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_ROWS = 1 << 14
"""Of a file, about: it is written behind the task that reaches this. At 0.6 kB for a picture it has 10 MB."""
_PLACE_BITS = 20  # the place of a row is the number of its file, then its own number in this many bits
_GROUP_ROWS = 512
_GROUPS_IN_MEMORY = 32
_NAME = re.compile(r"([0-9]{6,})\.parquet")
_ABOUT = b"fsvit_edge"  # the key of `About` in the metadata of a file


def row_schema() -> "pa.Schema":
    """Return the columns of a file, as docs/reference/label-formats.md describes them."""
    import pyarrow as pa

    part = pa.struct(
        [("area_px", pa.int64()), ("box_xyxy", pa.list_(pa.int32())), ("counts", pa.list_(pa.int32()))],
    )
    one = pa.struct(
        [
            ("name", pa.string()),
            ("score", pa.float64()),
            ("level", pa.float64()),
            ("present", pa.bool_()),
            ("parts", pa.list_(part)),
        ]
    )
    return pa.schema(
        [
            ("path", pa.string()),
            ("version", pa.string()),
            ("error", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("classes", pa.list_(one)),
            ("bundle_sha256", pa.string()),
            ("bank_sha256", pa.string()),
        ]
    )


def to_rows(records: Sequence[Record], versions: Sequence[str], about: About) -> "pa.Table":
    """Return records as rows, with the versions of their files, as `Listing.version` tells them."""
    import pyarrow as pa

    rows = []
    for record, version in zip(records, versions, strict=True):
        row: dict[str, Any] = {
            "path": record.path,
            "version": version,
            "bundle_sha256": about.bundle_sha256,
            "bank_sha256": about.bank_sha256,
        }
        if isinstance(record, Failure):
            row["error"] = record.reason
        else:
            row["height"], row["width"] = record.size_hw
            row["classes"] = to_plain(record.classes)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=row_schema())


class Shards:
    """A folder of such files.

    Args:
        folder: The folder, which need not exist.
        about: What the answers come from; it is in the metadata of each file.
    """

    def __init__(self, folder: Path, about: About) -> None:
        self._folder = folder
        self._metadata = json.dumps(asdict(about), ensure_ascii=False).encode()
        self._stale: set[int] = set()  # places of rows that do not count
        self._reasons: dict[str, str] = {}  # why pictures could not be labeled
        remove_leftovers(folder)
        self._next = max(self._numbers(), default=0) + 1

    def read_kept(self, listing: Listing) -> Kept:
        """Read what the files have of a listing; a picture with another size or time since is as if it had no row.

        Raises:
            ArtifactError: A file is damaged, or another labeling or another program wrote it.
        """
        known = {entry.name for entry in listing.entries if not entry.problem}
        kept, self._stale, self._reasons = Kept(), set(), {}
        for number in self._numbers():
            table = self._read(number, ["path", "version", "error"])
            paths, versions, errors = (table[name].to_pylist() for name in table.column_names)
            for row, (path, version, error) in enumerate(zip(paths, versions, errors, strict=True)):
                place = number << _PLACE_BITS | row
                if path in known and version == listing.version(path):
                    self._note(kept, path, error, place)
                    continue
                self._stale.add(place)
                if path not in known:
                    kept.gone.add(path)
        return kept

    def is_news(self, path: str, error: str | None) -> bool:
        """Whether a row says something else than that a picture still cannot be labeled for the same reason."""
        return error is None or self._reasons.get(path) != error

    def append(self, rows: "pa.Table", kept: Kept) -> None:
        """Write a file of rows, and note them in `kept`; an FsvitEdgeError if the disk is full."""
        self._write(self._next, rows)
        for row, (path, error) in enumerate(zip(rows["path"].to_pylist(), rows["error"].to_pylist(), strict=True)):
            self._note(kept, path, error, self._next << _PLACE_BITS | row)
        self._next += 1

    def tidy(self) -> bool:
        """Remove rows of what is gone, was replaced or has a later row; whether any was there: places then change."""
        import pyarrow as pa

        for number in sorted({place >> _PLACE_BITS for place in self._stale}):
            rows = self._read(number)
            counts = pa.array([number << _PLACE_BITS | row not in self._stale for row in range(rows.num_rows)])
            rest = rows.filter(counts)
            if rest.num_rows:
                self._write(number, rest)
            else:
                self._file(number).unlink()
        return bool(self._stale)

    def read(self, items: Iterable[int | Failure]) -> Iterator[Record]:
        """Yield the records at places, as `Kept` has them."""

        @lru_cache(_GROUPS_IN_MEMORY)
        def group(number: int, index: int) -> "pa.Table":
            with self._opened(number) as file:
                return file.read_row_group(index, columns=["path", "error", "height", "width", "classes"])

        for item in items:
            if isinstance(item, Failure):
                yield item
                continue
            number, row = item >> _PLACE_BITS, item & (1 << _PLACE_BITS) - 1
            yield _to_record(group(number, row // _GROUP_ROWS).slice(row % _GROUP_ROWS, 1).to_pylist()[0])

    def _note(self, kept: Kept, path: str, error: str | None, place: int) -> None:
        earlier = kept.labeled.get(path, kept.failed.get(path))
        if earlier is not None:
            self._stale.add(earlier)
        self._reasons.pop(path, None)
        if error is not None:
            self._reasons[path] = error
        kind: Kind = "labeled" if error is None else "failed"
        kept.add(path, path, kind, place)

    def _numbers(self) -> list[int]:
        try:
            names = [path.name for path in self._folder.iterdir()]
        except FileNotFoundError:
            return []
        return sorted(int(found[1]) for found in map(_NAME.fullmatch, names) if found)

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:06}.parquet"

    def _read(self, number: int, columns: list[str] | None = None) -> "pa.Table":
        with self._opened(number) as file:
            self._check_ours(number, file)
            return file.read(columns)

    def _check_ours(self, number: int, file: "pq.ParquetFile") -> None:
        """Refuse a file whose rows another model or bank gave, or whose rows are not where this one puts them."""
        metadata = file.schema_arrow.metadata or {}
        groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        is_ours = file.schema_arrow.equals(row_schema()) and _facts(metadata.get(_ABOUT, b"")) == _facts(self._metadata)
        if not is_ours or any(rows != _GROUP_ROWS for rows in groups[:-1]) or max(groups, default=0) > _GROUP_ROWS:
            raise ArtifactError(
                f"{self._file(number)} was not written by this command, but by another program, or for another bank or "
                "model; move it away, and the same command labels what is then missing."
            )

    def _write(self, number: int, rows: "pa.Table") -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        buffer = pa.BufferOutputStream()
        rows = rows.replace_schema_metadata({_ABOUT: self._metadata})
        pq.write_table(rows, buffer, row_group_size=_GROUP_ROWS, compression="zstd", write_page_checksum=True)
        atomic_write(self._file(number), buffer.getvalue().to_pybytes())

    @contextmanager
    def _opened(self, number: int) -> "Iterator[pq.ParquetFile]":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            # Of 400 damaged files, 67 were read as other labels without the check of each page.
            with pq.ParquetFile(self._file(number), page_checksum_verification=True) as file:
                yield file
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ArtifactError(
                f"{self._file(number)} is damaged: {first_line(error)}; remove it, and the same command labels its "
                "pictures again."
            ) from error


def _facts(about: bytes) -> dict[str, Any]:
    """What two calls that are the same have in common, see `job`; levels may be rounded apart on two machines."""
    try:
        facts: dict[str, Any] = json.loads(about)
        return {**facts, "levels": [f"{level:.4g}" for level in facts["levels"]], "outlines": ""}
    except (ValueError, KeyError, TypeError):
        return {}


def _to_record(row: dict[str, Any]) -> Record:
    if row["error"] is not None:
        return Failure(row["path"], row["error"])
    return LabeledPicture(row["path"], (row["height"], row["width"]), None, from_plain(row["classes"]))
