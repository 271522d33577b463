"""Records of LoRA offers: what is offered and claimed, asked and answered, agreed and delivered.

All but `OfferAdvert` last as long as their blob. An offer's id is the CID of its sealed bytes, so
whoever names one names every commitment in it. Part of `p2p.records`; knows nothing of proofs.
"""

from dataclasses import dataclass
from typing import Final

from p2p.errors import DecodeError
from p2p.ids import BlobId, ClusterId, PeerId, RunId
from p2p.limits import (
    COMMITMENT_POINT_SIZE,
    MAX_CLAIM_ROWS,
    MAX_COMMITMENT_COLUMNS,
    MAX_DELIVERY_SIZE,
    MAX_DELTA_ROWS,
    MAX_EPOCH,
    MAX_LABEL,
    MAX_LICENCE_LENGTH,
    MAX_LORA_MODULES,
    MAX_LORA_RANK,
    MAX_LORA_SCALE,
    MAX_LORA_WIDTH,
    MAX_MODULE_NAME,
    MAX_OFFER_LIFETIME_S,
    MAX_OFFERS_PER_ADVERT,
    MAX_PROOFS_PER_COMMITMENT,
    MAX_QUESTIONS,
    MAX_SCALARS_PER_MODULE,
    MAX_SEED,
    MAX_TERMS_LENGTH,
    OFFER_PROOF_SCALARS,
)
from p2p.record_checks import (
    check_cluster,
    check_count,
    check_digest,
    check_finite,
    check_labels,
    check_named,
    check_size,
    check_texts,
    check_within,
)

LORA_FORMAT: Final = "int16@2^12"
"""Weights as 16-bit integers, each the weight times 2^12."""
BLIND: Final = "blind"
DELTA: Final = "delta"
PROBE_MODES: Final = (BLIND, DELTA)
KEY_SIZE: Final = 32
"""Bytes of an X25519 public key."""
NONCE_SIZE: Final = 16


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One layer an adapter changes: A [inputs, rank] and B [rank, outputs], committed to."""

    name: str
    """The layer's name in the base."""
    inputs: int
    outputs: int
    circuit: str
    """Id of the circuit its proofs belong to: 64 hexadecimal digits."""
    commitment: bytes
    """Points that bind A, B and their salt: 64 bytes a column."""

    def __post_init__(self) -> None:
        """Check name, sizes and lengths; whether the points lie on the curve is for a verifier.

        Raises:
            DecodeError: if a field is out of range.
            LimitError: if the name is too long.
        """
        check_named("LoraModule.name", self.name, MAX_MODULE_NAME)
        check_within("LoraModule.inputs", self.inputs, 1, MAX_LORA_WIDTH)
        check_within("LoraModule.outputs", self.outputs, 1, MAX_LORA_WIDTH)
        check_digest("LoraModule.circuit", self.circuit)
        columns, rest = divmod(len(self.commitment), COMMITMENT_POINT_SIZE)
        if rest or not 1 <= columns <= MAX_COMMITMENT_COLUMNS:
            raise DecodeError(
                f"LoraModule.commitment: got {len(self.commitment)} bytes, expected 1 to "
                f"{MAX_COMMITMENT_COLUMNS} points of {COMMITMENT_POINT_SIZE}"
            )


@dataclass(frozen=True, slots=True)
class LoraClaims:
    """What an adapter is said to do: to be measured by whoever has it, until then a claim."""

    probe: BlobId
    """Root of the `FileSet` of the public probe batch: rows held out of training."""
    rows: int
    seed: int
    """Of the noise and times the losses were measured with."""
    base_loss: float
    """Mean loss of the base on the probe batch."""
    adapted_loss: float
    """The same with the adapter on."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            DecodeError: if a number is out of range.
        """
        check_within("LoraClaims.rows", self.rows, 1, MAX_CLAIM_ROWS)
        check_within("LoraClaims.seed", self.seed, 0, MAX_SEED)
        check_finite("LoraClaims.base_loss", self.base_loss)
        check_finite("LoraClaims.adapted_loss", self.adapted_loss)


