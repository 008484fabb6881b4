"""Tokens of the frozen encoder on disk: it is the cost of a training, and what it says of a picture never changes."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fsvit_edge.learn.datasets import FewShotData
from fsvit_edge.learn.views import LEAST_AREA, draw_view
from fsvit_edge.model.encoder import EncoderOutput
from fsvit_edge.model.network import FewShotNetwork, normalize
from fsvit_edge.model.objectness import STRIDE
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError
from fsvit_edge.runtime.preprocess import DESCRIPTION
from fsvit_edge.runtime.storage import atomic_write

_BATCH = 8
_FORMAT = 1


def default_cache_folder() -> Path:
    """Where the user's programs keep what they can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fsvit-edge" / "tokens"


class TokenCache:
    """A folder with the encoder's outputs, float16, one file a picture, memory-mapped when read.

    A file holds (views, L + 1, 1 + N, D): the tokens of the L blocks, then the class token's query vector and the image
    tokens' key vectors, their heads side by side. Its name is the digest of the picture's file, so copies share it,
    and a picture that changes is encoded again. Other weights, sizes or views have another folder. Where the network
    tells objectness, a folder within holds its logits (views, n, n), in the same way.

    Args:
        network: Its encoder is used, wherever its parameters are.
        folder: Where the caches of all encoders lie.
        views: Views of each picture; the first is the picture itself.
    """

    def __init__(self, network: FewShotNetwork, folder: Path, views: int = 1) -> None:
        self.network = network
        self.views = views
        encoder = network.encoder
        self.shape = (views, encoder.num_layers + 1, 1 + encoder.grid**2, encoder.embed_dim)
        identity = {
            "format": _FORMAT,
            "backbone": network.config.backbone,
            "weights": _digest_of_weights(network.encoder),
            "image_size": network.config.image_size,
            "preprocessing": DESCRIPTION,
            "views": views,
            "least_area": LEAST_AREA,
        }
        text = json.dumps(identity, indent=2)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        if not (self.folder / "cache.json").exists():
            atomic_write(self.folder / "cache.json", text.encode())
        self.digest = lru_cache(maxsize=None)(_digest_of_file)
        self._objectness_folder: Path | None = None
        if network.objectness is not None:
            self._objectness_folder = self.folder / f"objectness-{_digest_of_weights(network.objectness)[:16]}"

    def fill(self, data: FewShotData, progress: Callable[[str], None] = lambda _: None) -> int:
        """Encode the pictures that are not there yet.

        Args:
            data: Whose pictures; no mask is opened.
            progress: Told how far it is.

        Returns:
            How many pictures were encoded.

        Raises:
            FsvitEdgeError: The disk has too little room.
        """
        wanted: dict[str, int] = {}
        for index, example in enumerate(data.examples):
            wanted.setdefault(self.digest(example.image), index)
        missing = {digest: index for digest, index in wanted.items() if not self._file(digest).exists()}
        each = 2 * int(np.prod(self.shape))
        needed, free = each * len(missing), shutil.disk_usage(self.folder).free
        if needed > free:
            raise FsvitEdgeError(
                f"The tokens of {len(missing)} pictures need {needed / 1e9:.1f} GB in {self.folder}, which has "
                f"{free / 1e9:.1f} GB free; choose another folder with --cache, or fewer views."
            )
        self._make(missing, data, self._file, self._encode, progress, f"encode pictures ({needed / 1e9:.2g} GB in all)")
        if self._objectness_folder is not None:
            untold = {digest: index for digest, index in wanted.items() if not self._objectness_file(digest).exists()}
            self._make(untold, data, self._objectness_file, self._objectness_of, progress, "find things in pictures")
        return len(missing)

    def read(self, image: Path, view: int = 0) -> EncoderOutput:
        """Give what the encoder says of a view of a picture: a batch of one, float32.

        Raises:
            ArtifactError: It is not in the cache, or its file is damaged.
        """
        return unpack(torch.from_numpy(self.read_packed(image, view)[None]), self.network)

    def read_packed(self, image: Path, view: int = 0) -> npt.NDArray[np.float16]:
        """Give (L + 1, 1 + N, D) of a view as it lies on disk, see the class; `unpack` takes it apart.

        Raises:
            ArtifactError: It is not in the cache, or its file is damaged.
        """
        return self._read(self._file(self.digest(image)), self.shape, image, view)

    def read_objectness(self, image: Path, view: int = 0) -> npt.NDArray[np.float16]:
        """Give the logits (n, n) of a view; (0, 0) where the network tells no objectness.

        Raises:
            ArtifactError: They are not in the cache, or their file is damaged.
        """
        if self._objectness_folder is None:
            return np.zeros((0, 0), np.float16)
        side = self.network.config.image_size // STRIDE
        return self._read(self._objectness_file(self.digest(image)), (self.views, side, side), image, view)

    def _read(self, file: Path, shape: tuple[int, ...], image: Path, view: int) -> npt.NDArray[np.float16]:
        try:
            stored = np.load(file, mmap_mode="r")
        except FileNotFoundError as error:
            raise ArtifactError(f"{file} is missing: {image} was not cached.") from error
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{file} is damaged ({error}); delete it and run again.") from error
        if stored.shape != shape or stored.dtype != np.float16:
            raise ArtifactError(
                f"{file} holds {stored.dtype} {stored.shape}, expected float16 {shape}; delete it and run again."
            )
        packed: npt.NDArray[np.float16] = np.array(stored[view])
        return packed

    def _make(
        self,
        missing: dict[str, int],
        data: FewShotData,
        file_of: Callable[[str], Path],
        say: Callable[[torch.Tensor], npt.NDArray[np.float16]],
        progress: Callable[[str], None],
        doing: str,
    ) -> None:
        """Store what is said of the views of each missing picture, digest -> index."""
        for done, (digest, index) in enumerate(missing.items()):
            if done % max(1, len(missing) // 20) == 0:
                progress(f"{doing}, {done} of {len(missing)}")
            _store(file_of(digest), say(self._views(digest, data.read_image(index))))

    def _file(self, digest: str) -> Path:
        return self.folder / f"{digest}.npy"

    def _objectness_file(self, digest: str) -> Path:
        assert self._objectness_folder is not None
        return self._objectness_folder / f"{digest}.npy"

    def _views(self, digest: str, rgb: npt.NDArray[np.uint8]) -> torch.Tensor:
        """(views, 3, S, S), as the encoder takes them."""
        size = self.network.config.image_size
        images = np.stack([draw_view(digest, view).of_image(rgb, size) for view in range(self.views)])
        device = next(self.network.encoder.parameters()).device
        return normalize(torch.from_numpy(images).to(device))

    @torch.inference_mode()
    def _encode(self, views: torch.Tensor) -> npt.NDArray[np.float16]:
        packed = np.empty(self.shape, np.float16)
        for start in range(0, self.views, _BATCH):
            batch = views[start : start + _BATCH]
            packed[start : start + _BATCH] = _pack(self.network.encoder(batch)).half().cpu().numpy()
        return packed

    @torch.inference_mode()
    def _objectness_of(self, views: torch.Tensor) -> npt.NDArray[np.float16]:
        stem, decoder = self.network.encoder.stem, self.network.objectness
        assert stem is not None
        assert decoder is not None
        told: npt.NDArray[np.float16] = decoder.to(views.device)(stem.maps(views)).half().cpu().numpy()
        return told


def unpack(packed: torch.Tensor, network: FewShotNetwork) -> EncoderOutput:
    """Take (B, L + 1, 1 + N, D) of the cache apart into what the encoder returned, float32."""
    packed = packed.float()
    vectors = packed[:, -1].reshape(*packed[:, -1].shape[:2], network.encoder.num_heads, -1).transpose(1, 2)
    return EncoderOutput(packed[:, :-1], vectors[:, :, 0], vectors[:, :, 1:])


def _pack(output: EncoderOutput) -> torch.Tensor:
    vectors = torch.cat([output.class_query.unsqueeze(2), output.image_keys], dim=2)
    return torch.cat([output.tokens, vectors.transpose(1, 2).flatten(2).unsqueeze(1)], dim=1)


def _store(file: Path, array: npt.NDArray[np.float16]) -> None:
    content = io.BytesIO()
    np.save(content, array)
    atomic_write(file, content.getvalue())


def _digest_of_weights(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digest_of_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
