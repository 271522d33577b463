"""The structured reference strings (SRS) that proofs stand on: pinned by hash, or refused.

Whoever knows the secret behind an SRS can prove anything. So only those of one public ceremony are
taken (see `srs_data/README.md`), by their sha256: the library that reads them checks nothing.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from verification.errors import UnavailableError


@dataclass(frozen=True, slots=True)
class PinnedSrs:
    """What one SRS must be.

    Attributes:
        sha256: of the file, 64 hex digits.
        size: of the file in bytes.
    """

    sha256: str
    size: int


PINNED: Final[Mapping[int, PinnedSrs]] = MappingProxyType(
    {
        10: PinnedSrs("48dd828746d6d779df4d2123889983565beb8024245d9036a65b52ac420a1bb8", 131_332),
        11: PinnedSrs("af49e1f169842e430ccd44ff707dacf3467aec34f8306a75bc92bf4a430883f4", 262_404),
        12: PinnedSrs("cb26878e6e6f36bf68374775e093093074d6fba94805312340d1c1fc85e23661", 524_548),
        13: PinnedSrs(
            "caf0b3869b48abe23d06988c52686ee216f1cf3b4d542b0b4014a72838ecf4ec", 1_048_836
        ),
        14: PinnedSrs(
            "8977c9ee24a20ea3332f6e3bf46361365f26bc5caa9a8fb70bc668d0ca32f928", 2_097_412
        ),
    }
)
"""By k: a circuit of 2^k rows. Of these 10..13 are shipped; a larger one comes as a blob."""

SHIPPED: Final = range(10, 14)
_SHIPPED_FOLDER: Final = Path(__file__).parent / "srs_data"


@dataclass(frozen=True, slots=True)
class SrsFolder:
    """The shipped files, and larger ones kept in a folder of one's own.

    Attributes:
        extra: where `add` keeps what is not shipped; None for the shipped ones alone.
    """

    extra: Path | None = None

    def __call__(self, k: int) -> Path:
        """The file for circuits of 2^k rows, its hash checked now.

        Raises:
            UnavailableError: not pinned, not here, or altered; says which and what to do.
        """
        pinned = _pinned(k)
        path = _SHIPPED_FOLDER if k in SHIPPED else self.extra
        if path is None:
            raise UnavailableError(f"the SRS for k = {k} is not shipped, and no folder has it")
        path = path / f"kzg{k}.srs"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UnavailableError(
                f"the SRS for k = {k} can't be read from {path}: {error.strerror}; it has "
                f"sha256 {pinned.sha256}"
            ) from error
        check_srs(k, data, where=str(path))
        return path

    def add(self, k: int, source: Path) -> Path:
        """Take a larger SRS into the folder, if it is the pinned one.

        Raises:
            UnavailableError: another file than the pinned one, or the disk refuses.
        """
        if self.extra is None:
            raise UnavailableError("there is no folder to keep an SRS in")
        pinned = _pinned(k)
        try:
            if source.stat().st_size != pinned.size:  # before reading what may be huge
                raise UnavailableError(
                    f"{source} has {source.stat().st_size} bytes, the SRS for k = {k} "
                    f"has {pinned.size}"
                )
            data = source.read_bytes()
            check_srs(k, data, where=str(source))
            self.extra.mkdir(parents=True, exist_ok=True)
            target = self.extra / f"kzg{k}.srs"
            descriptor, temporary = tempfile.mkstemp(dir=self.extra, prefix=".kzg")
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(temporary, target)
        except OSError as error:
            raise UnavailableError(f"the SRS for k = {k} can't be kept: {error}") from error
        return target


def check_srs(k: int, data: bytes, *, where: str) -> None:
    """Refuse every SRS but the pinned one.

    Raises:
        UnavailableError: naming both hashes.
    """
    pinned = _pinned(k)
    found = hashlib.sha256(data).hexdigest()
    if found != pinned.sha256:
        raise UnavailableError(
            f"the SRS {where} is not the ceremony's for k = {k}: sha256 {found}, "
            f"expected {pinned.sha256}"
        )


def _pinned(k: int) -> PinnedSrs:
    if k not in PINNED:
        raise UnavailableError(f"no SRS is pinned for k = {k}; there are k = {sorted(PINNED)}")
    return PINNED[k]
