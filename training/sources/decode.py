"""A picture's bytes to pixels, and a caption's text to one line, within bounds.

Both come from strangers: the length is checked before decoding, the pixels before they are
unpacked, and no decoder is tried but those for `FORMATS`.  Knows nothing about where they lie.
"""

import io
import re
import struct
import warnings
from typing import Final

import torch
from PIL import Image, ImageOps
from torch import Tensor

from training.errors import UnusableError

FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""No other decoder is tried, whatever a file's name says: TIFF's prints to standard error, EPS's
starts a program."""

MAX_PICTURE_BYTES: Final = 64 * 2**20
MAX_PIXELS: Final = 64 * 10**6
"""More pixels than this is a decompression bomb, or a scan nobody needs at 32 pixels."""

MAX_CAPTION_CHARS: Final = 512
_OPAQUE: Final = ("L", "RGB")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def decode_picture(content: bytes, size: int, channels: int) -> Tensor:
    """Decode one picture, crop it to a centred square and resize it.

    Args:
        content: a whole file of one of `FORMATS`; of an animation the first picture is taken.
        size: pixels a side.
        channels: 1 grey, 3 colour.

    Returns:
        uint8 [channels, size, size]; transparent parts are white, as on paper.

    Raises:
        UnusableError: too large, or not a picture that can be decoded.
    """
    if len(content) > MAX_PICTURE_BYTES:
        raise UnusableError("picture too large", f"over {MAX_PICTURE_BYTES} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's hints on odd metadata; size is checked here
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    found = f"{image.width}x{image.height} pixels, at most {MAX_PIXELS}"
                    raise UnusableError("too many pixels", found)
                return _to_tensor(image, size, channels)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        raise UnusableError("unreadable picture", type(error).__name__) from error
    except Image.DecompressionBombError as error:
        raise UnusableError("too many pixels") from error


def clean_caption(text: object) -> str:
    """A caption as it is stored: one line, single blanks.

    Args:
        text: as found; anything but a string counts as none.

    Raises:
        UnusableError: none, too long, or not text.
    """
    words = " ".join(_CONTROL.sub(" ", text).split()) if isinstance(text, str) else ""
    if not words:
        raise UnusableError("no caption")
    if len(words) > MAX_CAPTION_CHARS:
        raise UnusableError(
            "caption too long", f"{len(words)} characters, at most {MAX_CAPTION_CHARS}"
        )
    try:
        words.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair: JSON may hold one
        raise UnusableError("caption is not text") from error
    return words


def printable(name: str, limit: int = 120) -> str:
    """A name from outside as it may be shown: no control characters, not too long."""
    shown = "".join(c if c.isprintable() else "?" for c in name[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _to_tensor(image: Image.Image, size: int, channels: int) -> Tensor:
    upright = ImageOps.exif_transpose(image)
    flat = upright
    if upright.mode not in _OPAQUE or "transparency" in upright.info:
        seen = upright.convert("RGBA")
        paper = Image.new("RGBA", seen.size, (255, 255, 255, 255))
        flat = Image.alpha_composite(paper, seen)
    flat = flat.convert("L" if channels == 1 else "RGB")
    fitted = ImageOps.fit(flat, (size, size), Image.Resampling.BICUBIC)
    data = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    return data.reshape(size, size, channels).permute(2, 0, 1).contiguous()
