"""Makers who prove something else than they say, with the real library: none of it is taken."""

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ezkl
import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.support.foreign_srs import foreign_srs
from tests.support.proofs import (
    BASE,
    SEED,
    SQUARE,
    ShownAll,
    layer,
    offered,
    probed,
    shared_keys,
    show_all,
    store_in,
)
from verification import native, prover
from verification.adapter import QuantisedModule, SaltedModule, salted
from verification.circuit import circuit_of, known, onnx_bytes, run_args
from verification.digests import felt_hex
from verification.effect import norm_squared
from verification.errors import DeliveryError, PolicyError, ProofRejectedError, StatementError
from verification.keys import KeyStore
from verification.policy import Policy
from verification.srs import SrsFolder
from verification.statement import PROBE, Statement, offer_signs, sheet_nonce
from verification.verifier import check_committed, verify

pytestmark = pytest.mark.slow

CIRCUIT = circuit_of(SQUARE)
DOES_NOT_SHOW = "proof: it does not show what is stated of to_q"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    return shared_keys(tmp_path_factory)


@pytest.fixture(scope="module")
def shown(keys: KeyStore) -> ShownAll:
    return show_all(keys)


@dataclass(frozen=True, slots=True)
class Forge:
    """Somebody's own folder, circuit, keys and SRS, through the library as it is."""

    folder: Path
    srs: Path

    def set_up(self, model: bytes, arguments: dict[str, object]) -> None:
        (self.folder / "model").write_bytes(model)
        given = ezkl.PyRunArgs()
        for name, value in arguments.items():
            setattr(given, name, tuple(value) if isinstance(value, list) else value)
        settings = str(self.folder / "settings.json")
        ezkl.gen_settings(str(self.folder / "model"), settings, py_run_args=given)
        self.compile(model)
        native.set_up(self.folder / "compiled", self.srs, *self.keys)

    def compile(self, model: bytes) -> None:
        (self.folder / "model").write_bytes(model)
        settings = self.folder / "settings.json"
        native.compile_circuit(self.folder / "model", settings, self.folder / "compiled")

    @property
    def keys(self) -> tuple[Path, Path]:
        return self.folder / "vk.key", self.folder / "pk.key"

    def prove(self, statement: Statement) -> tuple[bytes, list[str]]:
        """Whatever the circuit makes of a statement's challenge, and the public numbers."""
        folded = statement.fold()
        inputs = [[felt_hex(x) for x in folded.u], [felt_hex(x) for x in folded.v]]
        compiled = self.folder / "compiled"
        return native.prove(inputs, compiled, self.keys[1], self.srs, folder=self.folder)

    def verify(self, proof: bytes, instances: list[str]) -> None:
        places = self.folder / "settings.json", self.keys[0], self.srs
        native.verify(proof, instances, places, self.folder / "proof")


def instances_of(statement: Statement) -> list[str]:
    folded = statement.fold()
    return [felt_hex(x) for x in (*folded.u, *folded.v, folded.y)]


def model_of(mixed: SaltedModule) -> bytes:
    return onnx_bytes(mixed.circuit, mixed.a.tolist(), mixed.b.tolist())


# --- another circuit ------------------------------------------------------------------------------

CLAIMED = 1_000_000
"""What the evil circuit makes of the one question below, whatever the weights."""


def one_question(commitment: bytes) -> Statement:
    """u and v that see the first weight of each side alone; any value can be claimed."""
    return Statement(
        kind=PROBE,
        base=BASE,
        offer="offer",
        module="to_q",
        shape=SQUARE,
        commitment=commitment,
        nonce=bytes(16),
        left=((1, *[0] * 63),),
        right=((1,), *[(0,)] * 63),
        values=((CLAIMED,),),
    )


def evil_weights() -> tuple[Any, Any]:
    """(u A)(B v) = CLAIMED u0 v0, which is true of whatever is claimed of that question."""
    a, b = np.zeros((CIRCUIT.inputs, 2), int), np.zeros((2, CIRCUIT.outputs), int)
    a[CIRCUIT.is_salt()[0].index(False), 0] = CLAIMED
    b[0, CIRCUIT.is_salt()[1].index(False)] = 1
    return a, b