@dataclass(frozen=True, slots=True)
class LeakPolicy:
    """How much of the adapter the owner is willing to let out by answers, whoever asks."""

    scalars: int
    """Bilinear scalars of each module, what the offer proof spends included."""
    proofs: int
    """Proofs of each commitment, the offer proof included."""
    delta_rows: int
    """Rows answered in delta mode; 0 if it is not offered."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            DecodeError: if a budget is out of range.
        """
        check_within(
            "LeakPolicy.scalars", self.scalars, OFFER_PROOF_SCALARS, MAX_SCALARS_PER_MODULE
        )
        check_within("LeakPolicy.proofs", self.proofs, 1, MAX_PROOFS_PER_COMMITMENT)
        check_within("LeakPolicy.delta_rows", self.delta_rows, 0, MAX_DELTA_ROWS)


@dataclass(frozen=True, slots=True)
class LoraOffer:
    """An adapter that can be had, described without showing it."""

    run: RunId
    cluster: ClusterId
    base: BlobId
    """The `CheckpointManifest` of the expert it was trained on."""
    name: str
    form: str
    """`LORA_FORMAT`."""
    rank: int
    alpha: float
    """The change of a layer is `alpha / rank` times (A B)^T."""
    targets: str
    """Which layers, by the name training gives the choice."""
    modules: tuple[LoraModule, ...]
    claims: LoraClaims
    leaks: LeakPolicy
    terms: str
    licence: str
    seq: int
    """Larger in each later offer of the same name by the same owner."""
    created_at: float
    expires_at: float

    def __post_init__(self) -> None:
        """Check every field that needs no context.

        Raises:
            DecodeError: if a field is out of range, or two modules have one name.
            LimitError: if there are too many modules, or a text is too long.
        """
        check_cluster("LoraOffer.cluster", self.cluster)
        check_named("LoraOffer.name", self.name, MAX_LABEL)
        check_labels(self.targets)
        check_texts("LoraOffer.terms", (self.terms,), MAX_TERMS_LENGTH)
        check_texts("LoraOffer.licence", (self.licence,), MAX_LICENCE_LENGTH)
        if self.form != LORA_FORMAT:
            raise DecodeError(f"LoraOffer.form: got {self.form[:40]!r}, expected {LORA_FORMAT!r}")
        check_within("LoraOffer.rank", self.rank, 1, MAX_LORA_RANK)
        if not 0 < self.alpha <= MAX_LORA_SCALE * self.rank:
            raise DecodeError(
                f"LoraOffer.alpha: got {self.alpha}, expected above 0 and at most "
                f"{MAX_LORA_SCALE:g} times the rank {self.rank}"
            )
        check_within("LoraOffer.seq", self.seq, 0, MAX_EPOCH)
        check_finite("LoraOffer.created_at", self.created_at)
        if not self.created_at < self.expires_at <= self.created_at + MAX_OFFER_LIFETIME_S:
            raise DecodeError(
                f"LoraOffer.expires_at: {self.expires_at - self.created_at:.0f} s after "
                f"created_at, expected above 0 and at most {MAX_OFFER_LIFETIME_S:.0f}"
            )
        self._check_modules()

    def _check_modules(self) -> None:
        check_count("LoraOffer.modules", self.modules, MAX_LORA_MODULES)
        if not self.modules or len({module.name for module in self.modules}) < len(self.modules):
            raise DecodeError("LoraOffer.modules: expected one or more, each of its own name")
        for module in self.modules:
            if self.rank > min(module.inputs, module.outputs):
                raise DecodeError(
                    f"LoraOffer.rank: {self.rank} exceeds {module.name!r} of {module.inputs} "
                    f"inputs and {module.outputs} outputs"
                )


@dataclass(frozen=True, slots=True)
class OfferRef:
    """Where to find one offer and its proofs."""

    offer: BlobId
    """The sealed `LoraOffer`."""
    base: BlobId
    """The checkpoint it is for, so that an offer for another need not be fetched."""
    proofs: BlobId
    """Root of the `FileSet` that holds its offer proofs."""


