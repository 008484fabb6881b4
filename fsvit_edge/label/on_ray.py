"""Labeling on the machines of Ray: a labeler per GPU, or per so many cores, each in an actor of Ray Data.

An actor gets names and reads the pictures itself. `ray.data.read_binary_files` would end everything at the first file
that cannot be read, and its tasks find no core where actors have them all: Ray then waits for ever (ray#44687).
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fsvit_edge.label.actor import LabelingActor, Recipe, Register, about_of, files_of
from fsvit_edge.label.cluster import connected, our_errors
from fsvit_edge.label.fill import OnProgress, Progress
from fsvit_edge.label.journal import Failure, Kept, Record
from fsvit_edge.label.labeler import Labeler, LabelerOptions
from fsvit_edge.label.output import Output
from fsvit_edge.label.pictures import Listing, Stored
from fsvit_edge.label.records import About
from fsvit_edge.label.shards import MAX_ROWS, Shards
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE
from fsvit_edge.runtime.engines.choose import CPU_ENGINES
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.messages import Say

if TYPE_CHECKING:  # an extra
    import pyarrow as pa

_MOST_PER_TASK = 64  # pictures; those of a process that ends are labeled again
_LEAST_TASKS_PER_ACTOR = 4
_PERIOD_S = 60.0  # after which what was found is written
_PATIENCE_S = 20.0


class OnRay:
    """Labels on Ray, and keeps what is found in Parquet files: a `Way`; `open_on_ray` makes it."""

    def __init__(
        self, recipe: Recipe, about: About, resources: Mapping[str, int], actors: int, say_begin: Callable[[], None]
    ) -> None:
        self.about = about
        self._say_begin = say_begin  # not before: the output may refuse the call
        self._recipe, self._resources, self._actors = recipe, resources, actors
        self._shards: Shards | None = None

    def read_kept(self, output: Output, listing: Listing) -> Kept:
        """See `Way`."""
        self._shards = Shards(output.parquet, self.about)
        return self._shards.read_kept(listing)

    def fill(self, listing: Listing, pending: Sequence[Stored], kept: Kept, on_progress: OnProgress) -> Kept:
        """See `Way`."""
        assert self._shards is not None
        if pending:
            import ray
            from ray.exceptions import RayError

            self._say_begin()
            register = ray.remote(Register).options(num_cpus=0).remote()

            def working_s() -> float:
                try:
                    return float(ray.get(register.working_s.remote()))
                except RayError:  # it has ended, which is told where that matters
                    return 0.0

            filling = _Filling(self._shards, listing, pending, kept, on_progress, working_s)
            filling.take(self._answers(listing, pending, register))
        return self._shards.read_kept(listing) if self._shards.tidy() else kept

    def read(self, items: Iterable[int | Failure]) -> Iterator[Record]:
        """See `Way`."""
        assert self._shards is not None
        return self._shards.read(items)

    def _answers(self, listing: Listing, pending: Sequence[Stored], register: Any) -> "Iterator[pa.Table]":
        import pyarrow as pa
        import ray

        names = [entry.name for entry in pending]
        size = min(_MOST_PER_TASK, -(-len(names) // (self._actors * _LEAST_TASKS_PER_ACTOR)))
        tables = []
        for start in range(0, len(names), size):
            paths = names[start : start + size]
            # Of before the files are read: what replaces one meanwhile is another version for the next call.
            versions = list(map(listing.version, paths))
            tables.append(
                pa.table({"index": list(range(start, start + len(paths))), "path": paths, "version": versions})
            )
        dataset = ray.data.from_arrow(tables).map_batches(
            LabelingActor,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_args=(replace(self._recipe, register=register), self.about, listing.reader),
            compute=ray.data.ActorPoolStrategy(size=min(self._actors, len(tables))),
            **self._resources,
        )
        with our_errors(lambda: ray.get(register.error.remote())):
            yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")


class _Filling:
    """Takes answers in any order, and writes files of them."""

    def __init__(
        self,
        shards: Shards,
        listing: Listing,
        pending: Sequence[Stored],
        kept: Kept,
        on_progress: OnProgress,
        working_s: Callable[[], float],
    ) -> None:
        self._shards, self._kept, self._on_progress = shards, kept, on_progress
        self._working_s = working_s
        self._count = len(listing.entries)
        self._awaited = {entry.name for entry in pending}
        self._waiting: list[pa.Table] = []
        self._started_s = self._written_s = time.monotonic()
        self._progress = Progress.at_start(listing, pending, kept)

    def take(self, answers: "Iterator[pa.Table]") -> None:
        """Write all answers; an FsvitEdgeError if one is missing. Whatever ends it, what was answered is written."""
        try:
            for rows in answers:
                self._take(rows)
                num_rows = sum(one.num_rows for one in self._waiting)
                if num_rows >= MAX_ROWS or time.monotonic() - self._written_s > _PERIOD_S:
                    self._write()
        finally:
            self._write()
        if self._awaited:
            raise FsvitEdgeError(
                f"Ray gave no answer for {len(self._awaited):,} pictures, such as {min(self._awaited)}; the same "
                "command goes on with them."
            )

    def _take(self, rows: "pa.Table") -> None:
        import pyarrow as pa

        is_news, labeled, failed = [], 0, 0
        for path, error in zip(rows["path"].to_pylist(), rows["error"].to_pylist(), strict=True):
            is_first = path in self._awaited  # Ray may run a task twice
            self._awaited.discard(path)
            is_news.append(is_first and self._shards.is_news(path, error))
            labeled += is_first and error is None
            failed += is_first and error is not None
        self._waiting.append(rows.filter(pa.array(is_news)))
        before = self._progress
        if not before.here:  # until now, most of the time was that of Ray, which starts the processes
            self._started_s = time.monotonic() - self._working_s()
        here = before.here + labeled + failed
        self._progress = replace(
            before,
            labeled=before.labeled + labeled,
            failed=before.failed + failed,
            here=here,
            share=1 - len(self._awaited) / self._count,
            elapsed_s=time.monotonic() - self._started_s,
        )
        self._on_progress(self._progress)

    def _write(self) -> None:
        import pyarrow as pa

        self._written_s = time.monotonic()
        if not self._waiting:
            return
        # In the order of the listing, in which the label files are written.
        rows = pa.concat_tables(self._waiting).sort_by("index").drop_columns(["index"])
        self._waiting = []
        if rows.num_rows:
            self._shards.append(rows, self._kept)


@contextmanager
def open_on_ray(address: str, make: type[Labeler], options: LabelerOptions, say: Say) -> Iterator[OnRay]:
    """Connect to Ray, and open a labeler there once, which decides the engine and precision of all.

    Args:
        address: Of the cluster, as `ray.init` takes it, or `LOCAL`.
        make: The class of the labeler.
        options: What to label by; threads are those of each actor.
        say: Gets notes.

    Raises:
        EnvironmentLacksError: Ray is not installed.
        FsvitEdgeError: The cluster cannot be reached; or what `make` raises.
    """
    if options.bundle is not None and options.bundle.resolve() == DEFAULT_BUNDLE.resolve():
        options = replace(options, bundle=None)  # each machine has it, with the engines that were built there
    if not options.bank.is_file():
        make(options, say).close()  # says so, without the wait for Ray
    with connected(address, say):
        import ray

        threads = options.threads or 1
        has = ray.cluster_resources()
        gpus = 0 if options.engine in CPU_ENGINES else int(has.get("GPU", 0))
        resources = {"num_cpus": 1, "num_gpus": 1} if gpus else {"num_cpus": threads, "num_gpus": 0}
        actors = gpus or max(1, int(has.get("CPU", 0)) // threads)
        recipe = Recipe(make, replace(options, threads=threads), ray.put(files_of(options)))
        asked = ray.remote(about_of).options(**resources).remote(recipe)
        if not ray.wait([asked], timeout=_PATIENCE_S)[0]:
            say(f"Note: Waiting for a {'GPU' if gpus else 'processor'} of the Ray cluster that is free.")
        with our_errors():
            about, notes = ray.get(asked)
        for note in notes:
            say(note)
        # "auto" may be timed, and another machine could choose otherwise.
        chosen = replace(recipe.options, engine=about.engine, precision=about.precision)
        kind = "GPU" if gpus else "core" if threads == 1 else f"{threads} cores"
        note = f"Note: {actors} {'process' if actors == 1 else 'processes'} of Ray label, one per {kind}."
        yield OnRay(replace(recipe, options=chosen), about, resources, actors, lambda: say(note))