def evil_model() -> bytes:
    """Like ours but for its rank of 2: it reads what is committed to as other matrices."""
    a, b = evil_weights()

    def constant(name: str, weights: Any) -> TensorProto:
        flat = [x / 4096 for x in weights.ravel().tolist()]
        return helper.make_tensor(name, TensorProto.FLOAT, weights.shape, flat)

    def value(name: str, dims: list[int]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["u", "A"], ["h"]),
            helper.make_node("MatMul", ["B", "v"], ["g"]),
            helper.make_node("MatMul", ["h", "g"], ["y"]),
        ],
        "evil",
        [value("u", [1, CIRCUIT.inputs]), value("v", [CIRCUIT.outputs, 1])],
        [value("y", [1, 1])],
        [constant("A", a), constant("B", b)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


@dataclass(frozen=True, slots=True)
class Lie:
    """A false statement, and a proof of it that an evil circuit's key takes."""

    folder: Path
    statement: Statement
    proof: bytes


@pytest.fixture(scope="module")
def lie(tmp_path_factory: pytest.TempPathFactory) -> Lie:
    forge = Forge(tmp_path_factory.mktemp("evil"), SrsFolder()(10))
    forge.set_up(evil_model(), run_args(10))
    message = [felt_hex(int(x)) for part in evil_weights() for x in part.ravel()]
    settings = forge.folder / "settings.json"
    commitment = native.commit(message, forge.keys[0], settings, forge.srs)
    statement = one_question(commitment)
    proof, instances = forge.prove(statement)
    assert instances == instances_of(statement)
    assert proof.startswith(commitment)
    forge.verify(proof, instances)
    return Lie(forge.folder, statement, proof.removeprefix(commitment))


def test_proof_of_another_circuit_holds_under_its_key_and_not_under_ours(
    lie: Lie, keys: KeyStore
) -> None:
    """It has the right length, and begins with what was committed to."""
    assert len(lie.statement.commitment + lie.proof) == known(SQUARE).proof_size
    with pytest.raises(ProofRejectedError, match=DOES_NOT_SHOW):
        verify(lie.statement, lie.proof, keys)


@pytest.mark.parametrize("placed", [("vk.key", "settings.json"), ("vk.key",)])
def test_its_key_in_our_folder_is_not_used(
    placed: tuple[str, ...], lie: Lie, keys: KeyStore, shown: ShownAll, tmp_path: Path
) -> None:
    own = store_in(tmp_path / "circuits")
    place = own.folder / known(SQUARE).circuit
    shutil.copytree(keys.verifying(CIRCUIT).vk.parent, place)
    for name in placed:
        shutil.copyfile(lie.folder / name, place / name)
    whole = lie.statement.commitment + lie.proof
    places = place / "settings.json", place / "vk.key", SrsFolder()(10)
    native.verify(whole, instances_of(lie.statement), places, tmp_path / "proof")
    with pytest.raises(ProofRejectedError, match=DOES_NOT_SHOW):
        verify(lie.statement, lie.proof, own)
    assert (place / "vk.key").read_bytes() == keys.verifying(CIRCUIT).vk.read_bytes()
    verify(shown.probe.statement, shown.probe.proof, own)


def test_settings_that_would_busy_the_library_for_minutes_are_not_read_by_it(
    keys: KeyStore, shown: ShownAll, tmp_path: Path
) -> None:
    own = store_in(tmp_path / "circuits")
    shutil.copytree(keys.verifying(CIRCUIT).vk.parent, own.folder / known(SQUARE).circuit)
    settings = own.folder / known(SQUARE).circuit / "settings.json"
    bomb = {**json.loads(settings.read_text()), "total_assignments": 10**9}
    settings.write_text(json.dumps(bomb))
    started = time.monotonic()
    verify(shown.probe.statement, shown.probe.proof, own)
    assert time.monotonic() - started < 20


# --- another reference string ---------------------------------------------------------------------


def test_proof_under_a_string_whose_secret_is_known_holds_there_and_not_here(
    keys: KeyStore, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    forge = Forge(tmp_path, foreign_srs(tmp_path_factory))
    forge.set_up(onnx_bytes(CIRCUIT), run_args(10))
    forge.compile(model_of(salted(layer(), SEED)))
    message = [felt_hex(x) for x in salted(layer(), SEED).message()]
    commitment = native.commit(message, forge.keys[0], tmp_path / "settings.json", forge.srs)
    assert commitment != prover.commit(layer(), SEED, keys)
    statement = probed(layer(), commitment)
    proof, instances = forge.prove(statement)
    assert proof.startswith(commitment)
    assert len(proof) == known(SQUARE).proof_size
    forge.verify(proof, instances)
    with pytest.raises(ProofRejectedError, match=DOES_NOT_SHOW):
        verify(statement, proof.removeprefix(commitment), keys)


# --- other weights --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def honest_circuit(keys: KeyStore, tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """Our own circuit and keys, and no check on what is proved with them."""
    found = keys.proving(CIRCUIT)
    forge = Forge(tmp_path_factory.mktemp("honest") / "circuit", found.srs)
    shutil.copytree(found.vk.parent, forge.folder)
    return forge


def test_proof_of_other_weights_does_not_hold_under_a_pasted_commitment(
    honest_circuit: Forge, keys: KeyStore, shown: ShownAll
) -> None:
    """Everything is right but the weights: questions, challenge, circuit, keys."""
    theirs = layer(draw=1)
    lie = probed(theirs, shown.probe.statement.commitment)
    honest_circuit.compile(model_of(salted(theirs, SEED)))
    proof, instances = honest_circuit.prove(lie)
    assert instances == instances_of(lie)
    honest_circuit.verify(proof, instances)
    assert not proof.startswith(lie.commitment)
    with pytest.raises(ProofRejectedError, match=DOES_NOT_SHOW):
        verify(lie, proof[CIRCUIT.commitment_size :], keys)


def test_proof_of_our_weights_with_the_salt_of_others_does_not_hold(
    honest_circuit: Forge, keys: KeyStore, shown: ShownAll
) -> None:
    honest_circuit.compile(model_of(salted(layer(), bytes(32))))
    proof, _ = honest_circuit.prove(shown.probe.statement)
    with pytest.raises(ProofRejectedError, match=DOES_NOT_SHOW):
        verify(shown.probe.statement, proof[CIRCUIT.commitment_size :], keys)


def test_another_adapters_proof_is_rejected(shown: ShownAll, keys: KeyStore) -> None:
    verify(shown.rival.statement, shown.rival.proof, keys)
    with pytest.raises(ProofRejectedError, match=DOES_NOT_SHOW):
        verify(shown.probe.statement, shown.rival.proof, keys)
    with pytest.raises(ProofRejectedError, match=DOES_NOT_SHOW):
        verify(shown.rival.statement, shown.probe.proof, keys)


def test_offer_that_copies_anothers_commitments_cannot_show_them(
    shown: ShownAll, keys: KeyStore
) -> None:
    """A squatter has the commitments and the proofs, but no weights."""
    copied = replace(shown.offer.statement, offer="the squatter's offer")
    assert copied.commitment == shown.offer.statement.commitment
    with pytest.raises(ProofRejectedError, match=DOES_NOT_SHOW):
        verify(copied, shown.offer.proof, keys)
    with pytest.raises(StatementError, match="the commitment is not to these weights"):
        prover.prove(copied, layer(), bytes(32), keys)


def test_answer_to_one_asker_is_no_answer_to_another(shown: ShownAll, keys: KeyStore) -> None:
    for nonce in (b"sixteen of Carol", bytes(16)):
        with pytest.raises(ProofRejectedError, match=DOES_NOT_SHOW):
            verify(replace(shown.probe.statement, nonce=nonce), shown.probe.proof, keys)


def test_signs_cannot_be_drawn_for_one_layer_alone(shown: ShownAll) -> None:
    """Other signs for `to_q` need other commitments, and those draw others for `to_k` as well."""
    both = [("to_q", SQUARE, b"c" * 64), ("to_k", SQUARE, b"d" * 64)]
    first = sheet_nonce(BASE, both)
    again = sheet_nonce(BASE, [("to_q", SQUARE, b"e" * 64), both[1]])
    for module in ("to_q", "to_k"):
        drawn = [offer_signs(nonce, module, SQUARE) for nonce in (first, again)]
        assert drawn[0] != drawn[1]


# --- true statements that should not be taken -----------------------------------------------------


def test_adapter_scaled_up_proves_its_size_and_is_refused_by_it(keys: KeyStore) -> None:
    loud = QuantisedModule("to_q", 8 * layer().a, layer().b)
    policy, base = Policy(most_ratio=0.5), {}
    for module in (layer(), loud):
        statement = offered(module, prover.commit(module, SEED, keys))
        verify(statement, prover.prove(statement, module, SEED, keys), keys)
        square = norm_squared(statement.values, 1.0)
        if module is not loud:
            base = {"to_q": 5 * square**0.5}
            policy.check_size({"to_q": square}, base)
        else:
            with pytest.raises(PolicyError, match="of their norm"):
                policy.check_size({"to_q": square}, base)


# --- deliveries -----------------------------------------------------------------------------------


def same_product(module: QuantisedModule) -> QuantisedModule:
    a = module.a.copy()
    a[:, 0], a[:, 1] = module.a[:, 1], module.a[:, 0]
    b = module.b.copy()
    b[0], b[1] = module.b[1], module.b[0]
    return QuantisedModule(module.name, a, b)


def one_integer(module: QuantisedModule) -> QuantisedModule:
    b = module.b.copy()
    b[3, 63] ^= 1
    return QuantisedModule(module.name, module.a, b)


def negated(module: QuantisedModule) -> QuantisedModule:
    return QuantisedModule(module.name, -module.a, -module.b)


@pytest.mark.parametrize("change", [same_product, one_integer, negated])
def test_delivery_of_other_integers_is_found_out_even_if_the_product_is_the_same(
    change: Any, keys: KeyStore
) -> None:
    promised = prover.commit(layer(), SEED, keys)
    check_committed("to_q", promised, prover.commit(layer(), SEED, keys))
    with pytest.raises(DeliveryError, match="to_q: the delivered weights give the commitment"):
        check_committed("to_q", promised, prover.commit(change(layer()), SEED, keys))


def test_delivery_under_another_salt_is_found_out(keys: KeyStore) -> None:
    promised = prover.commit(layer(), SEED, keys)
    other = bytes([SEED[0] ^ 1, *SEED[1:]])
    with pytest.raises(DeliveryError, match="to_q"):
        check_committed("to_q", promised, prover.commit(layer(), other, keys))
