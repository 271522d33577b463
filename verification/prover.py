"""Making commitments and proofs about one's own adapter."""

from dataclasses import replace

import numpy as np

from verification import native
from verification.adapter import QuantisedModule, SaltedModule, salted
from verification.digests import Matrix, felt_hex
from verification.errors import ProofRejectedError, StatementError, UnavailableError
from verification.keys import KeyStore, private_folder, write_model
from verification.statement import OFFER, Statement, offer_signs
from verification.verifier import verify


def commit(module: QuantisedModule, seed: bytes, keys: KeyStore) -> bytes:
    """The commitment to one module's weights and salt, 64 bytes a column.

    Raises:
        StatementError: a shape without a known circuit.
        UnavailableError: as `KeyStore.verifying`.
    """
    return commit_salted(salted(module, seed), keys)


def commit_salted(module: SaltedModule, keys: KeyStore) -> bytes:
    """As `commit`, of what is salted already."""
    found = keys.verifying(module.circuit)
    message = [felt_hex(x) for x in module.message()]
    try:
        return native.commit(message, found.vk, found.settings, found.srs)
    except native.NativeError as error:
        raise UnavailableError(f"no commitment could be made: {error}") from error


def true_values(module: QuantisedModule, left: Matrix, right: Matrix | None) -> Matrix:
    """U A B V, exactly; U A B if `right` is None.

    Args:
        module: A and B.
        left: U [p, in], entries below 2^11.
        right: V [out, q], likewise.
    """
    half = np.array(left, np.int64) @ module.a.astype(np.int64)  # below 2^11 2^13 2^15
    if right is None:
        return tuple(map(tuple, (half @ module.b.astype(np.int64)).tolist()))
    other = module.b.astype(np.int64) @ np.array(right, np.int64)
    exact = half.astype(object) @ other.astype(object)  # may pass 64 bits
    return tuple(tuple(int(x) for x in row) for row in exact)


def offer_statement(
    module: QuantisedModule, *, base: str, offer: str, commitment: bytes, nonce: bytes
) -> Statement:
    """The statement of an offer's own proof about one module; `nonce` is its `sheet_nonce`."""
    left, right = offer_signs(nonce, module.name, module.shape)
    return Statement(
        kind=OFFER,
        base=base,
        offer=offer,
        module=module.name,
        shape=module.shape,
        commitment=commitment,
        nonce=nonce,
        left=left,
        right=right,
        values=true_values(module, left, right),
    )


def prove(statement: Statement, module: QuantisedModule, seed: bytes, keys: KeyStore) -> bytes:
    """Prove a statement about one's own weights, and check the proof.

    Args:
        statement: its values must be true; `with_values` fills them in.
        module: the weights behind its commitment.
        seed: of the salt behind it.
        keys: where keys lie.

    Returns:
        The raw proof without the commitment it begins with.

    Raises:
        StatementError: the statement is not true of these weights.
        UnavailableError: nothing could be made.
    """
    if statement.shape != module.shape or statement.module != module.name:
        raise StatementError(
            f"a statement on {statement.module} {statement.shape} for {module.name} {module.shape}"
        )
    mixed = salted(module, seed)
    found = keys.proving(mixed.circuit)
    folded = statement.fold()
    with private_folder(keys.folder) as folder:
        model, compiled = folder / "model.onnx", folder / "model.compiled"
        write_model(model, mixed.circuit, mixed.a.tolist(), mixed.b.tolist())
        inputs = [[felt_hex(x) for x in folded.u], [felt_hex(x) for x in folded.v]]
        try:
            native.compile_circuit(model, found.settings, compiled)
            proof, instances = native.prove(inputs, compiled, found.pk, found.srs, folder=folder)
        except native.NativeError as error:
            keys.forget_proving(mixed.circuit)  # if it is damaged, the next try is whole
            raise UnavailableError(f"no proof could be made: {error}") from error
    if instances != [*inputs[0], *inputs[1], felt_hex(folded.y)]:
        raise StatementError(f"{statement.module}: the values are not those of these weights")
    if not proof.startswith(statement.commitment):
        raise StatementError(f"{statement.module}: the commitment is not to these weights")
    proof = proof.removeprefix(statement.commitment)
    try:
        verify(statement, proof, keys)
    except ProofRejectedError as error:
        keys.forget_proving(mixed.circuit)
        raise UnavailableError(f"the proof made here does not hold: {error}") from error
    return proof


def with_values(statement: Statement, module: QuantisedModule) -> Statement:
    """A statement with the values that are true of some weights."""
    return replace(statement, values=true_values(module, statement.left, statement.right))
