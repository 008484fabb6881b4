"""Labeling on the machines of Ray: a labeler per GPU, or per so many cores, each in an actor of Ray Data.

An actor gets names and reads the pictures itself. `ray.data.read_binary_files` would end everything at the first file
that cannot be read, and its tasks find no core where actors have them all: Ray then waits for ever (ray#44687).
"""

import logging
import os
import secrets
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.label.fill import OnProgress, Progress
from fsvit_edge.label.journal import Failure, Kept, Record
from fsvit_edge.label.labeler import Labeler, LabelerOptions, label_picture
from fsvit_edge.label.output import Output
from fsvit_edge.label.pictures import Listing, Stored
from fsvit_edge.label.records import About, LabeledPicture
from fsvit_edge.label.shards import MAX_ROWS, Shards, to_rows
from fsvit_edge.live.uri import printable
from fsvit_edge.runtime.engines.choose import CPU_ENGINES
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError, package_error
from fsvit_edge.runtime.limits import usable_cores
from fsvit_edge.runtime.messages import Say
from fsvit_edge.runtime.storage import temporary_folder

if TYPE_CHECKING:  # an extra
    import pyarrow as pa

LOCAL = "local"
"""The address that starts a Ray of this machine alone, which ends with the command."""

_MOST_PER_TASK = 64  # pictures; those of a process that ends are labeled again
_LEAST_TASKS_PER_ACTOR = 4
_READERS = 8  # threads of an actor that wait for files and decode them
_PERIOD_S = 60.0  # after which what was found is written
_MOST_TRIES = 4  # of a task whose process ends, as one does that runs out of memory
_PATIENCE_S = 20.0
_STORE_BYTES = 1 << 30  # of the local object store: names and answers, and a bundle

_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",  # or it tells its makers how it is used
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # or it complains of how its own actors get their arguments (ray#53727)
}

Reader = Callable[[str], Image]


@dataclass(frozen=True)
class _Recipe:
    """How any process of Ray opens the same labeler."""

    make: type[Labeler]
    options: LabelerOptions
    files: Any  # in Ray's store, which brings it once to each machine: the bank and the bundle, by their names
    tries: Any = None  # an actor: `_Tries`

    @contextmanager
    def opened(self, say: Say = lambda _: None) -> Iterator[Labeler]:
        """Yield a labeler; its errors name the files that the user gave."""
        import ray

        with temporary_folder() as folder, ExitStack() as stack:
            bank, bundle = folder / self.options.bank.name, self.options.bundle
            here = replace(self.options, bank=bank, bundle=None if bundle is None else folder / "bundle")
            for name, data in ray.get(self.files).items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(data)
            try:
                labeler = stack.enter_context(self.make(here, say))
            except FsvitEdgeError as error:
                text = str(error).replace(str(bank), str(self.options.bank)).replace(str(here.bundle), str(bundle))
                raise type(error)(text) from error
            yield labeler


def _files_of(options: LabelerOptions) -> dict[str, bytes]:
    """Read what a labeler opens; what cannot be read is left out, and the labeler says so."""
    files = [options.bank]
    with suppress(OSError):
        files += [] if options.bundle is None else [path for path in options.bundle.iterdir() if path.is_file()]
    found = {}
    for file in files:
        with suppress(OSError):
            found[file.name if file == options.bank else f"bundle/{file.name}"] = file.read_bytes()
    return found


class _Tries:
    """Counts how often each task was begun: Ray would begin one that ends its process again for ever."""

    def __init__(self) -> None:
        self._tries: Counter[str] = Counter()

    def begin(self, task: str) -> int:
        self._tries[task] += 1
        return self._tries[task]

    def end(self, task: str) -> None:
        del self._tries[task]


class LabelingActor:
    """Labels pictures by their names; Ray keeps one in each process.

    Args:
        recipe: How to open the labeler.
        about: What its answers must come from, or they would not be those of the other actors.
        read: Reads a picture by its name.
    """

    def __init__(self, recipe: _Recipe, about: About, read: Reader) -> None:
        self._stack = ExitStack()
        self._labeler = self._stack.enter_context(recipe.opened())
        if self._labeler.about != about:
            raise EnvironmentLacksError(
                f"The machines of Ray do not label alike: one has {self._labeler.about}, another {about}; install the "
                "same version of fsvit-edge and its engines on all."
            )
        self._about, self._read, self._tries = about, read, recipe.tries
        self._pool = self._stack.enter_context(ThreadPoolExecutor(_READERS, "label"))

    def __call__(self, rows: "pa.Table") -> "pa.Table":
        """Turn rows with "index", "path" and "version" into those of `shards`, with "index" before."""
        import ray

        names = rows["path"].to_pylist()
        if ray.get(self._tries.begin.remote(names[0])) > _MOST_TRIES:
            raise FsvitEdgeError(
                f"A process of Ray ended {_MOST_TRIES} times while it labeled {names[0]} to {names[-1]}: one of these "
                "pictures, or too little memory, ends it; label them alone to see which, and move it away."
            )
        found = to_rows(list(self._label(names)), rows["version"].to_pylist(), self._about)
        self._tries.end.remote(names[0])
        return found.add_column(0, "index", rows["index"])

    def _label(self, names: Sequence[str]) -> Iterator[Record]:
        """Label pictures in their order; files are read and decoded ahead, and answers encoded behind, in threads."""
        coming = deque(self._pool.submit(self._image, name) for name in names[:_READERS])
        going: deque[Future[LabeledPicture] | Failure] = deque()
        for index, name in enumerate(names):
            image = coming.popleft().result()
            if index + _READERS < len(names):
                coming.append(self._pool.submit(self._image, names[index + _READERS]))
            if isinstance(image, Failure):
                going.append(image)
            else:
                going.append(self._pool.submit(label_picture, name, self._labeler.predict(image)))
            if len(going) > _READERS:
                yield _result(going.popleft())
        yield from map(_result, going)

    def _image(self, name: str) -> Image | Failure:
        try:
            return self._read(name)
        except FsvitEdgeError as error:
            return Failure(name, printable(str(error)))


