"""The errors that a user can cause or meet, with their exit codes.

    FsvitEdgeError             1  failure: the disk is full, a graph failed to run
    |-- InputError             2  an input cannot be used: picture, mask, class name, option
    |-- EnvironmentLacksError  3  this machine lacks a package, a provider or a device
    |-- ArtifactError          4  a bundle, bank or checkpoint is damaged or does not fit
    |-- AccuracyGateError      5  an accuracy misses its limit
    `-- SourceError            6  a camera, stream or file of frames cannot be reached

Every message is one sentence for the person at the device: what, which file or tensor, got, expected, what to do.
"""


class FsvitEdgeError(Exception):
    """Base of every error that fsvit-edge raises on purpose."""

    exit_code = 1


class InputError(FsvitEdgeError):
    """A picture, mask, class name or option that cannot be used."""

    exit_code = 2


class ObjectTooSmallError(InputError):
    """The object in support picture `index`, counted from 0, is too small; `what` names it, to start the sentence."""

    def __init__(self, what: str, index: int) -> None:
        super().__init__(
            f"{what}: the object is too small or too thin for the network to see: its mask keeps no image token; go "
            "closer, or mark the whole object."
        )
        self.index = index


class EnvironmentLacksError(FsvitEdgeError):
    """A package, provider or device that this machine does not have."""

    exit_code = 3


def first_line(error: Exception) -> str:
    """Return what an error of a library says first, as a part of our sentence: its kind if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def package_error(needs: str, module: str, install: str, error: Exception) -> EnvironmentLacksError:
    """Say of an optional package that it is not installed; or that it is, and why it cannot be loaded.

    Args:
        needs: The start of the sentence, as "A video needs av".
        module: What was imported.
        install: The command that installs the package.
        error: What the import raised.
    """
    # A module of it that is missing is a version that is too old, which installing mends as well.
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == module:
        return EnvironmentLacksError(f"{needs}, which is not installed; try: {install}.")
    return EnvironmentLacksError(
        f"{needs}, which is installed and cannot be loaded ({first_line(error)}); see: fsvit-edge doctor."
    )


class ArtifactError(FsvitEdgeError):
    """A bundle, bank or checkpoint that is damaged or does not fit."""

    exit_code = 4


class AccuracyGateError(FsvitEdgeError):
    """An accuracy misses its limit: results differ too much, a score is too low, an answer contradicts a verdict."""

    exit_code = 5


class SourceError(FsvitEdgeError):
    """A camera, stream or file of frames that cannot be reached."""

    exit_code = 6
