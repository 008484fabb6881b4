"""What `fsvit-edge enroll` accepts: pictures, folders, masks, boxes, frames of a video; and what it prints."""

from pathlib import Path

import numpy as np
import pytest
from command_line import Cli, is_one_error
from sample_files import write_video

from fsvit_edge import FewShotModel
from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.inspect import diagnosis
from fsvit_edge.runtime.pictures import read_image, thumbnail, write_image

HEIGHT, WIDTH, FRAMES, FPS = 120, 160, 12, 10.0
BANK = Path("bank.safetensors")


def shaded(number: int) -> np.ndarray:
    """A picture of its own shade, with a square on it."""
    image = np.full((HEIGHT, WIDTH, 3), 20 + 15 * number, np.uint8)
    image[40:90, 50:110] = (220, 60, 30)
    return image


def square() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    mask[40:90, 50:110] = 255
    return mask


@pytest.fixture
def things(here: Path) -> Path:
    """Pictures, folders and videos, in the current folder."""
    for number in (1, 2, 10):
        write_image(Path(f"album/{number}.png"), shaded(number))
        write_image(Path(f"pairs/images/{number}.png"), shaded(number))
        write_image(Path(f"pairs/masks/{number}.png"), square())
        write_image(Path(f"bare/images/{number}.png"), shaded(number))
        write_image(Path(f"only/masks/{number}.png"), square())
        write_image(Path(f"half/images/{number}.png"), shaded(number))
    write_image(Path("half/masks/2.png"), square())
    write_image(Path("twice/images/1.png"), shaded(1))
    write_image(Path("twice/images/1.jpg"), shaded(1))
    write_image(Path("twice/masks/1.png"), square())
    write_image(Path("a.png"), shaded(4))
    write_image(Path("b.png"), shaded(5))
    write_image(Path("mask.png"), square())
    Path("empty").mkdir()
    Path("hollow/images").mkdir(parents=True)
    Path("hollow/masks").mkdir()
    Path("crowd").mkdir()
    for number in range(101):
        Path(f"crowd/{number}.png").write_bytes(Path("a.png").read_bytes())
    write_video("clip.mp4", [shaded(number) for number in range(FRAMES)], FPS)
    Path("other.mp4").write_bytes(Path("clip.mp4").read_bytes())
    return here


def shades(name: str = "it") -> list[int]:
    """Which of the shaded pictures the supports of a class are."""
    corners = [int(support.thumbnail[1, 1, 1]) for support in SupportBank.load(BANK).supports(name)]
    return [round((corner - 20) / 15) for corner in corners]


def flags(name: str = "it") -> list[bool]:
    return [support.has_mask for support in SupportBank.load(BANK).supports(name)]


@pytest.mark.usefixtures("things")
@pytest.mark.parametrize(
    ("line", "expected", "masked"),
    [
        ("album", [1, 2, 10], False),  # in natural order
        ("album a.png", [1, 2, 10, 4], False),
        ("pairs", [1, 2, 10], True),
        ("clip.mp4 --frame 7", [7], False),
        ("clip.mp4 --frame 0", [0], False),
        ("clip.mp4 --frame 11", [11], False),
        ("clip.mp4 --frame 9 --frame 3", [9, 3], False),
        ("clip.mp4 --at 0.5", [5], False),
        ("clip.mp4 --at 0.39 --at 0", [3, 0], False),  # what is shown then
        ("a.png clip.mp4 --frame 2", [4, 2], False),
        ("a.png b.png --mask mask.png --mask mask.png", [4, 5], True),
        ("a.png b.png --box 50,40,60,50 --box 50,40,60,50", [4, 5], True),
        ("a.png --box 50,40,110,50", [4], True),
        ("album --mask mask.png --mask mask.png --mask mask.png", [1, 2, 10], True),
        ("clip.mp4 --frame 2 --box 50,40,60,50", [2], True),
    ],
)
def test_pictures_folders_and_videos_are_enrolled(cli: Cli, line: str, expected: list[int], masked: bool) -> None:
    result = cli(f"enroll it {line}")
    assert result.code == 0, result.err
    assert shades() == expected
    assert flags() == [masked] * len(expected)
    assert result.out.count("fit on its own picture: IoU ") == (len(expected) if masked else 0)
    assert result.out.count(": guessed mask covers ") == (0 if masked else len(expected))
    assert ("Note: The mask" in result.err) != masked
    assert "Traceback" not in result.err


