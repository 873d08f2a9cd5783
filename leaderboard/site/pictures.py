"""Inputs of a run as pictures that stand in the page: bytes to PNG, changes in two colours."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from bench.base.rows import ExampleRow, SourcesRow
from bench.base.types import ThreatModel
from leaderboard.figures.mosaic import DOWN, UP
from leaderboard.figures.svg import bars
from leaderboard.tables.numbers import number

Pixels = npt.NDArray[np.uint8]

FAINTEST = 0.3
"""How strongly the smallest change is drawn, of 1."""


@dataclass(frozen=True)
class Picture:
    """One example: ``images`` are an address and its words each; ``drawn`` where it is no image."""

    title: str
    images: Sequence[tuple[str, str]]
    drawn: Markup
    missing: str


def pictures(row: SourcesRow) -> list[Picture]:
    """Return the examples of a row, in its order."""
    return [_picture(row, example) for example in row["examples"]]


def _picture(row: SourcesRow, example: ExampleRow) -> Picture:
    threat = ThreatModel(**row["threat"])
    length = number(example["distance"])
    if threat.norm == "l0":
        total = math.prod(row["shape"][1:] if threat.unit == "pixels" else row["shape"])
        length = f"{round(example['distance'] * total)} {threat.unit}"
    title = (
        f"{example['why']}: sample {example['sample']}, class {example['label']}, answered "
        f"{example['answer']} after {example['attack']}, changed by {length}"
    )
    coded = (example["clean"], example["adversarial"], example["change"])
    if any(code is None for code in coded):
        return Picture(title, (), Markup(""), "too large to be kept with the run's rows")
    clean, adversarial, change = (base64.b64decode(code or "") for code in coded)
    if len(clean) != math.prod(row["shape"]):
        return Picture(title, (), Markup(""), "its bytes do not fit the shape of an input")
    shape = _image_shape(row["shape"])
    if shape is None:
        before, after = ([value / 255 for value in values] for values in (clean, adversarial))
        return Picture(title, (), bars(before, after, title), "")
    shown = [_pixels(values, shape) for values in (clean, adversarial)]
    signed = np.frombuffer(change, np.int8).reshape(shape)
    return Picture(
        title,
        [
            (_address(shown[0]), "clean"),
            (_address(shown[1]), "adversarial"),
            (_address(_changed(signed)), "change"),
        ],
        Markup(""),
        "",
    )


def _image_shape(shape: Sequence[int]) -> tuple[int, ...] | None:
    """Return the shape as (channels, height, width), None where an input is no image."""
    if len(shape) == 2:
        return (1, *shape)
    return tuple(shape) if len(shape) == 3 and shape[0] in (1, 3) else None


def _pixels(values: bytes, shape: tuple[int, ...]) -> Pixels:
    return np.frombuffer(values, np.uint8).reshape(shape).transpose(1, 2, 0)


def _changed(change: npt.NDArray[np.int8]) -> Pixels:
    """Return white where nothing changed, else the colour of up or down by how much."""
    total = change.astype(float).sum(axis=0)
    size = np.abs(change.astype(float)).max(axis=0)
    strength = np.where(size > 0, FAINTEST + (1 - FAINTEST) * size / 127, 0.0)[..., None]
    colour = np.where((total >= 0)[..., None], np.array(UP), np.array(DOWN))
    shown: Pixels = np.rint(255 * (1 - strength * (1 - colour))).astype(np.uint8)
    return shown


def _address(pixels: Pixels) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")


def png(pixels: Pixels) -> bytes:
    """Return (height, width, 1 or 3) as a PNG file, stored and not deflated.

    Compression differs between versions of zlib, and a page is made again byte for byte; these
    pictures are some hundred bytes anyway.
    """
    height, width, channels = pixels.shape
    raw = b"".join(b"\0" + pixels[line].tobytes() for line in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", _stored(raw)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def _stored(raw: bytes) -> bytes:
    """Return ``raw`` as a zlib stream of stored blocks (RFC 1950, RFC 1951 section 3.2.4)."""
    blocks = [raw[start : start + 65535] for start in range(0, len(raw), 65535)] or [b""]
    body = b"".join(
        struct.pack("<BHH", place == len(blocks) - 1, len(block), len(block) ^ 0xFFFF) + block
        for place, block in enumerate(blocks)
    )
    return b"\x78\x01" + body + struct.pack(">I", zlib.adler32(raw))
