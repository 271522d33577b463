"""Is what a seller delivered what it committed to? Decided from one file, by anybody, with no node.

The file shows what the seller signed for; the commitments are recomputed from what it sent. Whoever
is judged may have made the file's adapter, so native code looks at it in a process of its own, and
only its own plain word is a verdict: a checker that crashed convicts nobody.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.errors import ErrorCode, NodeError
from node.lora_convert import modules_plain, shape_of
from p2p.errors import PeerError
from p2p.fraud import FraudCase, check_fraud, unpack_fraud
from p2p.limits import MAX_FRAUD_SIZE
from p2p.lora_records import LoraOffer
from verification.circuit import circuit_of, known
from verification.errors import StatementError
from verification.sandbox import JOB_CPU_S

_CPU_PER_LAYER_S: Final = 5
"""A commitment of the largest shape takes one."""
_WALL_PER_CPU: Final = 5
"""On a machine that does other things as well."""
_VERDICTS: Final = {("verified", 0): False, ("rejected", 1): True}
"""(what the checker says, its exit status) -> is the seller guilty?"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a file proves.

    Attributes:
        case: what the seller signed and sent.
        is_guilty: whether that is not what its offer commits to.
        reason: of the guilt; empty if there is none.
    """

    case: FraudCase
    is_guilty: bool
    reason: str


def judge(path: Path, keys: Path, *, now: float) -> Verdict:
    """Judge the seller that a file accuses. Blocks: seconds to minutes.

    Args:
        path: a `FraudProof`.
        keys: folder of derived circuit keys; made if need be.
        now: seconds since the epoch.

    Raises:
        NodeError: `NOT_FOUND` without a file; `VERIFICATION_FAILED` if it does not prove what it
            must, whoever may be guilty then; `RESOURCE` if nothing could be decided here.
    """
    try:
        case = check_fraud(unpack_fraud(_read(path)), now=now)
        _check_circuits(case.offer)
    except (PeerError, StatementError) as error:
        raise NodeError(
            ErrorCode.VERIFICATION_FAILED,
            f"{path.name} proves nothing against anybody: {error}.",
            "ask whoever sent it for the whole file, as paris-node wrote it",
        ) from error
    if case.plaintext is None:
        return Verdict(case, is_guilty=True, reason=str(case.reason))
    return _recomputed(case, case.plaintext, keys)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FRAUD_SIZE + 1)  # too long is refused by whoever unpacks it
    except OSError as error:
        raise NodeError(
            ErrorCode.NOT_FOUND,
            f"{path} cannot be read: {error.strerror}.",
            "fraud proofs lie in the folder offers of the buyer's home",
        ) from error


def _check_circuits(offer: LoraOffer) -> None:
    """Refuse an offer whose commitments this program cannot recompute: it would accuse the honest.

    Raises:
        StatementError: a shape, circuit or commitment that is none of ours.
    """
    for module in offer.modules:
        shape = shape_of(offer, module)
        expected = known(shape).circuit, circuit_of(shape).commitment_size
        if (module.circuit, len(module.commitment)) != expected:
            raise StatementError(
                f"its offer commits to {module.name} by the circuit {module.circuit[:16]} in "
                f"{len(module.commitment)} bytes; known here is {expected[0][:16]} in {expected[1]}"
            )


def _recomputed(case: FraudCase, plaintext: bytes, keys: Path) -> Verdict:
    """Recompute the commitments from what was sent, in a process under limits."""
    modules = modules_plain(case.offer)
    sheet = [{**one, "commitment": _hex(one["commitment"])} for one in modules]
    cpu_s = JOB_CPU_S + _CPU_PER_LAYER_S * len(modules)
    with tempfile.TemporaryDirectory(prefix="paris-judge-") as folder:  # mode 0700
        files = [Path(folder) / "sheet.json", Path(folder) / "delivery.bin"]
        files[0].write_text(json.dumps({"modules": sheet}))
        files[1].write_bytes(plaintext)
        command = [
            *(sys.executable, "-P", "-m", "verification", "check-delivery"),
            *("--keys", str(keys.absolute()), "--cpu", str(cpu_s), *map(str, files)),
        ]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, check=False,
                timeout=_WALL_PER_CPU * cpu_s,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise _undecided(f"not done within {error.timeout:g} s") from error
    said = _said(done.stdout)
    is_guilty = _VERDICTS.get((str(said.get("result")), done.returncode))
    if is_guilty is None:
        why = said.get("error") or done.stderr.decode(errors="replace").strip()[-300:]
        raise _undecided(str(why or f"exit status {done.returncode}"))
    return Verdict(case, is_guilty, str(said.get("reason", "")))


def _said(output: bytes) -> dict[str, Any]:
    """The checker's one JSON object; empty if it said anything else."""
    try:
        said = json.loads(output)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _hex(value: object) -> str:
    assert isinstance(value, bytes)  # noqa: S101  of our own sheet
    return value.hex()


def _undecided(why: str) -> NodeError:
    return NodeError(
        ErrorCode.RESOURCE,
        f"Nothing is decided: the commitments could not be recomputed here ({why}).",
        "pip install 'paris-node[zk]', or let another machine judge",
    )
