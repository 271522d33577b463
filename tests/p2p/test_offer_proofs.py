from dataclasses import replace

import msgpack
import pytest

from p2p import offer_proofs as module
from p2p.errors import DecodeError, LimitError, PeerError
from p2p.limits import MAX_LORA_MODULES, MAX_MODULE_NAME, MAX_OFFER_PROOFS_SIZE, MAX_PROOF_SIZE
from p2p.offer_proofs import ModuleProof, OfferProofs, open_offer_proofs, pack_offer_proofs
from tests.support.lora_offers import OFFER, OFFER_ID, TO_K, lora_offer, offer_proofs
from tests.support.people import cid

PACKED = pack_offer_proofs(offer_proofs())
ONE = offer_proofs().modules[0]


def test_the_proofs_of_an_offer_come_back_as_they_were() -> None:
    assert open_offer_proofs(PACKED, OFFER, offer_id=OFFER_ID) == offer_proofs()


def test_the_proofs_of_another_offer_are_refused() -> None:
    with pytest.raises(PeerError, match=r"OfferProofs\.offer"):
        open_offer_proofs(PACKED, OFFER, offer_id=cid("another"))
    other = pack_offer_proofs(offer_proofs(offer=cid("another")))
    with pytest.raises(PeerError, match=r"OfferProofs\.offer"):
        open_offer_proofs(other, OFFER, offer_id=OFFER_ID)


def test_each_module_has_its_proof_and_nothing_else_has() -> None:
    first, second = offer_proofs().modules
    for wrong in ((), (first,), (second, first), (first, first), (first, second, second)):
        data = pack_offer_proofs(offer_proofs(modules=wrong))
        with pytest.raises(PeerError, match=r"OfferProofs\.modules"):
            open_offer_proofs(data, OFFER, offer_id=OFFER_ID)
    with pytest.raises(PeerError, match=r"OfferProofs\.modules"):
        open_offer_proofs(PACKED, lora_offer(modules=(TO_K,)), offer_id=OFFER_ID)


@pytest.mark.parametrize(
    ("field", "fine", "wrong"),
    [
        ("module", ["m", "é" * MAX_MODULE_NAME], ["", "x" * (MAX_MODULE_NAME + 1), "a\nb"]),
        ("values", [bytes(256)], [b"", bytes(240), bytes(255), bytes(257), bytes(272)]),
        ("proof", [b"x", bytes(MAX_PROOF_SIZE)], [b"", bytes(MAX_PROOF_SIZE + 1)]),
    ],
)
def test_every_field_of_a_proof_holds_on_both_sides_of_its_bounds(
    field: str, fine: list[object], wrong: list[object]
) -> None:
    for value in fine:
        assert getattr(replace(ONE, **{field: value}), field) == value  # type: ignore[arg-type]
    for value in wrong:
        with pytest.raises((DecodeError, LimitError)):
            replace(ONE, **{field: value})  # type: ignore[arg-type]


def test_there_are_as_many_proofs_as_an_offer_may_have_modules_and_no_more() -> None:
    many = tuple(ModuleProof(f"{n}", bytes(256), bytes(4064)) for n in range(MAX_LORA_MODULES + 1))
    data = pack_offer_proofs(OfferProofs(OFFER_ID, many[:-1]))
    assert len(data) <= MAX_OFFER_PROOFS_SIZE
    with pytest.raises(LimitError):
        OfferProofs(OFFER_ID, many)


def test_a_file_that_is_too_large_is_neither_written_nor_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(LimitError, match=f"limit is {MAX_OFFER_PROOFS_SIZE}"):
        open_offer_proofs(bytes(MAX_OFFER_PROOFS_SIZE + 1), OFFER, offer_id=OFFER_ID)
    monkeypatch.setattr(module, "MAX_OFFER_PROOFS_SIZE", len(PACKED))
    assert pack_offer_proofs(offer_proofs()) == PACKED
    monkeypatch.setattr(module, "MAX_OFFER_PROOFS_SIZE", len(PACKED) - 1)
    with pytest.raises(LimitError, match="offer proofs"):
        pack_offer_proofs(offer_proofs())


def test_a_file_that_is_cut_longer_or_something_else_is_refused() -> None:
    good = msgpack.unpackb(PACKED)
    others = [msgpack.packb(good | {"zeal": 1}), msgpack.packb(good | {"modules": [1]})]
    for data in (b"", PACKED[:-1], PACKED + b"\0", b"\xc0", *others):
        with pytest.raises(DecodeError):
            open_offer_proofs(data, OFFER, offer_id=OFFER_ID)
