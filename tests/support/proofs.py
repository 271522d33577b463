"""An adapter of small layers, commitments to it, and statements about it; proved by real ezkl."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from verification import prover
from verification.adapter import QuantisedModule
from verification.circuit import Shape
from verification.digests import Matrix
from verification.keys import KeyStore
from verification.srs import SrsFolder
from verification.statement import DELTA, OFFER, PROBE, Statement, sheet_nonce

SEED: Final = bytes(range(32))
BASE: Final = "the base's cid"
OFFER_ID: Final = "the offer's cid"
NONCE: Final = b"sixteen of Bob's"

SQUARE: Final = Shape(64, 4, 64)
NARROW: Final = Shape(64, 1, 64)
WIDE: Final = Shape(64, 2, 256)


def shared_keys(tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    """One key folder for all tests of a session: each circuit is set up once."""
    return store_in(tmp_path_factory.getbasetemp() / "circuits")


def store_in(folder: Path) -> KeyStore:
    """A key store on a folder of its own."""
    return KeyStore(folder, SrsFolder(folder / "srs"))


@cache
def layer(name: str = "to_q", shape: Shape = SQUARE, draw: int = 0) -> QuantisedModule:
    """Weights of up to 0.7; another `draw` has others."""
    rng = np.random.default_rng([draw, *shape_numbers(shape)])
    return QuantisedModule(
        name,
        rng.integers(-3000, 3000, (shape.inputs, shape.rank)).astype(np.int16),
        rng.integers(-3000, 3000, (shape.rank, shape.outputs)).astype(np.int16),
    )


def shape_numbers(shape: Shape) -> tuple[int, int, int]:
    """(in, rank, out)."""
    return shape.inputs, shape.rank, shape.outputs


def questions(shape: Shape, *, pairs: int = 2, draw: int = 1) -> tuple[Matrix, Matrix]:
    """U [pairs, in] and V [out, pairs] that a user could ask with."""
    rng = np.random.default_rng([draw, *shape_numbers(shape)])
    left = rng.integers(-2047, 2048, (pairs, shape.inputs)).tolist()
    right = rng.integers(-2047, 2048, (shape.outputs, pairs)).tolist()
    return tuple(map(tuple, left)), tuple(map(tuple, right))


def offered(
    module: QuantisedModule, commitment: bytes, *, offer: str = OFFER_ID, base: str = BASE
) -> Statement:
    """The statement of an offer of this one layer."""
    nonce = sheet_nonce(base, [(module.name, module.shape, commitment)])
    return prover.offer_statement(
        module, base=base, offer=offer, commitment=commitment, nonce=nonce
    )


def probed(module: QuantisedModule, commitment: bytes) -> Statement:
    """The statement of a blind probe with two pairs."""
    left, right = questions(module.shape)
    return Statement(
        kind=PROBE,
        base=BASE,
        offer=OFFER_ID,
        module=module.name,
        shape=module.shape,
        commitment=commitment,
        nonce=NONCE,
        left=left,
        right=right,
        values=prover.true_values(module, left, right),
    )


def delta_of(module: QuantisedModule, commitment: bytes) -> Statement:
    """The statement of a delta of three rows."""
    left, _ = questions(module.shape, pairs=3)
    return replace(
        probed(module, commitment),
        kind=DELTA,
        left=left,
        right=None,
        values=prover.true_values(module, left, None),
    )


def changed(matrix: Matrix, row: int = 0, column: int = 0, by: int = 1) -> Matrix:
    """A matrix with one entry moved."""
    rows = [list(one) for one in matrix]
    rows[row][column] += by
    return tuple(map(tuple, rows))


@dataclass(frozen=True, slots=True)
class Shown:
    """A statement and its proof.

    Attributes:
        module: the weights it is about.
        statement: true of them.
        proof: as it travels.
    """

    module: QuantisedModule
    statement: Statement
    proof: bytes


@dataclass(frozen=True, slots=True)
class ShownAll:
    """One layer's three kinds of statements, and the layer of somebody else."""

    offer: Shown
    probe: Shown
    delta: Shown
    rival: Shown
    """The probe's questions, answered from other weights."""

    def of_kind(self, kind: str) -> Shown:
        """The one of a kind."""
        return {OFFER: self.offer, PROBE: self.probe, DELTA: self.delta}[kind]


def show(statement: Statement, module: QuantisedModule, keys: KeyStore) -> Shown:
    """Prove a statement about weights salted with `SEED`."""
    return Shown(module, statement, prover.prove(statement, module, SEED, keys))


@cache
def show_all(keys: KeyStore) -> ShownAll:
    """Four proofs about layers of the shape `SQUARE`."""
    ours, theirs = layer(), layer(draw=1)
    commitment = prover.commit(ours, SEED, keys)
    rival = probed(theirs, prover.commit(theirs, SEED, keys))
    return ShownAll(
        show(offered(ours, commitment), ours, keys),
        show(probed(ours, commitment), ours, keys),
        show(delta_of(ours, commitment), ours, keys),
        show(rival, theirs, keys),
    )
