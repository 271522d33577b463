"""Commitments bind and hide; proofs are made of what is true of one's own weights, and no more."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from tests.support.proofs import (
    NARROW,
    NONCE,
    SEED,
    SQUARE,
    WIDE,
    ShownAll,
    changed,
    delta_of,
    layer,
    offered,
    probed,
    questions,
)
from verification import native, prover
from verification.adapter import QuantisedModule, salted
from verification.circuit import Shape, circuit_of, known
from verification.digests import felt_hex
from verification.errors import ProofRejectedError, StatementError, UnavailableError
from verification.keys import KeyStore
from verification.verifier import verify

OTHER_SEED = bytes(32)


def with_weights(a: int | None = None, b: int | None = None) -> QuantisedModule:
    """The usual layer with A or B filled with one number."""
    ours = layer()
    return QuantisedModule(
        ours.name,
        ours.a if a is None else np.full_like(ours.a, a),
        ours.b if b is None else np.full_like(ours.b, b),
    )


@pytest.mark.slow
def test_commitment_is_the_same_each_time_and_of_the_size_of_its_circuit(keys: KeyStore) -> None:
    for shape in (SQUARE, NARROW, WIDE):
        commitment = prover.commit(layer(shape=shape), SEED, keys)
        assert commitment == prover.commit(layer(shape=shape), SEED, keys)
        assert len(commitment) == circuit_of(shape).commitment_size


def test_equal_weights_under_two_seeds_cannot_be_told_from_others(keys: KeyStore) -> None:
    made = {prover.commit(layer(), seed, keys) for seed in (SEED, OTHER_SEED, b"3" * 32)}
    assert len(made) == 3


def test_commitment_changes_with_one_integer_of_either_matrix(keys: KeyStore) -> None:
    ours = layer()
    a, b = ours.a.copy(), ours.b.copy()
    a[63, 3] += 1
    b[3, 63] -= 1
    made = {
        prover.commit(QuantisedModule("to_q", *pair), SEED, keys)
        for pair in ((ours.a, ours.b), (a, ours.b), (ours.a, b), (a, b))
    }
    assert len(made) == 4


def test_commitment_is_to_a_row_by_row_then_b_row_by_row(keys: KeyStore) -> None:
    mixed = salted(layer(), SEED)
    assert prover.commit_salted(mixed, keys) == prover.commit(layer(), SEED, keys)
    found = keys.verifying(mixed.circuit)
    message = [felt_hex(int(x)) for x in (*mixed.a.ravel(), *mixed.b.ravel())]
    assert native.commit(message, found.vk, found.settings, found.srs) == prover.commit(
        layer(), SEED, keys
    )


@pytest.mark.slow
def test_commitment_is_what_the_librarys_proof_begins_with(
    keys: KeyStore, shown: ShownAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = []
    made = native.prove

    def watched(*args: object, **named: object) -> tuple[bytes, list[str]]:
        raw.append(made(*args, **named))  # type: ignore[arg-type]
        return raw[-1]

    monkeypatch.setattr(native, "prove", watched)
    statement = shown.probe.statement
    proof = prover.prove(statement, layer(), SEED, keys)
    assert raw[0][0] == statement.commitment + proof
    assert len(raw[0][0]) == known(SQUARE).proof_size


@pytest.mark.slow
@pytest.mark.parametrize("shape", [NARROW, WIDE], ids=str)
def test_every_kind_of_statement_is_proved_at_other_shapes(shape: Shape, keys: KeyStore) -> None:
    """Rank 1 among them, where both matrices are vectors."""
    ours = layer(shape=shape)
    commitment = prover.commit(ours, SEED, keys)
    for statement in (offered(ours, commitment), delta_of(ours, commitment)):
        verify(statement, prover.prove(statement, ours, SEED, keys), keys)


@pytest.mark.slow
@pytest.mark.parametrize(
    "ours",
    [
        pytest.param(with_weights(b=0), id="untrained: B is zero"),
        pytest.param(with_weights(a=0, b=0), id="all zero"),
        pytest.param(with_weights(a=1, b=2), id="the weights of the key's own model"),
        pytest.param(with_weights(a=7, b=7), id="equal matrices"),
        pytest.param(with_weights(a=-(2**15), b=2**15 - 1), id="the largest integers"),
    ],
)
def test_weights_that_a_library_might_fold_away_are_proved_under_the_same_key(
    ours: QuantisedModule, keys: KeyStore
) -> None:
    statement = probed(ours, prover.commit(ours, SEED, keys))
    verify(statement, prover.prove(statement, ours, SEED, keys), keys)


@pytest.mark.slow
def test_rank_one_of_equal_vectors_is_proved_under_the_same_key(keys: KeyStore) -> None:
    ours = QuantisedModule("to_q", np.ones((64, 1), np.int16), np.ones((1, 64), np.int16))
    statement = probed(ours, prover.commit(ours, SEED, keys))
    verify(statement, prover.prove(statement, ours, SEED, keys), keys)


@pytest.mark.slow
def test_two_proofs_of_one_statement_differ_and_both_hold(keys: KeyStore, shown: ShownAll) -> None:
    again = prover.prove(shown.probe.statement, layer(), SEED, keys)
    assert again != shown.probe.proof
    verify(shown.probe.statement, again, keys)


@pytest.mark.slow
def test_what_is_proved_is_the_same_under_another_salt(keys: KeyStore, shown: ShownAll) -> None:
    commitment = prover.commit(layer(), OTHER_SEED, keys)
    assert commitment != shown.probe.statement.commitment
    statement = replace(shown.probe.statement, commitment=commitment)
    verify(statement, prover.prove(statement, layer(), OTHER_SEED, keys), keys)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["offer", "probe", "delta"])
def test_value_off_by_one_is_not_proved(kind: str, keys: KeyStore, shown: ShownAll) -> None:
    statement = shown.of_kind(kind).statement
    false = replace(statement, values=changed(statement.values, -1, -1))
    with pytest.raises(StatementError, match="values are not those of these weights"):
        prover.prove(false, layer(), SEED, keys)


@pytest.mark.slow
def test_other_weights_than_those_committed_to_are_not_proved(
    keys: KeyStore, shown: ShownAll
) -> None:
    statement = shown.rival.statement
    own_values = replace(statement, values=shown.probe.statement.values)
    for seed, module in ((SEED, layer()), (OTHER_SEED, shown.rival.module)):
        pasted = own_values if module is layer() else statement
        with pytest.raises(StatementError, match="the commitment is not to these weights"):
            prover.prove(pasted, module, seed, keys)


def test_statement_on_another_layer_is_not_proved(keys: KeyStore, shown: ShownAll) -> None:
    for module in (layer("to_k"), layer(shape=NARROW)):
        with pytest.raises(StatementError, match="a statement on to_q"):
            prover.prove(shown.probe.statement, module, SEED, keys)


@pytest.mark.slow
def test_proof_that_does_not_hold_is_our_fault_and_the_key_is_dropped(
    keys: KeyStore, shown: ShownAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise ProofRejectedError("no")

    dropped = []
    monkeypatch.setattr(prover, "verify", refuses)
    monkeypatch.setattr(KeyStore, "forget_proving", lambda _, circuit: dropped.append(circuit))
    with pytest.raises(UnavailableError, match="the proof made here does not hold"):
        prover.prove(shown.probe.statement, layer(), SEED, keys)
    assert dropped == [circuit_of(SQUARE)]


def test_failure_to_commit_is_unavailable(keys: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise native.NativeError("panicked")

    monkeypatch.setattr(native, "commit", fails)
    with pytest.raises(UnavailableError, match="no commitment could be made: panicked"):
        prover.commit(layer(), SEED, keys)


def test_values_are_filled_in_and_nothing_else_is_changed(shown: ShownAll) -> None:
    left, right = questions(SQUARE)
    asked = replace(shown.probe.statement, values=((0, 0), (0, 0)))
    assert prover.with_values(asked, layer()) == shown.probe.statement
    assert (asked.left, asked.right, asked.nonce) == (left, right, NONCE)


def test_commitments_are_what_they_always_were(keys: KeyStore) -> None:
    """Or nobody could check today what was offered yesterday."""
    made = [prover.commit(layer(shape=shape), SEED, keys) for shape in (SQUARE, NARROW)]
    assert [hashlib.sha256(one).hexdigest()[:16] for one in made] == [
        "85074c22e614e966",
        "8ba8f8aed9fb2d25",
    ]
