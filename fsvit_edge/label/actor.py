"""What runs in the processes of Ray: a labeler each, opened by the same recipe wherever it is."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fsvit_edge.label.cluster import failure_of
from fsvit_edge.label.journal import Failure, Record
from fsvit_edge.label.labeler import Labeler, LabelerOptions, label_picture
from fsvit_edge.label.pictures import WithSize
from fsvit_edge.label.records import About, LabeledPicture
from fsvit_edge.label.shards import to_rows
from fsvit_edge.live.uri import printable
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError
from fsvit_edge.runtime.messages import Say
from fsvit_edge.runtime.storage import temporary_folder

if TYPE_CHECKING:  # an extra
    import pyarrow as pa

_READERS = 8  # threads of an actor that wait for files and decode them
_MOST_TRIES = 3  # of a task whose process ends, as one does that runs out of memory

Reader = Callable[[str], WithSize]


@dataclass(frozen=True)
class Recipe:
    """How any process of Ray opens the same labeler; it can be pickled.

    Attributes:
        make: The class of the labeler.
        options: What it is opened with, but for the places of its files.
        files: What `files_of` read, in Ray's store, which brings it once to each machine.
        register: An actor of `Register`; None to open a labeler that labels no rows.
    """

    make: type[Labeler]
    options: LabelerOptions
    files: Any
    register: Any = None

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


def files_of(options: LabelerOptions) -> dict[str, bytes]:
    """Read what a labeler opens; what cannot be read is left out, and the labeler says so."""
    files = [options.bank]
    with suppress(OSError):
        files += [] if options.bundle is None else [path for path in options.bundle.iterdir() if path.is_file()]
    found = {}
    for file in files:
        with suppress(OSError):
            found[file.name if file == options.bank else f"bundle/{file.name}"] = file.read_bytes()
    return found


class Register:
    """An actor to which the others tell what Ray would not.

    It begins a task that ends its process again for ever, and of an error it keeps no more than that there was one.
    """

    def __init__(self) -> None:
        self._tries: Counter[str] = Counter()
        self._error: FsvitEdgeError | None = None
        self._began_s: float | None = None

    def begin(self, task: str) -> int:
        """Note that a task begins, and return how often it did."""
        self._began_s = self._began_s or time.monotonic()
        self._tries[task] += 1
        return self._tries[task]

    def end(self, task: str) -> None:
        """Forget a task that is done."""
        del self._tries[task]

    def working_s(self) -> float:
        """Return the seconds since the first task began."""
        return 0.0 if self._began_s is None else time.monotonic() - self._began_s

    def fail(self, error: FsvitEdgeError) -> None:
        """Keep an error; the first one counts."""
        self._error = self._error or error

    def error(self) -> FsvitEdgeError | None:
        """Return the error that ended a process."""
        return self._error


class LabelingActor:
    """Labels pictures by their names; Ray keeps one in each process.

    Args:
        recipe: How to open the labeler.
        about: What its answers must come from, or they would not be those of the other actors.
        read: Reads a picture by its name.
    """

    def __init__(self, recipe: Recipe, about: About, read: Reader) -> None:
        self._about, self._read, self._register = about, read, recipe.register
        self._stack = ExitStack()
        with self._reported():
            self._labeler = self._stack.enter_context(recipe.opened())
            if self._labeler.about != about:
                raise EnvironmentLacksError(
                    f"The machines of Ray do not label alike: one has {self._labeler.about}, another {about}; install "
                    "the same version of fsvit-edge, and the same engines, on all."
                )
        self._pool = self._stack.enter_context(ThreadPoolExecutor(_READERS, "label"))

    def __call__(self, rows: "pa.Table") -> "pa.Table":
        """Turn rows with "index", "path" and "version" into those of `shards`, with "index" before."""
        import ray

        names = rows["path"].to_pylist()
        with self._reported():
            if ray.get(self._register.begin.remote(names[0])) > _MOST_TRIES:
                raise FsvitEdgeError(
                    f"A process of Ray ended {_MOST_TRIES} times while it labeled {names[0]} to {names[-1]}: one of "
                    "these pictures, or too little memory, ends it; label them alone to see which, and move it away."
                )
            found = to_rows(list(self._label(names)), rows["version"].to_pylist(), self._about)
        self._register.end.remote(names[0])
        return found.add_column(0, "index", rows["index"])

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Tell the register of an error."""
        import ray

        try:
            yield
        except Exception as error:
            ours = error if isinstance(error, FsvitEdgeError) else failure_of(error)
            ray.get(self._register.fail.remote(ours))
            raise

    def _label(self, names: Sequence[str]) -> Iterator[Record]:
        """Label pictures in their order; files are read and decoded ahead, and answers encoded behind, in threads."""
        coming = deque(self._pool.submit(self._image, name) for name in names[:_READERS])
        going: deque[Future[LabeledPicture] | Failure] = deque()
        for index, name in enumerate(names):
            read = coming.popleft().result()
            if index + _READERS < len(names):
                coming.append(self._pool.submit(self._image, names[index + _READERS]))
            if isinstance(read, Failure):
                going.append(read)
            else:
                image, size_hw = read
                going.append(self._pool.submit(label_picture, name, self._labeler.predict(image), size_hw))
            if len(going) > _READERS:
                yield _result(going.popleft())
        yield from map(_result, going)

    def _image(self, name: str) -> WithSize | Failure:
        try:
            return self._read(name)
        except FsvitEdgeError as error:
            return Failure(name, printable(str(error)))


def _result(one: "Future[LabeledPicture] | Failure") -> Record:
    return one if isinstance(one, Failure) else one.result()


def about_of(recipe: Recipe) -> tuple[About, list[str]]:
    """Open a labeler and return what its answers come from, with the notes on its engine."""
    notes: list[str] = []
    with recipe.opened(notes.append) as labeler:
        return labeler.about, notes
