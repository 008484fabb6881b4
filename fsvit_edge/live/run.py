"""A complete run, from the name of a source to the sinks: `run_source` opens everything, and `loop.LiveRun` runs it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from fsvit_edge.fewshot.bank_signature import read_trusted_key
from fsvit_edge.fewshot.first_look import FirstLook
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.zones import Zone, check_zones
from fsvit_edge.live.bank_follower import POLL_S, BankFollower
from fsvit_edge.live.bank_origin import open_origin
from fsvit_edge.live.collisions import refuse_collisions
from fsvit_edge.live.doubts import DoubtKeeper
from fsvit_edge.live.loop import LiveRun, OnFrame, RunResult
from fsvit_edge.live.run_model import RunModel
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.live.sinks.base import EventOptions, RecordingOptions, Sink
from fsvit_edge.live.sinks.open import (
    is_mqtt,
    is_page,
    open_event_sinks,
    open_sink,
    path_of,
    recording_folder,
    refuse_other_places,
    sink_name,
    sinks_of_sources,
    snapshots_of_sources,
)
from fsvit_edge.live.sources.base import DEFAULT_FPS, Source, SourceOptions
from fsvit_edge.live.sources.demo import demo_length, demo_supports
from fsvit_edge.live.sources.many import ManySources, NamedSource
from fsvit_edge.live.sources.names import source_names
from fsvit_edge.live.sources.open import open_source
from fsvit_edge.live.uri import is_address
from fsvit_edge.remote.client import RemoteModel, bank_on_box, is_box, refuse_what_a_box_decides, refuse_with_box
from fsvit_edge.remote.wire import Options
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.messages import Say
from fsvit_edge.runtime.presence_level import check_level
from fsvit_edge.runtime.storage import remove_leftovers

DEFAULT_BANK = Path("bank.safetensors")
_LEAST_POLL_S = 0.05  # 20 questions a second; more would only keep the server and a core busy
_MOST_POLL_S = 7 * 86400.0  # a thread cannot wait for longer than 292 years

OpenPage = Callable[[str, LiveModel, Path], Sink]


@dataclass(frozen=True)
class RunOptions:
    """How to run a source.

    Attributes:
        source: How to read the source.
        recording: How much a recording may write.
        events: Who is told about events.
        bundle: Folder of the bundle; None: the bundled model.
        engine: Engine that runs the model, as in `FewShotModel.load`; or the address of a box, as in `RemoteModel`.
        precision: Precision of the engine, as in `FewShotModel.load`.
        threads: Threads of the engine; None: every core.
        bank: File with the enrolled classes, or the https:// address of one, which is followed, see `BankFollower`;
            None: `DEFAULT_BANK` in the current folder, if it exists. With a box, the name of one of its banks.
        trust: Public key that must have signed the bank, see `bank_signature`; the bank is then followed.
        poll_s: Seconds between two looks for a newer bank, which is then followed; None: 30, if it is followed.
        level: Score above which a class is present, for all classes; None: the level of each class.
        exclusive: Whether classes that claim the same pixels exclude each other, see `FewShotModel.exclusive`.
        first_look: How many classes of each frame to compare, those that a first look finds likeliest; None: all.
        steady: Whether a class turns on and off only after some time, see `SteadyAnswers`; None: for live sources, or
            if someone is told about events.
        zones: Parts of the frame, which replace those of the bank; records and events name those in which a class is.
        max_frames: Number of frames after which to stop; None continues to the end of the source, or for the demo to
            the end of one round.
        stats_s: Seconds between two lines of statistics; None prints none.
        health_file: JSON file with the health of the run, replaced every second; None writes none.
        review: Whether to keep doubtful frames in the bank's file, see `DoubtKeeper`. With a page, those of a live
            source or the demo are kept in memory, and the page can save them.
        home_assistant: Whether the sinks for MQTT announce each class to Home Assistant.

    Raises:
        InputError: There are too many zones, or two have the same name; or a bank that is followed is not given, or
            would be written to.
    """

    source: SourceOptions = field(default_factory=SourceOptions)
    recording: RecordingOptions = field(default_factory=RecordingOptions)
    events: EventOptions = field(default_factory=EventOptions)
    bundle: Path | None = None
    engine: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    bank: Path | str | None = field(default=None, repr=False)  # an address may contain a password
    trust: str | None = None
    poll_s: float | None = None
    level: float | None = None
    exclusive: bool = False
    first_look: int | None = None
    steady: bool | None = None
    zones: tuple[Zone, ...] = ()
    max_frames: int | None = None
    stats_s: float | None = None
    health_file: Path | None = None
    review: bool = False
    home_assistant: bool = False

    def __post_init__(self) -> None:
        check_zones(self.zones)
        if self.bank is None and (self.trust is not None or self.poll_s is not None):
            raise InputError("--trust and --poll are for a bank that others change; give it with --bank.")
        if self.poll_s is not None and not _LEAST_POLL_S <= self.poll_s <= _MOST_POLL_S:
            raise InputError(
                f"--poll must be {_LEAST_POLL_S:g} to {_MOST_POLL_S:.0f} seconds, a week; got {self.poll_s:g}."
            )
        if self.review and self.follows_bank:
            raise InputError("--review writes into the bank, which here comes from elsewhere; leave out one of them.")

    @property
    def follows_bank(self) -> bool:
        """Whether the run takes over newer banks while it runs."""
        return self.trust is not None or self.poll_s is not None or is_address(str(self.bank or ""))


def _print_line(text: str) -> None:
    if sys.stderr is not None:  # closed, and print would take standard output instead
        with suppress(OSError):  # a log on a full disk ends no run
            print(text, file=sys.stderr)


def run_source(
    source: str | Mapping[str, str],
    sinks: Sequence[str] = (),
    options: RunOptions = RunOptions(),
    *,
    say: Say = _print_line,
    on_frame: OnFrame | None = None,
    open_page: OpenPage | None = None,
) -> RunResult:
    """Find and segment the classes of a bank in every frame of a source, or of several sources in turn.

    Without a bank, the demo and a camera show the classes of the demo; with a page, the run starts without classes.
    Call it in the main thread, which receives the signals that stop it.

    Args:
        source: As `open_source` takes it; several by their names, see `source_names`.
        sinks: As `open_sink` takes them, or "http://ADDRESS:PORT" for the page; "{source}" in them is the place for the
            name of a source, of which each then has its own sink.
        options: How to run it.
        say: Takes a line for the person at the device; by default, it goes to standard error.
        on_frame: Called after each frame in the thread of the loop, for a display.
        open_page: Opens the page from its URI, the model and the bank to save to, as `PageSink` does.

    Raises:
        InputError: A source, a sink or an option cannot be used, or a file has no enrolled classes to look for, or
            no bank to keep doubtful frames in, or outputs would write over each other or over other files.
        EnvironmentLacksError: A package, engine or device is missing.
        ArtifactError: The bundle or bank is missing, damaged or does not fit.
        SourceError: A source cannot be opened, or the last one cannot be read.
        FsvitEdgeError: All sinks have failed.
    """
    if options.level is not None:
        check_level(options.level)
    if options.events.are_wanted and options.steady is False:
        raise InputError("Events need steady answers; leave out --no-steady, or --webhook and --snapshots.")
    if options.home_assistant and not any(map(is_mqtt, sinks)):
        raise InputError(
            "--home-assistant needs an MQTT sink, through which Home Assistant finds the classes; add --sink "
            "mqtt://HOST/TOPIC."
        )
    named = source_names([(None, source)]) if isinstance(source, str) else dict(source)
    is_demo, has_page = set(named.values()) == {"demo"}, any(map(is_page, sinks))
    on_box = is_box(options.engine)
    if on_box:
        _refuse_with_box(options, has_page)
    if source == "demo" and options.max_frames is None and not has_page:
        options = replace(options, max_frames=demo_length())
    snapshots = options.events.snapshots
    for uri in sinks:
        refuse_other_places("--sink", uri)
    for option, path in (("--snapshots", snapshots), ("--health", options.health_file), ("--bank", options.bank)):
        refuse_other_places(option, str(path or ""), has_place=option == "--snapshots")
    own_sinks = [one for uri in sinks for one in sinks_of_sources(uri, list(named))]
    folders = [] if snapshots is None else snapshots_of_sources(snapshots, list(named))
    for uri in named.values():
        _refuse_to_overwrite(uri, [sink for _, sink in own_sinks], [folder for _, folder in folders])
    follower = _open_follower(options) if options.follows_bank else None
    for note in () if follower is None else follower.notes:
        say(f"Note: {note}")
    bank_file = None if options.bank is None or is_address(str(options.bank)) else Path(options.bank)
    bank_to_save = bank_file or DEFAULT_BANK
    bank = None if on_box or follower is not None else _bank_to_load(bank_file, is_demo, has_page)
    bank_here = None if on_box else bank_to_save
    refuse_collisions(list(named.values()), [uri for _, uri in own_sinks], bank_here, options.health_file)
    if options.review and bank is None:
        raise InputError(
            f"--review keeps frames in the bank, and there is none at {bank_to_save}; enroll a class with: fsvit-edge "
            "enroll NAME IMAGE, or choose a bank with --bank FILE."
        )
    written = {recording_folder(uri) for _, uri in own_sinks} | {folder for _, folder in folders}
    written |= {file.parent for file in (bank_here, options.health_file) if file is not None}
    for folder in filter(None, written):
        remove_leftovers(folder)
    with ExitStack() as stack:
        frames = _open_sources(source, options, has_page, stack)
        for note in (note for one in frames.parts.values() for note in one.notes):
            say(f"Note: {note}")
        is_elsewhere = on_box or follower is not None
        if bank is None and not (is_elsewhere or is_demo or has_page or frames.is_live):
            raise InputError(
                "No classes are enrolled; enroll one with: fsvit-edge enroll NAME IMAGE, or choose a bank with --bank "
                "FILE (to try it without a bank: fsvit-edge run demo)."
            )
        has_no_time = any(not one.is_live and one.fps is None for one in frames.parts.values())
        if (options.steady or options.events.are_wanted) and has_no_time:
            asked = "--steady needs" if options.steady else "Events (--webhook, --snapshots) need"
            raise InputError(f"{asked} a video, a camera or a stream: pictures have no time.")
        model = None if on_box else _open_here(options, bank, follower, is_demo, has_page, stack, say)
        origin = "" if follower is None else follower.status.origin
        live_model = None if model is None else LiveModel(model, options.zones, origin)
        run_model: RunModel = live_model or stack.enter_context(closing(_open_box(options, bank_to_save, say)))
        opened: list[tuple[str, Sink]] = []
        with ExitStack() as unfinished:  # if a sink is refused, finishes the ones before

            def add(name: str, sink: Sink, of: str | None) -> None:
                sink.source = of if of in frames.parts else None
                opened.append((name, unfinished.enter_context(sink)))

            for of, uri in own_sinks:
                if not is_page(uri):
                    shown = frames.parts.get(of or "", frames)
                    fps, is_live = shown.fps or DEFAULT_FPS, shown.is_live
                    sink = open_sink(uri, fps, options.recording, is_live, options.home_assistant)
                elif open_page is None:
                    raise InputError(f"The page {uri} needs open_page, such as fsvit_edge.page.sink.PageSink.")
                else:
                    assert live_model is not None  # with a box, a page is refused
                    sink = open_page(uri, live_model, bank_to_save)
                add(sink_name(uri), sink, of)
            events = options.events
            of_all = (None, replace(events, snapshots=None))
            for of, told in (of_all, *((of, replace(events, webhooks=(), snapshots=folder)) for of, folder in folders)):
                for name, sink in open_event_sinks(told):
                    add(name, sink, of)
            unfinished.pop_all()  # from here on, the run finishes them
        if follower is not None:
            assert live_model is not None  # with a box, banks are not followed
            stack.enter_context(follower.following(live_model))
        elif model is not None and (options.review or (has_page and (frames.is_live or is_demo))):
            keeper = stack.enter_context(DoubtKeeper(frames, model, bank_to_save if options.review else None, say))
            on_frame = keeper.before(on_frame)
        live_run = LiveRun(
            frames,
            run_model,
            opened,
            say,
            on_frame,
            steady=True if options.steady is None and options.events.are_wanted else options.steady,
            max_frames=options.max_frames,
            stats_s=options.stats_s,
            health_file=options.health_file,
            follower=follower,
        )
        return live_run.run()


def _open_sources(source: str | Mapping[str, str], options: RunOptions, has_page: bool, stack: ExitStack) -> Source:
    def open_one(uri: str) -> Source:
        is_camera = uri == "demo" and has_page and options.max_frames is None  # a camera to try the page with
        asked = replace(options.source, loop=True, realtime=True) if is_camera else options.source
        return stack.enter_context(open_source(uri, asked))

    if isinstance(source, str):
        return open_one(source)
    is_endless = has_page or options.max_frames is not None
    return stack.enter_context(
        ManySources(
            *(
                NamedSource(name, open_one(uri), demo_length() if uri == "demo" and not is_endless else None)
                for name, uri in source.items()
            )
        )
    )


def _open_here(
    options: RunOptions,
    bank: Path | None,
    follower: BankFollower | None,
    is_demo: bool,
    has_page: bool,
    stack: ExitStack,
    say: Say,
) -> FewShotModel:
    """Open the model with the classes of a bank, of the bank that is followed, or of the demo."""
    model = stack.enter_context(
        _open_model(options, bank, say)
        if follower is None
        else follower.open_model(lambda path: _open_model(options, path, say))
    )
    for note in model.choice.notes:
        say(f"Note: {note}")
    if follower is not None:
        status = follower.status
        say(f"Bank {status.origin}: {status.sha256:.12} answers{', a copy from before' * status.is_copy}.")
    if bank is not None:
        model.load_bank(bank)
    elif follower is None and (is_demo or not has_page):
        if not is_demo:
            say("No bank found, so the classes of the demo are used; enroll yours: fsvit-edge enroll NAME IMAGE")
        _enroll_demo(model, say)
    return model


def _open_box(options: RunOptions, bank: Path, say: Say) -> RemoteModel:
    wishes = Options(level=options.level, exclusive=options.exclusive, first_look=options.first_look)
    return RemoteModel(options.engine, bank_on_box(bank), say, wishes, options.zones)


def _refuse_with_box(options: RunOptions, has_page: bool) -> None:
    refuse_what_a_box_decides(options.bundle, options.precision, options.threads)
    refuse_with_box({"Following a bank (--trust, --poll, an address)": options.follows_bank}, "the box follows its own")
    kept = {"The page (--sink http://...)": has_page, "--review": options.review}
    refuse_with_box(kept, "it changes a bank, and the box's banks are not on this device")


def _refuse_to_overwrite(source: str, sinks: Sequence[str], snapshots: Sequence[Path]) -> None:
    """Refuse a sink that would write over, or between, the pictures or the video that the run reads."""
    read = Path(source).resolve()
    for folder in snapshots:
        if folder.resolve() == read and read.is_dir():
            raise InputError(f"The folder {folder} is the source, too; give another one with --snapshots.")
    for uri in sinks:
        if recording_folder(uri) is not None and path_of(uri).resolve() == read and read.exists():
            raise InputError(f"The sink {uri} is the source, which it would overwrite; give another name with --sink.")


def _open_follower(options: RunOptions) -> BankFollower:
    origin = open_origin(str(options.bank), is_signed=options.trust is not None)
    trusted = None if options.trust is None else read_trusted_key(options.trust)
    return BankFollower(origin, trusted, options.poll_s or POLL_S)


def _open_model(options: RunOptions, bank: Path | None, say: Say) -> FewShotModel:
    """Open the model without its classes, for a bank whose precision is preferred."""
    model = FewShotModel.load(options.bundle, options.engine, options.precision, options.threads, bank, say)
    model.set_level_for_all(options.level)
    model.exclusive = options.exclusive
    model.first_look = None if options.first_look is None else FirstLook(options.first_look)
    return model


def _bank_to_load(bank: Path | None, is_demo: bool, has_page: bool) -> Path | None:
    if bank is None:
        return DEFAULT_BANK if DEFAULT_BANK.is_file() and not is_demo else None
    # The page creates a bank that does not exist yet; without a page, loading it raises.
    return bank if bank.exists() or not has_page else None


def _enroll_demo(model: FewShotModel, say: Say) -> None:
    for support in demo_supports():
        model.enroll(support.name, [support.image], [support.mask])
        say(f"Enrolled {support.name!r} from one picture {'without' if support.mask is None else 'with'} a mask")
