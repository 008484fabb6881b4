"""Cache of the frozen encoder's tokens on disk: they never change, and encoding is most of the cost of training."""

import hashlib
import io
import json
import math
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fsvit_edge.learn.examples import FewShotData
from fsvit_edge.learn.views import LEAST_AREA, draw_view
from fsvit_edge.model.encoder import EncoderOutput
from fsvit_edge.model.network import FewShotNetwork, normalize
from fsvit_edge.model.objectness import STRIDE
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError
from fsvit_edge.runtime.messages import Progress
from fsvit_edge.runtime.preprocess import DESCRIPTION
from fsvit_edge.runtime.storage import atomic_write, user_cache

_BATCH = 8
_FORMAT = 1


def default_cache_folder() -> Path:
    """Return the folder for cached tokens in the user's cache folder."""
    return user_cache("tokens")


class _Store(NamedTuple):
    """A folder with one file per picture, named by the digest of the picture's file."""

    folder: Path
    shape: tuple[int, ...]  # of each file, float16; the first axis is the views
    compute: Callable[[torch.Tensor], npt.NDArray[np.float16]]  # from (views, 3, S, S) normalized pictures

    def file(self, digest: str) -> Path:
        return self.folder / f"{digest}.npy"


class TokenCache:
    """A folder with the encoder's outputs in float16, one file per picture, memory-mapped when read.

    A file contains (views, L + 1, 1 + N, D): the tokens of the L blocks, then the class token's query vector and the
    image tokens' key vectors, with the heads side by side. It is named by the digest of the picture's file, so copies
    share it, and a changed picture is encoded again. Each combination of weights, size and views has its own folder. If
    the network predicts objectness, a subfolder contains its logits (views, n, n), in the same way.

    `folder` is that of all caches. The encoder runs where its parameters are; the first view is the picture itself.
    """

    def __init__(self, network: FewShotNetwork, folder: Path, views: int = 1) -> None:
        self.network = network
        self.views = views
        encoder, size = network.encoder, network.config.image_size
        identity = {
            "format": _FORMAT,
            "backbone": network.config.backbone,
            "weights": _digest_of_weights(encoder),
            "image_size": size,
            "preprocessing": DESCRIPTION,
            "views": views,
            "least_area": LEAST_AREA,
        }
        text = json.dumps(identity, indent=2)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        if not (self.folder / "cache.json").exists():
            atomic_write(self.folder / "cache.json", text.encode())
        self.digest = lru_cache(maxsize=None)(_digest_of_file)
        shape = (views, encoder.num_layers + 1, 1 + encoder.grid**2, encoder.embed_dim)
        self._tokens = _Store(self.folder, shape, self._encode)
        self._objectness: _Store | None = None
        if network.objectness is not None:
            subfolder = self.folder / f"objectness-{_digest_of_weights(network.objectness)[:16]}"
            self._objectness = _Store(subfolder, (views, size // STRIDE, size // STRIDE), self._objectness_of)

    def fill(self, data: FewShotData, progress: Progress = lambda _: None) -> int:
        """Encode the pictures that are not cached yet, without opening a mask; return how many were encoded.

        Raises:
            FsvitEdgeError: The disk has too little free space.
        """
        wanted: dict[str, int] = {}
        for index, example in enumerate(data.examples):
            wanted.setdefault(self.digest(example.image), index)
        count = sum(not self._tokens.file(digest).exists() for digest in wanted)
        needed, free = 2 * math.prod(self._tokens.shape) * count, shutil.disk_usage(self.folder).free
        if needed > free:
            raise FsvitEdgeError(
                f"The tokens of {count} pictures need {needed / 1e9:.1f} GB in {self.folder}, where "
                f"{free / 1e9:.1f} GB are free; choose another folder with --cache, or fewer --views."
            )
        self._make(self._tokens, wanted, data, progress, f"encode pictures ({needed / 1e9:.2g} GB in all)")
        if self._objectness is not None:
            self._make(self._objectness, wanted, data, progress, "compute objectness")
        return count

    def read(self, image: Path, view: int = 0) -> EncoderOutput:
        """Return the encoder's output for a view of a picture: a batch of one, float32.

        A picture that is not in the cache, or whose file is damaged, is an ArtifactError, here and below.
        """
        return unpack(torch.from_numpy(self.read_packed(image, view)[None]), self.network)

    def read_packed(self, image: Path, view: int = 0) -> npt.NDArray[np.float16]:
        """Return (L + 1, 1 + N, D) float16 of a view as stored (see the class); `unpack` converts a batch of them."""
        return self._read(self._tokens, image, view)

    def read_objectness(self, image: Path, view: int = 0) -> npt.NDArray[np.float16]:
        """Return the objectness logits (n, n) of a view; (0, 0) if the network predicts none."""
        if self._objectness is None:
            return np.zeros((0, 0), np.float16)
        return self._read(self._objectness, image, view)

    def _read(self, store: _Store, image: Path, view: int) -> npt.NDArray[np.float16]:
        file = store.file(self.digest(image))
        try:
            stored = np.load(file, mmap_mode="r")
        except FileNotFoundError as error:
            raise ArtifactError(f"{file} is missing: {image} was not cached.") from error
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{file} is damaged ({error}); delete it and run again.") from error
        if stored.shape != store.shape or stored.dtype != np.float16:
            raise ArtifactError(
                f"{file} contains {stored.dtype} {stored.shape}, expected float16 {store.shape}; delete it and run "
                "again."
            )
        packed: npt.NDArray[np.float16] = np.array(stored[view])
        return packed

    def _make(self, store: _Store, wanted: dict[str, int], data: FewShotData, progress: Progress, title: str) -> None:
        """Compute and store what a store lacks of the wanted pictures (digest -> index of an example)."""
        missing = {digest: index for digest, index in wanted.items() if not store.file(digest).exists()}
        size = self.network.config.image_size
        device = next(self.network.encoder.parameters()).device
        for done, (digest, index) in enumerate(missing.items()):
            if done % max(1, len(missing) // 20) == 0:
                progress(f"{title}, {done} of {len(missing)}")
            rgb = data.read_image(index)
            views = np.stack([draw_view(digest, view).of_image(rgb, size) for view in range(self.views)])
            content = io.BytesIO()
            np.save(content, store.compute(normalize(torch.from_numpy(views).to(device))))
            atomic_write(store.file(digest), content.getvalue())

    @torch.inference_mode()
    def _encode(self, views: torch.Tensor) -> npt.NDArray[np.float16]:
        parts = [_pack(self.network.encoder(batch)).half().cpu() for batch in torch.split(views, _BATCH)]
        packed: npt.NDArray[np.float16] = torch.cat(parts).numpy()
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


def _digest_of_weights(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digest_of_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
