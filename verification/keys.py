"""Keys of circuits: derived here, once per shape, kept in a folder, checked against what is pinned.

A verification key from somebody else could be that of another circuit, under which anything
verifies. So it is always derived from our own ONNX bytes and the ceremony's SRS; the key that is
kept is hashed, and its settings compared, each time they are used.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from verification import native
from verification.circuit import Circuit, Pin, known, onnx_bytes
from verification.errors import UnavailableError
from verification.settings import check_settings
from verification.srs import SrsFolder

_SETTINGS: Final = "settings.json"
_VERIFYING: Final = "vk.key"
_PROVING: Final = "pk.key"
_WORK: Final = ".work-"


@dataclass(frozen=True, slots=True)
class Keys:
    """The files of one circuit.

    Attributes:
        pin: what is known of the circuit.
        settings: ezkl's.
        vk: verification key.
        pk: proving key; there only if it was asked for.
        srs: of the circuit's size.
    """

    pin: Pin
    settings: Path
    vk: Path
    pk: Path
    srs: Path

    @property
    def verifying(self) -> tuple[Path, Path, Path]:
        """What `native.verify` takes."""
        return self.settings, self.vk, self.srs


@dataclass(frozen=True, slots=True)
class KeyStore:
    """Derived keys in a folder; several processes may use one.

    Attributes:
        folder: made when it is needed.
        srs: where reference strings come from.
    """

    folder: Path
    srs: SrsFolder = field(default_factory=SrsFolder)

    def verifying(self, circuit: Circuit) -> Keys:
        """Keys to check proofs with, derived if they are not here (seconds).

        Raises:
            StatementError: a circuit that is not known.
            UnavailableError: ezkl, the SRS or the disk is lacking, or ezkl makes another key.
        """
        return self._keys(circuit, is_proving=False)

    def proving(self, circuit: Circuit) -> Keys:
        """Keys to make proofs with; as `verifying`, and tens of megabytes on disk."""
        return self._keys(circuit, is_proving=True)

    def forget_proving(self, circuit: Circuit) -> None:
        """Drop a proving key that does not work, so that the next proof derives another."""
        self._places(circuit, known(circuit.shape)).pk.unlink(missing_ok=True)

    def _keys(self, circuit: Circuit, *, is_proving: bool) -> Keys:
        keys = self._places(circuit, known(circuit.shape))
        try:
            if not _is_whole(circuit, keys, is_proving=is_proving):
                self._derive(circuit, keys, is_proving=is_proving)
                _check(circuit, keys)
        except OSError as error:
            raise UnavailableError(f"keys can't be kept in {self.folder}: {error}") from error
        return keys

    def _places(self, circuit: Circuit, pin: Pin) -> Keys:
        folder = self.folder / pin.circuit
        return Keys(
            pin=pin,
            settings=folder / _SETTINGS,
            vk=folder / _VERIFYING,
            pk=folder / _PROVING,
            srs=self.srs(circuit.logrows),
        )

    def _derive(self, circuit: Circuit, keys: Keys, *, is_proving: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with private_folder(self.folder) as made:
            derive(circuit, keys.srs, made)
            target = keys.vk.parent
            target.mkdir(exist_ok=True, mode=0o700)
            for name in (_SETTINGS, _VERIFYING, *((_PROVING,) if is_proving else ())):
                os.replace(made / name, target / name)


def derive(circuit: Circuit, srs: Path, folder: Path) -> None:
    """Make settings and both keys of a circuit in a folder, whatever is pinned.

    Raises:
        UnavailableError: ezkl is lacking, or fails on our own circuit.
    """
    model, compiled = folder / "model.onnx", folder / "model.compiled"
    write_model(model, circuit)
    try:
        native.settings_and_circuit(model, circuit.logrows, folder / _SETTINGS, compiled)
        native.set_up(compiled, srs, folder / _VERIFYING, folder / _PROVING)
    except native.NativeError as error:
        raise UnavailableError(f"circuit {circuit.shape} can't be set up: {error}") from error


def write_model(
    file: Path,
    circuit: Circuit,
    a: list[list[int]] | None = None,
    b: list[list[int]] | None = None,
) -> None:
    """Write `onnx_bytes` to a file.

    Raises:
        UnavailableError: onnx is lacking.
    """
    try:
        file.write_bytes(onnx_bytes(circuit, a, b))
    except ImportError as error:
        raise UnavailableError(
            f"circuits need onnx, which can't be loaded ({error}): pip install 'paris-node[zk]'"
        ) from error


@contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """A folder of mode 0700 that is gone afterwards: by the next call, if its process was killed.

    What a killed process leaves are weights, or a proving key of a hundred megabytes. Whoever works
    in such a folder holds a lock on it, which ends with the process.
    """
    with _locked(parent):  # nobody sweeps between making a folder and locking it
        _sweep(parent)
        path = Path(tempfile.mkdtemp(prefix=_WORK, dir=parent))
        held = os.open(path, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sweep(parent: Path) -> None:
    """Remove the work folders of processes that are gone."""
    for path in parent.glob(f"{_WORK}*"):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # its owner has just done so
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:  # somebody works there
            pass
        finally:
            os.close(descriptor)


def _is_whole(circuit: Circuit, keys: Keys, *, is_proving: bool) -> bool:
    if not keys.vk.exists() or (is_proving and not keys.pk.exists()):
        return False
    try:
        _check(circuit, keys)
    except UnavailableError:
        return False
    return True


def _check(circuit: Circuit, keys: Keys) -> None:
    with keys.vk.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != keys.pin.vk_sha256:
        raise UnavailableError(
            f"the key of circuit {circuit.shape} has sha256 {found}, expected "
            f"{keys.pin.vk_sha256}: is this ezkl as it was released?"
        )
    check_settings(keys.settings, circuit)
