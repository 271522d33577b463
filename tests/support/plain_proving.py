"""A stand-in for `node.proving`: "proofs" are hashes of what they state, made at once.

It takes the same jobs, computes the same values, and refuses what is not true of the weights or not
in the statement. What it cannot show is that a proof needs the weights: tests whose point is the
proof use the real one.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from node.errors import ErrorCode, NodeError
from node.proving import Proven, RejectedByProofError
from verification.adapter import QuantisedModule, unpack_delivery
from verification.circuit import circuit_of
from verification.digests import integers_bytes
from verification.errors import VerificationError
from verification.jobs import named_shapes, statement_of
from verification.policy import check_not_zero
from verification.prover import with_values
from verification.statement import OFFER, Statement


@dataclass
class PlainProving:
    """Does jobs in this process.

    Attributes:
        jobs: kinds of all that were begun, in order.
        failing: given the number of jobs begun, this one included, may raise instead of doing it.
        gate: proofs are made once it is set.
        lies: values of proofs made here are off by one, and their proofs are of the true ones.
        is_full: nothing that may not wait is taken.
    """

    jobs: list[str] = field(default_factory=list)
    failing: Callable[[int], None] = lambda _: None
    gate: trio.Event | None = None
    lies: bool = False
    is_full: bool = False

    async def run(self) -> None:
        await trio.sleep_forever()

    async def commit(
        self, modules: Sequence[Mapping[str, object]], delivery: Path
    ) -> dict[str, bytes]:
        await self._begin("commit")
        seed, found = _unpacked(modules, delivery)
        return {module.name: _commitment(module, seed) for module in found}

    async def prove(
        self,
        modules: Sequence[Mapping[str, object]],
        delivery: Path,
        statement: Mapping[str, object],
    ) -> Proven:
        await self._begin("prove")
        if self.gate is not None:
            await self.gate.wait()
        seed, found = _unpacked(modules, delivery)
        try:
            asked = statement_of(statement)
            module = {one.name: one for one in found}[asked.module]
            stated = with_values(asked, module)
        except VerificationError as error:
            raise RejectedByProofError(str(error)) from error
        if asked.commitment != _commitment(module, seed):
            raise RejectedByProofError(f"{asked.module}: the commitment is not to these weights")
        values = stated.values
        if self.lies:
            values = tuple(tuple(x + 1 for x in row) for row in values)
        return Proven(integers_bytes(values), _proof(stated))

    async def verify(
        self, statement: Mapping[str, object], proof: bytes, *, may_wait: bool = True
    ) -> float:
        if self.is_full and not may_wait:
            raise NodeError(ErrorCode.RESOURCE, "32 proofs wait to be checked already")
        await self._begin("verify")
        try:
            stated = statement_of(statement)
            if proof != _proof(stated):
                raise RejectedByProofError(f"{stated.module}: not proved")
            return check_not_zero(stated) if stated.kind == OFFER else 0.0
        except VerificationError as error:
            raise RejectedByProofError(str(error)) from error

    async def check(self, modules: Sequence[Mapping[str, object]], delivery: Path) -> None:
        await self._begin("check")
        seed, found = _unpacked(modules, delivery)
        for module, promised in zip(found, modules, strict=True):
            if _commitment(module, seed) != promised["commitment"]:
                raise RejectedByProofError(f"{module.name}: other weights were committed to")

    async def _begin(self, kind: str) -> None:
        await trio.lowlevel.checkpoint()
        self.jobs.append(kind)
        self.failing(len(self.jobs))


def _unpacked(
    modules: Sequence[Mapping[str, Any]], delivery: Path
) -> tuple[bytes, tuple[QuantisedModule, ...]]:
    try:
        return unpack_delivery(delivery.read_bytes(), named_shapes({"modules": modules}))
    except VerificationError as error:
        raise RejectedByProofError(str(error)) from error


def _commitment(module: QuantisedModule, seed: bytes) -> bytes:
    parts = seed + module.name.encode() + module.a.tobytes() + module.b.tobytes()
    return hashlib.shake_256(parts).digest(circuit_of(module.shape).commitment_size)


def _proof(statement: Statement) -> bytes:
    return hashlib.sha256(repr(statement).encode()).digest()
