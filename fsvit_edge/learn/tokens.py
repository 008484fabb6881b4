"""Cache of the frozen encoder's tokens on disk: they never change, and encoding is most of the cost of training."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fsvit_edge.learn.examples import FewShotData
from fsvit_edge.learn.views import LEAST_AREA, draw_view
from fsvit_edge.model.encoder import EncoderOutput
from fsvit_edge.model.network import FewShotNetwork, normalize
from fsvit_edge.model.objectness import STRIDE
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError
from fsvit_edge.runtime.preprocess import DESCRIPTION
from fsvit_edge.runtime.storage import atomic_write, user_cache

_BATCH = 8
_FORMAT = 1


def default_cache_folder() -> Path:
    """Return the folder for cached tokens in the user's cache folder."""
    return user_cache("tokens")


class TokenCache:
    """A folder with the encoder's outputs in float16, one file per picture, memory-mapped when read.

    A file contains (views, L + 1, 1 + N, D): the tokens of the L blocks, then the class token's query vector and the
    image tokens' key vectors, with the heads side by side. It is named by the digest of the picture's file, so copies
    share it, and a changed picture is encoded again. Each combination of weights, size and views has its own folder. If
    the network predicts objectness, a subfolder contains its logits (views, n, n), in the same way.

    Args:
        network: The network whose encoder is used, on the device where its parameters are.
        folder: Folder of all caches.
        views: Views per picture; the first is the picture itself.
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
        """Encode the pictures that are not cached yet.

        Args:
            data: Data set with the pictures; no mask is opened.
            progress: Called with the progress.

        Returns:
            Number of pictures that were encoded.

        Raises:
            FsvitEdgeError: The disk has too little free space.
        """
        wanted: dict[str, int] = {}
        for index, example in enumerate(data.examples):
            wanted.setdefault(self.digest(example.image), index)
        unencoded = {digest: index for digest, index in wanted.items() if not self._file(digest).exists()}
        each = 2 * int(np.prod(self.shape))
        needed, free = each * len(unencoded), shutil.disk_usage(self.folder).free
        if needed > free:
            raise FsvitEdgeError(
                f"The tokens of {len(unencoded)} pictures need {needed / 1e9:.1f} GB in {self.folder}, where "
                f"{free / 1e9:.1f} GB are free; choose another folder with --cache, or fewer --views."
            )
        self._make(
            unencoded, data, self._file, self._encode, progress, f"encode pictures ({needed / 1e9:.2g} GB in all)"
        )
        if self._objectness_folder is not None:
            missing = {digest: index for digest, index in wanted.items() if not self._objectness_file(digest).exists()}
            self._make(missing, data, self._objectness_file, self._objectness_of, progress, "compute objectness")
        return len(unencoded)

    def read(self, image: Path, view: int = 0) -> EncoderOutput:
        """Return the encoder's output for a view of a picture: a batch of one, float32.

        Raises:
            ArtifactError: The picture is not in the cache, or its file is damaged.
        """
        return unpack(torch.from_numpy(self.read_packed(image, view)[None]), self.network)

    def read_packed(self, image: Path, view: int = 0) -> npt.NDArray[np.float16]:
        """Return (L + 1, 1 + N, D) float16 of a view as stored (see the class); `unpack` converts a batch of them.

        Raises:
            ArtifactError: The picture is not in the cache, or its file is damaged.
        """
        return self._read(self._file(self.digest(image)), self.shape, image, view)

    def read_objectness(self, image: Path, view: int = 0) -> npt.NDArray[np.float16]:
        """Return the objectness logits (n, n) of a view; (0, 0) if the network predicts none.

        Raises:
            ArtifactError: The logits are not in the cache, or their file is damaged.
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
                f"{file} contains {stored.dtype} {stored.shape}, expected float16 {shape}; delete it and run again."
            )
        packed: npt.NDArray[np.float16] = np.array(stored[view])
        return packed

    def _make(
        self,
        missing: dict[str, int],
        data: FewShotData,
        file_of: Callable[[str], Path],
        compute: Callable[[torch.Tensor], npt.NDArray[np.float16]],
        progress: Callable[[str], None],
        title: str,
    ) -> None:
        """Compute and store the result for the views of each missing picture (digest -> index of an example)."""
        for done, (digest, index) in enumerate(missing.items()):
            if done % max(1, len(missing) // 20) == 0:
                progress(f"{title}, {done} of {len(missing)}")
            _store(file_of(digest), compute(self._views(digest, data.read_image(index))))

    def _file(self, digest: str) -> Path:
        return self.folder / f"{digest}.npy"

    def _objectness_file(self, digest: str) -> Path:
        assert self._objectness_folder is not None
        return self._objectness_folder / f"{digest}.npy"

    def _views(self, digest: str, rgb: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Return (views, 3, S, S) float, normalized for the encoder."""
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
        logits: npt.NDArray[np.float16] = decoder.to(views.device)(stem.maps(views)).half().cpu().numpy()
        return logits


def unpack(packed: torch.Tensor, network: FewShotNetwork) -> EncoderOutput:
    """Convert (B, L + 1, 1 + N, D) of the cache to the encoder's output, float32."""
    packed = packed.float()
    batch, _, length, _ = packed.shape
    vectors = packed[:, -1].reshape(batch, length, network.encoder.num_heads, -1).transpose(1, 2)  # B, heads, 1 + N, d
    return EncoderOutput(packed[:, :-1], vectors[:, :, 0], vectors[:, :, 1:])


def _pack(output: EncoderOutput) -> torch.Tensor:
    vectors = torch.cat([output.class_query.unsqueeze(2), output.image_keys], dim=2)  # B, heads, 1 + N, d
    vectors = vectors.transpose(1, 2).flatten(2)  # B, 1 + N, D
    return torch.cat([output.tokens, vectors.unsqueeze(1)], dim=1)  # B, L + 1, 1 + N, D


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