@pytest.mark.usefixtures("things")
def test_a_box_is_left_top_width_and_height(cli: Cli) -> None:
    result = cli("enroll it a.png --box 50,40,60,50")
    (support,) = SupportBank.load(BANK).supports("it")
    with FewShotModel.load(engine="onnxruntime", precision="fp32") as model:
        enrolled = model.enroll("it", [read_image(Path("a.png"))], boxes=[(50, 40, 110, 90)])
        (same,) = model.bank.supports("it")
    assert f"a.png: mask from box covers {enrolled.mask_cover[0]:.0%} of the picture" in result.out
    assert np.array_equal(support.thumbnail_mask, same.thumbnail_mask)
    assert not enrolled.masks[0][:, :50].any()
    assert not enrolled.masks[0][90:].any()


@pytest.mark.usefixtures("things")
def test_a_guess_is_called_one_and_the_printed_commands_show_and_mend_it(cli: Cli) -> None:
    assert "guess" not in cli("enroll 'my mug' a.png --mask mask.png").err  # the control
    result = cli("enroll 'my mug' b.png")
    note, mend, _ = result.err.splitlines()
    start = "Note: The mask of b.png is a guess, which may be something else. Look at it with: "
    assert note == f"{start}fsvit-edge bank list bank.safetensors --preview bank.png"
    assert cli(note.partition("fsvit-edge ")[2]).code == 0
    assert Path("bank.png").exists()
    assert mend.startswith("If it is wrong, enroll the picture again, with --box or --mask, after: fsvit-edge bank ")
    assert cli(mend.partition("fsvit-edge ")[2]).out == "Removed picture 1 of 'my mug', which has 1 left.\n"
    assert (shades("my mug"), flags("my mug")) == ([4], [True])
    several = cli("enroll it a.png b.png --preview fit.png").err.splitlines()[0]
    assert several == "Note: The masks of 2 pictures are guesses, which may be something else. Look at them in fit.png"


@pytest.mark.usefixtures("things")
@pytest.mark.parametrize(("devices", "source"), [([], "photo.jpg"), (["/dev/video0"], "--camera")])
def test_what_comes_next_can_be_run_on_this_machine(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, devices: list[str], source: str
) -> None:
    monkeypatch.setattr(diagnosis, "connected_cameras", lambda: devices)
    result = cli("enroll it a.png --mask mask.png --bank 'my bank.safetensors'")
    assert result.err.splitlines()[-1] == f"Next: fsvit-edge run {source} --bank 'my bank.safetensors'"


@pytest.mark.usefixtures("things")
def test_a_gif_is_a_picture_or_with_a_frame_a_video(cli: Cli) -> None:
    from PIL import Image

    first, *others = (Image.fromarray(shaded(number)) for number in range(4))
    first.save("moving.gif", save_all=True, append_images=others, duration=100)
    assert cli("enroll it moving.gif").code == 0
    assert cli("enroll it moving.gif --frame 2").code == 0
    assert shades() == [0, 2]


