"""Captioned pictures from a folder: an imagefolder, with `metadata.jsonl` or captions by file name.

Bad files do not stop a run: each is skipped with its reason, and the count is reported.
"""

import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from training.errors import DataError

METADATA: Final = "metadata.jsonl"
FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""No other decoder is tried, whatever a file's name says: TIFF's prints to standard error, EPS's
starts a program."""

SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"})
MAX_PICTURES: Final = 1_000_000
MAX_PICTURE_BYTES: Final = 64 * 2**20
MAX_PIXELS: Final = 64 * 10**6
"""More pixels than this is a decompression bomb, or a scan nobody needs at 32 pixels."""

MAX_CAPTION_CHARS: Final = 512
_TRAILING_NUMBER: Final = re.compile(r"[\s\d()#]+$")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that did not become a picture, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Captioned pictures in memory.

    Args:
        images: uint8 [N, C, H, W].
        captions: one per picture.
        skipped: files left out, with reasons.
    """

    images: Tensor
    captions: tuple[str, ...]
    skipped: tuple[Skipped, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError("pictures must be uint8 [N, C, H, W]")
        if len(self.captions) != len(self.images):
            raise ValueError(f"{len(self.captions)} captions for {len(self.images)} pictures")

    def __len__(self) -> int:
        return len(self.captions)


def load_folder(folder: Path, image_size: int, image_channels: int) -> Pictures:
    """Read every picture below `folder`, cropped to a centred square and resized.

    With `metadata.jsonl` (lines of {"file_name", "text"}) exactly its pictures are used. Without
    it the caption is the file's name in words ("red_boat_03.png" -> "red boat") or, for a name
    with only a number, its folder's.

    Args:
        folder: the source; names that leave it are skipped.
        image_size: pixels a side.
        image_channels: 1 grey, 3 colour.

    Raises:
        DataError: no such folder, or not one usable picture in it; the message holds reasons.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder")
    images: list[Tensor] = []
    captions: list[str] = []
    skipped: list[Skipped] = []
    for name, found in _entries(folder):
        try:
            if isinstance(found, Skipped):
                raise _SkipError(found.reason)
            images.append(_picture(folder / name, image_size, image_channels))
            captions.append(found)
        except _SkipError as error:
            skipped.append(Skipped(name, str(error)))
    if not images:
        reasons = "; ".join(f"{item.name}: {item.reason}" for item in skipped[:3])
        raise DataError(f"{folder}: no usable picture ({len(skipped)} skipped) {reasons}".rstrip())
    return Pictures(torch.stack(images), tuple(captions), tuple(skipped))


class _SkipError(Exception):
    """This file is left out; the message is the reason."""


def _entries(folder: Path) -> Iterator[tuple[str, str | Skipped]]:
    """(relative name, caption or why not) in an order that does not depend on the file system."""
    metadata = folder / METADATA
    found = _from_metadata(metadata) if metadata.is_file() else _from_names(folder)
    for count, entry in enumerate(found):
        if count >= MAX_PICTURES:
            raise DataError(f"{folder}: more than {MAX_PICTURES} pictures")
        yield entry


def _from_metadata(path: Path) -> Iterator[tuple[str, str | Skipped]]:
    seen: set[str] = set()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            label = f"{METADATA} line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                yield label, Skipped(label, "not JSON")
                continue
            name = value.get("file_name") if isinstance(value, dict) else None
            text = value.get("text") if isinstance(value, dict) else None
            if not isinstance(name, str) or not name or "\0" in name:
                yield label, Skipped(label, "needs file_name")
            elif PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                yield label, Skipped(label, "file_name leaves the folder")
            elif name in seen:
                yield label, Skipped(label, f"{name} appears twice")
            else:
                seen.add(name)
                yield name, _caption(text, name)


def _caption(text: object, name: str) -> str | Skipped:
    words = " ".join(text.split()) if isinstance(text, str) else ""
    if not words:
        return Skipped(name, "no caption")
    if len(words) > MAX_CAPTION_CHARS:
        return Skipped(name, f"caption of {len(words)} characters, at most {MAX_CAPTION_CHARS}")
    return words


def _from_names(folder: Path) -> Iterator[tuple[str, str | Skipped]]:
    paths = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    for path in sorted(paths, key=lambda p: p.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        parent = path.parent.name if path.parent != folder else ""
        yield name, _caption(_words(path.stem) or _words(parent), name)


def _words(stem: str) -> str:
    return _TRAILING_NUMBER.sub("", stem.replace("_", " ").replace("-", " ")).strip()


def _picture(path: Path, size: int, channels: int) -> Tensor:
    """uint8 [C, size, size], or the reason why not."""
    try:
        if path.stat().st_size > MAX_PICTURE_BYTES:
            raise _SkipError(f"over {MAX_PICTURE_BYTES} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's hints on odd metadata; size is checked here
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _SkipError(f"{image.width}x{image.height} pixels, at most {MAX_PIXELS}")
                return _to_tensor(image, size, channels)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
        raise _SkipError(f"unreadable picture: {type(error).__name__}") from error
    except Image.DecompressionBombError as error:
        raise _SkipError("too many pixels") from error


def _to_tensor(image: Image.Image, size: int, channels: int) -> Tensor:
    """Transparent parts become white, as on paper."""
    upright = ImageOps.exif_transpose(image).convert("RGBA")
    paper = Image.new("RGBA", upright.size, (255, 255, 255, 255))
    flat = Image.alpha_composite(paper, upright).convert("L" if channels == 1 else "RGB")
    fitted = ImageOps.fit(flat, (size, size), Image.Resampling.BICUBIC)
    data = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    return data.reshape(size, size, channels).permute(2, 0, 1).contiguous()
