"""A proof shows its statement and no other; anything else is rejected with the reason."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.proofs import SQUARE, ShownAll, changed, store_in
from verification import native
from verification.circuit import Shape, known
from verification.errors import (
    DeliveryError,
    ProofRejectedError,
    RejectedError,
    StatementError,
    UnavailableError,
)
from verification.keys import KeyStore
from verification.statement import DELTA, OFFER, PROBE
from verification.verifier import check_committed, verify

KINDS = (OFFER, PROBE, DELTA)
DOES_NOT_SHOW = "proof: it does not show what is stated of"


@pytest.mark.parametrize("kind", KINDS)
def test_true_statement_is_verified(kind: str, shown: ShownAll, keys: KeyStore) -> None:
    made = shown.of_kind(kind)
    verified = verify(made.statement, made.proof, keys)
    assert verified.statement == made.statement
    assert verified.circuit == known(SQUARE).circuit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", [1, -1])
def test_value_off_by_one_unit_is_rejected(
    kind: str, by: int, shown: ShownAll, keys: KeyStore
) -> None:
    made = shown.of_kind(kind)
    for row, column in ((0, 0), (-1, -1)):
        false = replace(made.statement, values=changed(made.statement.values, row, column, by))
        with pytest.raises(ProofRejectedError, match=DOES_NOT_SHOW):
            verify(false, made.proof, keys)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "value"), [("base", "another checkpoint"), ("offer", "another offer")]
)
def test_proof_about_another_base_or_offer_is_rejected(
    kind: str, name: str, value: str, shown: ShownAll, keys: KeyStore
) -> None:
    made = shown.of_kind(kind)
    changes: dict[str, Any] = {name: value}
    with pytest.raises(ProofRejectedError, match=DOES_NOT_SHOW):
        verify(replace(made.statement, **changes), made.proof, keys)


@pytest.mark.parametrize(("name", "value"), [("module", "to_k"), ("nonce", b"another sixteen.")])
def test_proof_of_another_module_or_nonce_is_rejected(
    name: str, value: object, shown: ShownAll, keys: KeyStore
) -> None:
    changes: dict[str, Any] = {name: value}
    for made in (shown.probe, shown.delta):
        with pytest.raises(ProofRejectedError, match=DOES_NOT_SHOW):
            verify(replace(made.statement, **changes), made.proof, keys)


def test_proof_of_other_questions_is_rejected(shown: ShownAll, keys: KeyStore) -> None:
    asked = shown.probe.statement
    assert asked.right is not None
    others: list[dict[str, Any]] = [
        {"left": changed(asked.left)},
        {"right": changed(asked.right)},
    ]
    for changes in others:
        with pytest.raises(ProofRejectedError, match=DOES_NOT_SHOW):
            verify(replace(asked, **changes), shown.probe.proof, keys)


def test_offers_proof_is_no_answer_to_a_probe(shown: ShownAll, keys: KeyStore) -> None:
    asked = replace(shown.offer.statement, kind=PROBE)
    with pytest.raises(ProofRejectedError, match=DOES_NOT_SHOW):
        verify(asked, shown.offer.proof, keys)


def test_proof_of_another_shape_is_rejected(shown: ShownAll, keys: KeyStore) -> None:
    """(64, 5, 64) has commitments of the same size."""
    wider = replace(shown.probe.statement, shape=Shape(64, 5, 64))
    with pytest.raises(ProofRejectedError, match="got 2112 bytes, those of this circuit have 2336"):
        verify(wider, shown.probe.proof, keys)


@pytest.mark.parametrize("size", [0, 1, 64, 2048, 2111, 2113, 2176, 1 << 20])
def test_proof_of_another_length_is_rejected_before_anything_is_read(
    size: int, shown: ShownAll, tmp_path: Path
) -> None:
    nowhere = store_in(tmp_path / "nowhere")
    proof = (shown.probe.proof + bytes(size))[:size]
    with pytest.raises(ProofRejectedError, match=f"proof: got {size} bytes, .* have 2112"):
        verify(shown.probe.statement, proof, nowhere)
    assert not nowhere.folder.exists()


@pytest.mark.parametrize("at", [*range(0, 2112, 96), 2111])
def test_flipped_bit_anywhere_in_the_proof_is_rejected(
    at: int, shown: ShownAll, keys: KeyStore
) -> None:
    for bit in (1 << at % 7, 0x80):
        altered = bytearray(shown.probe.proof)
        altered[at] ^= bit
        with pytest.raises(ProofRejectedError, match=DOES_NOT_SHOW):
            verify(shown.probe.statement, bytes(altered), keys)


def test_random_bytes_and_zeros_of_the_right_length_are_rejected(
    shown: ShownAll, keys: KeyStore
) -> None:
    size = len(shown.probe.proof)
    for altered in (bytes(size), b"\xff" * size, shown.probe.proof[::-1]):
        with pytest.raises(ProofRejectedError, match=DOES_NOT_SHOW):
            verify(shown.probe.statement, altered, keys)


def test_shape_without_a_known_circuit_is_refused(shown: ShownAll, keys: KeyStore) -> None:
    strange: dict[str, Any] = {"shape": Shape(64, 4, 66), "right": ((0, 0),) * 66}
    with pytest.raises(StatementError, match=r"no circuit is known for the shape \(64, 4, 66\)"):
        verify(replace(shown.probe.statement, **strange), shown.probe.proof, keys)


def test_failure_that_is_not_the_proofs_decides_nothing(
    shown: ShownAll, keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is banned for our own lack of memory."""

    def fails(*_: object) -> None:
        raise native.NativeError("the native library panicked: out of memory")

    monkeypatch.setattr(native, "verify", fails)
    with pytest.raises(UnavailableError, match="could not be checked: the native library panicked"):
        verify(shown.probe.statement, shown.probe.proof, keys)


def test_statements_and_proofs_do_not_mix(shown: ShownAll, keys: KeyStore) -> None:
    everything = (shown.offer, shown.probe, shown.delta, shown.rival)
    for stated in everything:
        for made in everything:
            if made is not stated:
                with pytest.raises(ProofRejectedError, match=DOES_NOT_SHOW):
                    verify(stated.statement, made.proof, keys)


def test_delivered_weights_are_those_committed_to_or_named() -> None:
    check_committed("to_q", b"C" * 64, b"C" * 64)
    for got in (b"C" * 63 + b"D", b"", b"C" * 128):
        with pytest.raises(DeliveryError, match="to_q: the delivered weights give"):
            check_committed("to_q", b"C" * 64, got)


def test_errors_of_a_peers_making_share_a_base_that_ours_do_not() -> None:
    for error in (ProofRejectedError, StatementError, DeliveryError):
        assert issubclass(error, RejectedError)
    assert not issubclass(UnavailableError, RejectedError)
