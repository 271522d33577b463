"""The offer proofs of an adapter, one per module: a file beside the offer, fetched as blobs.

Each shows that the owner knows A and B behind the commitment, and estimates how large A B is. Knows
sizes and names; whether a proof is true is for a verifier.
"""

from dataclasses import dataclass
from typing import Final

from p2p.codec import pack, unpack
from p2p.errors import LimitError, PeerError
from p2p.ids import BlobId
from p2p.limits import (
    MAX_LORA_MODULES,
    MAX_MODULE_NAME,
    MAX_OFFER_PROOFS_SIZE,
    MAX_PROOF_SIZE,
    OFFER_PROOF_SCALARS,
)
from p2p.lora_matrices import VALUE_SIZE
from p2p.lora_records import LoraOffer
from p2p.record_checks import check_count, check_filled, check_named, check_size

PROOFS_FILE: Final = "proofs.msgpack"
"""The one file of the `FileSet` that `OfferRef.proofs` names."""


@dataclass(frozen=True, slots=True)
class ModuleProof:
    """One module's values for the signs its offer fixes, and the proof of them."""

    module: str
    values: bytes
    """[4, 4], see `p2p.lora_matrices.pack_values`."""
    proof: bytes

    def __post_init__(self) -> None:
        """Check name and sizes.

        Raises:
            DecodeError: if the name or the proof is empty, or there are not 16 values.
            LimitError: if the name or the proof is too long.
        """
        check_named("ModuleProof.module", self.module, MAX_MODULE_NAME)
        check_size("ModuleProof.values", self.values, OFFER_PROOF_SCALARS * VALUE_SIZE)
        check_filled("ModuleProof.proof", self.proof, MAX_PROOF_SIZE)


@dataclass(frozen=True, slots=True)
class OfferProofs:
    """All proofs of one offer, in the order of its modules."""

    offer: BlobId
    modules: tuple[ModuleProof, ...]

    def __post_init__(self) -> None:
        """Check the count.

        Raises:
            LimitError: if there are more than an offer can have modules.
        """
        check_count("OfferProofs.modules", self.modules, MAX_LORA_MODULES)


def pack_offer_proofs(proofs: OfferProofs) -> bytes:
    """The file's bytes.

    Raises:
        EncodeError: if a field is not of its type.
        LimitError: if they are more than `MAX_OFFER_PROOFS_SIZE`.
    """
    data = pack(proofs)
    if len(data) > MAX_OFFER_PROOFS_SIZE:
        raise LimitError(f"offer proofs: {len(data)} bytes, the limit is {MAX_OFFER_PROOFS_SIZE}")
    return data


def open_offer_proofs(data: bytes, offer: LoraOffer, *, offer_id: BlobId) -> OfferProofs:
    """Read the file of an offer's proofs.

    Args:
        data: the file's bytes.
        offer: whose proofs they should be.
        offer_id: CID of the sealed offer.

    Raises:
        LimitError: if it, or something in it, is over a limit.
        DecodeError: if it is no such file.
        PeerError: if it belongs to another offer, or not to exactly its modules.
    """
    proofs = unpack(OfferProofs, data, max_size=MAX_OFFER_PROOFS_SIZE)
    if proofs.offer != offer_id:
        raise PeerError(f"OfferProofs.offer: is {proofs.offer}, expected {offer_id}")
    if [proof.module for proof in proofs.modules] != [module.name for module in offer.modules]:
        raise PeerError("OfferProofs.modules: are not those of the offer, in its order")
    return proofs