def _result(one: "Future[LabeledPicture] | Failure") -> Record:
    return one if isinstance(one, Failure) else one.result()


class OnRay:
    """Labels on Ray, and keeps what is found in Parquet files: a `Way`; `open_on_ray` makes it."""

    def __init__(self, recipe: _Recipe, about: About, resources: Mapping[str, int], actors: int) -> None:
        self.about = about
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
            _Filling(self._shards, listing, pending, kept, on_progress).take(self._answers(listing, pending))
        return self._shards.read_kept(listing) if self._shards.tidy() else kept

    def read(self, items: Iterable[int | Failure]) -> Iterator[Record]:
        """See `Way`."""
        assert self._shards is not None
        return self._shards.read(items)

    def _answers(self, listing: Listing, pending: Sequence[Stored]) -> "Iterator[pa.Table]":
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
        tries = ray.remote(_Tries).options(num_cpus=0).remote()
        dataset = ray.data.from_arrow(tables).map_batches(
            LabelingActor,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_args=(replace(self._recipe, tries=tries), self.about, listing.reader),
            compute=ray.data.ActorPoolStrategy(size=min(self._actors, len(tables))),
            **self._resources,
        )
        with _our_errors():
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
    ) -> None:
        self._shards, self._kept, self._on_progress = shards, kept, on_progress
        self._count = len(listing.entries)
        self._awaited = {entry.name for entry in pending}
        self._waiting: list[pa.Table] = []
        self._started_s = self._written_s = time.monotonic()
        share = 1 - len(pending) / self._count
        problems = sum(entry.problem != "" for entry in listing.entries)
        self._progress = Progress(len(kept.labeled), problems, 0, share, share, 0.0)

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
        EnvironmentLacksError: Ray is not installed, or the cluster cannot be reached.
        FsvitEdgeError: What `make` raises.
    """
    if not options.bank.is_file():
        make(options, say).close()  # says so, without the wait for Ray
    with _connected(address):
        import ray

        threads = options.threads or 1
        has = ray.cluster_resources()
        gpus = 0 if options.engine in CPU_ENGINES else int(has.get("GPU", 0))
        resources = {"num_cpus": 1, "num_gpus": 1} if gpus else {"num_cpus": threads, "num_gpus": 0}
        actors = gpus or max(1, int(has.get("CPU", 0)) // threads)
        recipe = _Recipe(make, replace(options, threads=threads), ray.put(_files_of(options)))
        asked = ray.remote(_about_of).options(**resources).remote(recipe)
        if not ray.wait([asked], timeout=_PATIENCE_S)[0]:
            say(f"Note: Waiting for a {'GPU' if gpus else 'processor'} of the Ray cluster that is free.")
        with _our_errors():
            about, notes = ray.get(asked)
        for note in notes:
            say(note)
        # "auto" may be timed, and another machine could choose otherwise.
        chosen = replace(recipe.options, engine=about.engine, precision=about.precision)
        kind = "GPU" if gpus else "core" if threads == 1 else f"{threads} cores"
        say(f"Note: {actors} {'process' if actors == 1 else 'processes'} of Ray label, one per {kind}.")
        yield OnRay(replace(recipe, options=chosen), about, resources, actors)


def _about_of(recipe: _Recipe) -> tuple[About, list[str]]:
    notes: list[str] = []
    with recipe.opened(notes.append) as labeler:
        return labeler.about, notes


@contextmanager
def _connected(address: str) -> Iterator[None]:
    for name, value in _VARIABLES.items():  # before Ray is imported, which reads them; who sets others gets those
        os.environ.setdefault(name, value)
    if address == LOCAL:  # it listens on all interfaces, and obeys who knows a token; its own stays in the home folder
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import pyarrow.parquet  # noqa: F401
        import ray
        import ray.data
    except ImportError as error:
        raise package_error("--ray needs Ray", "ray", 'pip install "fsvit-edge[ray]"', error) from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == LOCAL:
        options |= {"num_cpus": usable_cores(), "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    try:
        with _silence():
            ray.init(address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise EnvironmentLacksError(f"Ray cannot be reached at {address}: {reason}.") from error
    try:
        with redirect_stdout(sys.stderr):  # where Ray's words on a process that ended belong
            yield
    finally:
        ray.shutdown()


@contextmanager
def _silence() -> Iterator[None]:
    """Discard what Ray writes to standard error: a line that its logs are silenced."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _our_errors() -> Iterator[None]:
    """Raise what an actor raised on purpose as itself, and of other ends of one, a sentence."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        first: BaseException = error
        while (cause := getattr(first, "cause", None) or first.__cause__) is not None:
            first = cause
            if type(first).__module__ == FsvitEdgeError.__module__:
                raise first from None
        reason = (str(first).splitlines() or [""])[0].rstrip(".")
        raise FsvitEdgeError(f"Ray failed: {type(first).__name__}: {reason}; the same command goes on.") from error
