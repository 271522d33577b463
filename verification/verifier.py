"""Checking what others prove and deliver. Everything but the raw proof and the values is ours."""

from dataclasses import dataclass

from verification import native
from verification.circuit import known
from verification.digests import felt_hex
from verification.errors import DeliveryError, ProofRejectedError, UnavailableError
from verification.keys import KeyStore, private_folder
from verification.statement import Statement


@dataclass(frozen=True, slots=True)
class VerifiedProof:
    """A statement whose proof was checked by `verify`; nothing else makes one."""

    statement: Statement
    circuit: str


def verify(statement: Statement, proof: bytes, keys: KeyStore) -> VerifiedProof:
    """Check a proof; cheap checks first.

    Args:
        statement: recomputed by the caller from what it knows itself.
        proof: raw bytes without the commitment they begin with, from a peer.
        keys: our own.

    Raises:
        ProofRejectedError: another length, or it does not hold.
        StatementError: a shape without a known circuit.
        UnavailableError: nothing was decided.
    """
    pin = known(statement.shape)
    whole = statement.commitment + proof  # so it can be about no other weights
    if len(whole) != pin.proof_size:  # ezkl would ignore trailing bytes
        raise ProofRejectedError(
            f"proof: got {len(proof)} bytes, those of this circuit have "
            f"{pin.proof_size - len(statement.commitment)}"
        )
    found = keys.verifying(statement.circuit)
    folded = statement.fold()
    instances = [felt_hex(x) for x in (*folded.u, *folded.v, folded.y)]
    with private_folder(keys.folder) as folder:
        try:
            native.verify(whole, instances, found.verifying, folder / "proof.json")
        except native.NotProvenError as error:
            raise ProofRejectedError(
                f"proof: it does not show what is stated of {statement.module}: {error}"
            ) from error
        except native.NativeError as error:
            raise UnavailableError(f"the proof could not be checked: {error}") from error
    return VerifiedProof(statement, pin.circuit)


def check_committed(module: str, expected: bytes, got: bytes) -> None:
    """Check that delivered weights are those an offer committed to.

    Args:
        module: the layer's name.
        expected: the offer's commitment.
        got: the commitment to what was delivered, recomputed here.

    Raises:
        DeliveryError: naming the module and both.
    """
    if got != expected:
        raise DeliveryError(
            f"{module}: the delivered weights give the commitment {got.hex()[:16]}..., "
            f"the offer's is {expected.hex()[:16]}..."
        )