@dataclass(frozen=True, slots=True)
class OfferAdvert:
    """The DHT record that lists what one owner offers for one cluster."""

    run: RunId
    cluster: ClusterId
    offers: tuple[OfferRef, ...]
    issued_at: float

    def __post_init__(self) -> None:
        """Check the count, and that no offer is listed twice.

        Raises:
            DecodeError: if a field is out of range, there is no offer, or one stands there twice.
            LimitError: if there are too many.
        """
        check_cluster("OfferAdvert.cluster", self.cluster)
        check_count("OfferAdvert.offers", self.offers, MAX_OFFERS_PER_ADVERT)
        if not self.offers or len({ref.offer for ref in self.offers}) < len(self.offers):
            raise DecodeError("OfferAdvert.offers: expected one or more, each of them once")
        check_finite("OfferAdvert.issued_at", self.issued_at)


@dataclass(frozen=True, slots=True)
class Agreement:
    """To deliver one offered adapter to one buyer; buyer and seller each seal the same."""

    run: RunId
    offer: BlobId
    buyer: PeerId
    seller: PeerId
    buyer_key: bytes
    """The buyer's X25519 public key for this one delivery."""
    terms: str
    """The offer's terms, word for word."""
    nonce: bytes
    agreed_at: float

    def __post_init__(self) -> None:
        """Check lengths and that two peers agree.

        Raises:
            DecodeError: if a field is not of its form, or buyer and seller are one.
            LimitError: if the terms are too long.
        """
        if self.buyer == self.seller:
            raise DecodeError("Agreement.buyer: is the seller")
        check_size("Agreement.buyer_key", self.buyer_key, KEY_SIZE)
        check_texts("Agreement.terms", (self.terms,), MAX_TERMS_LENGTH)
        check_size("Agreement.nonce", self.nonce, NONCE_SIZE)
        check_finite("Agreement.agreed_at", self.agreed_at)


@dataclass(frozen=True, slots=True)
class Delivery:
    """The seller's word that a ciphertext is the adapter of an agreement."""

    run: RunId
    offer: BlobId
    agreement: BlobId
    """CID of the seller's sealed `Agreement`."""
    seller_key: bytes
    """The seller's X25519 public key for this one delivery."""
    size: int
    """Bytes of the ciphertext."""
    ciphertext: str
    """sha2-256 of all of it: 64 hexadecimal digits."""
    delivered_at: float

    def __post_init__(self) -> None:
        """Check lengths and ranges.

        Raises:
            DecodeError: if a field is not of its form or out of range.
        """
        check_size("Delivery.seller_key", self.seller_key, KEY_SIZE)
        check_within("Delivery.size", self.size, 1, MAX_DELIVERY_SIZE)
        check_digest("Delivery.ciphertext", self.ciphertext)
        check_finite("Delivery.delivered_at", self.delivered_at)


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """A user's signed word for the questions it asks of an adapter."""

    run: RunId
    offer: BlobId
    nonce: bytes
    mode: str
    """One of `PROBE_MODES`."""
    questions: str
    """`questions_digest` of the question frames that follow."""
    count: int
    """How many they are."""
    asked_at: float

    def __post_init__(self) -> None:
        """Check lengths and ranges.

        Raises:
            DecodeError: if a field is not of its form or out of range.
        """
        check_size("ProbeRequest.nonce", self.nonce, NONCE_SIZE)
        if self.mode not in PROBE_MODES:
            raise DecodeError(f"ProbeRequest.mode: got {self.mode[:40]!r}, expected {PROBE_MODES}")
        check_digest("ProbeRequest.questions", self.questions)
        check_within("ProbeRequest.count", self.count, 1, MAX_QUESTIONS)
        check_finite("ProbeRequest.asked_at", self.asked_at)


@dataclass(frozen=True, slots=True)
class ProbeReceipt:
    """The owner's signed word for the answers it gave, and for what is left to ask."""

    run: RunId
    offer: BlobId
    request: BlobId
    """CID of the sealed `ProbeRequest`."""
    answers: str
    """`answers_digest` of the answer frames sent."""
    scalars_left: int
    """Of the module that has the fewest left."""
    rows_left: int
    issued_at: float

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            DecodeError: if a field is not of its form or out of range.
        """
        check_digest("ProbeReceipt.answers", self.answers)
        check_within("ProbeReceipt.scalars_left", self.scalars_left, 0, MAX_SCALARS_PER_MODULE)
        check_within("ProbeReceipt.rows_left", self.rows_left, 0, MAX_DELTA_ROWS)
        check_finite("ProbeReceipt.issued_at", self.issued_at)
