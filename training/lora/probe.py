"""A probe batch: captioned latents that an adapter is measured on, as two files.

probe.safetensors      latents, float32 [N, C, H, W]
probe.json             their captions, and the seed of times and noise

They lie beside an adapter (rows held out from its training: made public when it is offered), or in
a folder of their own.  Reading trusts neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from training.config import SCHEMA, LatentShape
from training.errors import ConfigError, ProbeError, TensorFileError
from training.experts.batches import Batch
from training.files import write_folder
from training.jsonio import canonical_json, from_json, parse_json, to_json
from training.lora.layers import PROBE_FILE, PROBE_WEIGHTS_FILE
from training.lora.losses import even_draws
from training.tensors import TensorSpec, pack_tensors, read_tensors

PROBE_DRAWS: Final = 256
"""(row, time, noise) triples that a probe's loss is a mean of, unless said otherwise."""

MAX_PROBE_ROWS: Final = 64
"""One buyer's measure of a stranger's offer; adapters keep 32 of their own."""

MAX_CAPTION_BYTES: Final = 1024
"""Text encoders read 64 or 77 tokens."""

MAX_LATENT: Final = 65504.0
"""What half precision holds, in which latents are stored; usual ones are of order 1."""

MAX_SEED: Final = 2**63 - 1
_MAX_JSON_BYTES: Final = 512 * 1024
"""64 captions of 1 KiB, each byte escaped by six."""

_LATENTS: Final = "latents"


@dataclass(frozen=True, slots=True)
class _ProbeFacts:
    """`probe.json`."""

    schema: int
    captions: tuple[str, ...]
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Captioned latents to measure on, and the seed of all randomness.

    Args:
        latents: float32 [N, C, H, W], by the run's codec; N in 1..`MAX_PROBE_ROWS`.
        captions: N of them.
        seed: of times and noise.

    Raises:
        ProbeError: for what cannot be measured on.
    """

    latents: Tensor
    captions: tuple[str, ...]
    seed: int

    def __post_init__(self) -> None:
        _check_facts(self.captions, self.seed)
        if self.latents.ndim != 4 or len(self.latents) != len(self.captions):
            raise ProbeError(
                f"latents of shape {list(self.latents.shape)} for {len(self.captions)} captions"
            )
        largest = float(self.latents.abs().max())
        if not largest <= MAX_LATENT:  # NaN is not, either
            raise ProbeError(f"latents reach {largest:g}, expected within {MAX_LATENT:g}")

    @classmethod
    def of(cls, latents: Tensor, captions: Sequence[str], seed: int) -> "Probe":
        """A probe of one's own rows: captions that are too long are cut.

        Raises:
            ProbeError: no rows, or more than `MAX_PROBE_ROWS`.
        """
        return cls(latents.float(), tuple(map(_cut, captions)), seed)

    def __len__(self) -> int:
        return len(self.captions)

    def draws(self, count: int = PROBE_DRAWS) -> Batch:
        """What its loss is a mean of: the same on every machine, with an adapter or without."""
        return even_draws(self.latents, self.captions, count, self.seed)


def probe_files(probe: Probe) -> dict[str, bytes]:
    """The two files; the same probe gives the same bytes."""
    return {
        PROBE_WEIGHTS_FILE: pack_tensors({_LATENTS: probe.latents.float()}),
        PROBE_FILE: canonical_json(to_json(_ProbeFacts(SCHEMA, probe.captions, probe.seed))),
    }


def write_probe(folder: Path, probe: Probe) -> None:
    """Write a probe as a folder of its own, whole or not at all.

    Args:
        folder: must not exist; its parent must.
        probe: what to write.

    Raises:
        OSError: the disk refuses.
    """
    write_folder(folder, probe_files(probe))


def read_probe(folder: Path, latent: LatentShape) -> Probe:
    """A probe, checked in every part; it may come from a stranger.

    Args:
        folder: a probe's own, or that of an adapter that keeps one.
        latent: channels, height, width of the run's latents.

    Raises:
        ProbeError: a file is missing or malformed, or says what cannot be measured on.
    """
    facts = _read_facts(folder / PROBE_FILE)
    schema = {_LATENTS: TensorSpec("F32", (len(facts.captions), *latent))}
    try:
        latents = read_tensors(folder / PROBE_WEIGHTS_FILE, schema)[_LATENTS]
    except TensorFileError as error:
        raise ProbeError(f"probe: {error}") from error
    return Probe(latents, facts.captions, facts.seed)


def _read_facts(path: Path) -> _ProbeFacts:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_JSON_BYTES + 1)
    except OSError as error:
        raise ProbeError(f"{path.name} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_JSON_BYTES:
        raise ProbeError(f"{path.name} is longer than {_MAX_JSON_BYTES} bytes")
    try:
        facts = from_json(_ProbeFacts, parse_json(data, path.name), path.name)
    except ConfigError as error:
        raise ProbeError(str(error)) from error
    if facts.schema != SCHEMA:
        raise ProbeError(f"{path.name}: schema {facts.schema}, this program reads {SCHEMA}")
    _check_facts(facts.captions, facts.seed)
    return facts


def _check_facts(captions: tuple[str, ...], seed: int) -> None:
    if not 1 <= len(captions) <= MAX_PROBE_ROWS:
        raise ProbeError(f"a probe has 1 to {MAX_PROBE_ROWS} rows, this one {len(captions)}")
    if not 0 <= seed <= MAX_SEED:
        raise ProbeError(f"a probe's seed lies in 0..2^63 - 1, this one is {seed}")
    for number, caption in enumerate(captions):
        try:
            size = len(caption.encode())
        except UnicodeEncodeError as error:
            raise ProbeError(f"caption {number} of the probe is no text: {error}") from error
        if size > MAX_CAPTION_BYTES:
            raise ProbeError(
                f"caption {number} of the probe has {size} bytes, at most {MAX_CAPTION_BYTES}"
            )


def _cut(caption: str) -> str:
    return caption.encode(errors="replace")[:MAX_CAPTION_BYTES].decode(errors="ignore")
