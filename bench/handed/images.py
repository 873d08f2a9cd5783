"""A folder of images by class, as torchvision's ImageFolder lays it out: for evaluation alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.base.files import atomic, default_cache, locked
from bench.base.places import placed
from bench.base.types import UserError
from bench.handed.inputs import check_inputs
from bench.plugins.contracts import DataSettings, DataSource
from bench.plugins.data import Dataset, assemble


@dataclass(frozen=True)
class ImageFolder(DataSource):
    """A folder of images by class (``path``): ``CLASS/anything.jpg``, classes in sorted order.

    ``resize``: the shorter side in pixels, by bilinear interpolation, None: as they are; then
    ``crop``: a square of so many pixels from the middle, None: the whole. torchvision's weights
    are mostly for ``resize = 256``, ``crop = 224``. ``gray``: one channel, of brightness, in place
    of red, green and blue. Decoded once, as bytes, into a file of the
    cache that every worker maps.
    """

    path: str
    resize: int | None = None
    crop: int | None = None
    gray: bool = False

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be a number of pixels, got {value!r}")

    def load(self, settings: DataSettings) -> Dataset:
        """Read the folder; raises UserError that names what is missing or unlike the rest."""
        listed = self._listed()
        x = self._images([Path(path) for path, _ in listed], settings)
        y = np.array([label for _, label in listed])
        found = check_inputs(x, y, ("its images", "its classes"), self.path)
        name = Path(self.path).resolve().name
        return assemble(name, None, (found.x, found.y), notes=found.notes)

    def _listed(self) -> list[tuple[str, int]]:
        from torchvision.datasets import ImageFolder as Folder

        try:
            return list(Folder(placed(self.path)).samples)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(
                f"{self.path}: a folder with a folder of images for each class is expected, "
                f"as {self.path.rstrip('/')}/cat/1.png: {error}"
            ) from error

    def _images(self, paths: list[Path], settings: DataSettings) -> np.ndarray:
        """Return (n, channels, height, width) uint8, mapped from the cache."""
        mode = " gray" if self.gray else ""
        name = hashlib.sha256(f"{self.resize} {self.crop}{mode}".encode())
        for path in paths:
            name.update(hashlib.sha256(path.read_bytes()).digest())
        folder = (settings.cache_dir or default_cache()) / "images"
        stored = folder / f"{name.hexdigest()[:32]}.npy"
        with locked(stored.with_name(f"{stored.name}.lock")):
            if not stored.exists():
                self._decode(paths, stored)
        mapped: np.ndarray = np.load(stored, mmap_mode="r")
        return mapped

    def _decode(self, paths: list[Path], stored: Path) -> None:
        images = (self._decoded(path) for path in paths)
        first = next(images)
        shape = (len(paths), *first.shape)
        with atomic(stored) as torn:
            array = np.lib.format.open_memmap(torn, "w+", np.uint8, shape)
            for row, (path, image) in enumerate(zip(paths, [first, *images], strict=True)):
                if image.shape != first.shape:
                    raise UserError(
                        f"{path}: is {image.shape[2]} × {image.shape[1]} pixels and the first "
                        f"image {first.shape[2]} × {first.shape[1]}: "
                        "give resize and crop, as in resize = 256, crop = 224 "
                        "(--resize 256 --crop 224)"
                    )
                array[row] = image
            array.flush()

    def _decoded(self, path: Path) -> np.ndarray:
        from PIL import Image
        from torchvision.transforms import functional as transforms

        try:
            image: Any = Image.open(path).convert("L" if self.gray else "RGB")
        except OSError as error:
            raise UserError(f"{path}: cannot be read as an image: {error}") from error
        if self.resize is not None:
            image = transforms.resize(image, [self.resize])
        if self.crop is not None:
            image = transforms.center_crop(image, [self.crop])
        array = np.asarray(image, np.uint8)
        return array[None] if self.gray else array.transpose(2, 0, 1)