@pytest.mark.usefixtures("things")
@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("empty", "The folder empty contains no picture (.png, .jpg"),
        ("hollow", "The folder hollow/images contains no picture"),
        ("bare", "The folder bare has images/ but no masks/; add it, or give the folder of the pictures itself."),
        ("only", "The folder only has masks/ but no images/; add it"),
        ("half", "2 of the 3 pictures in half/images have no mask, first 1.png; add half/masks/1.png"),
        ("twice", "twice/images/1.jpg and twice/images/1.png differ only in their suffix; rename one of them."),
        ("crowd", "101 pictures are too many; give at most 100 at a time, the best ones."),
        ("none", "The picture none cannot be read: No such file"),
        ("pairs --mask mask.png", "A folder with masks/ has its own masks; enroll it without --mask"),
        ("pairs --box 50,40,60,50", "A folder with masks/ has its own masks; enroll it without --mask"),
        ("album --mask mask.png", "3 pictures but 1 mask: give one --mask for each picture, or none."),
        ("a.png --box 50,40,60,50 --box 0,0,9,9", "1 picture but 2 boxes: give one --box for each picture, or none."),
        ("album --box 0,0,9,9", "3 pictures but 1 box: give one --box for each picture, or none."),
        ("a.png --mask mask.png --box 50,40,60,50", "Give --mask or --box, not both."),
        ("a.png --box 50,40,60", "--box '50,40,60' is not a box; give left,top,width,height in pixels"),
        ("a.png --box 50,40,60,-5", "is not a box"),
        ("a.png --box 0,0,0,9", "--box 0,0,0,9 has no area"),
        ("a.png --box 50,40,110,90", "The box 50,40,110,90 reaches outside a.png, which is 160x120 pixels"),
        ("a.png --box 50,40,3,50", "contains less than 4 x 4 pixels"),
        ("clip.mp4", "clip.mp4 is a video; choose a frame with --frame NUMBER, from 0, or --at SECONDS."),
        ("clip.mp4 --frame 12", "The video clip.mp4 has 12 frames and no frame 12; the first is frame 0."),
        ("clip.mp4 --frame 3 --frame 40", "The video clip.mp4 has 12 frames and no frame 40"),
        ("clip.mp4 --at 1.2", "The video clip.mp4 ends at 1.20 s; it has no frame at 1.2 s."),
        ("clip.mp4 --frame -1", "Invalid value for '--frame'"),
        ("clip.mp4 --at -1", "--at must be a time in seconds"),
        ("clip.mp4 --at nan", "--at must be a time in seconds"),
        ("clip.mp4 --at inf", "--at must be a time in seconds"),
        ("clip.mp4 --frame 1 --at 1", "by --frame or by --at, not both."),
        ("a.png --frame 1", "--frame and --at are for a video, but no video is given; leave them out."),
        ("album --at 1", "--frame and --at are for a video, but no video is given; leave them out."),
        ("clip.mp4 other.mp4 --frame 1", "clip.mp4 and other.mp4 are both videos; enroll from one at a time."),
        ("a.png --preview fit.txt", "fit.txt cannot be written as a picture; end its name in one of .png"),
    ],
)
def test_each_wrong_use_is_one_sentence(cli: Cli, line: str, text: str) -> None:
    is_one_error(cli(f"enroll it {line}"), 2, text)
    assert not BANK.exists()


@pytest.mark.usefixtures("things")
def test_a_thing_too_small_for_the_network_is_refused_by_the_name_of_its_picture(cli: Cli) -> None:
    mask = np.zeros((600, 600, 3), np.uint8)
    mask[301, 301] = 255  # closer than 32 pixels the network is not shown a picture
    write_image(Path("far.png"), np.full((600, 600, 3), 90, np.uint8))
    write_image(Path("far_mask.png"), mask)
    result = cli("enroll far a.png far.png --mask mask.png --mask far_mask.png")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "Error: far.png: the object is too small or too thin for the network to see: its mask keeps no image token; "
        "go closer, or mark the whole object.\n"
    )
    assert not BANK.exists()


@pytest.mark.usefixtures("things")
def test_the_preview_shows_every_picture(cli: Cli) -> None:
    left = Path("fits/.fsvit-edge-1_abc")  # of a command that was killed
    left.parent.mkdir()
    left.write_bytes(b"half")
    result = cli("enroll it pairs album --preview fits/fit.png")
    assert (result.code, left.exists()) == (0, False)
    drawn = read_image(Path("fits/fit.png"))
    cell = 8 + WIDTH
    assert drawn.shape[1] == 8 + 4 * cell  # four in the first row, two in the second
    assert drawn.shape[0] > 2 * HEIGHT
    for column, number in enumerate((1, 2, 10, 1)):
        corner = drawn[8 + 5, 8 + column * cell + 5]
        assert int(np.abs(corner.astype(int) - shaded(number)[0, 0]).max()) < 130  # perhaps tinted
    plain = np.asarray(thumbnail(shaded(1), 480))
    assert (drawn[8 : 8 + HEIGHT, 8 : 8 + WIDTH] != plain).any()
    edge = drawn[8 + 38 : 8 + 43, 8 + 60 : 8 + 100].max(axis=(0, 2))
    assert edge.min() > 200  # the mask's upper side
