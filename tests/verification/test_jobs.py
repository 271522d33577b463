"""Jobs of a child process: plain maps in, plain answers out, whatever they hold."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.proofs import NARROW, SEED, SQUARE, ShownAll, layer, shape_numbers, store_in
from verification import native
from verification.adapter import QuantisedModule, pack_delivery
from verification.digests import integers_bytes
from verification.errors import StatementError
from verification.jobs import carry_out, matrix_of, named_shapes, plain_of, statement_of, store_of
from verification.keys import KeyStore
from verification.statement import OFFER, Statement

MODULES = (layer("to_q"), layer("to_k", NARROW))


def module_plain(module: QuantisedModule) -> dict[str, Any]:
    inputs, rank, outputs = shape_numbers(module.shape)
    return {"name": module.name, "inputs": inputs, "rank": rank, "outputs": outputs}


def statement_plain(statement: Statement) -> dict[str, Any]:
    inputs, rank, outputs = shape_numbers(statement.shape)
    return {
        "kind": statement.kind,
        "base": statement.base,
        "offer": statement.offer,
        "module": statement.module,
        "inputs": inputs,
        "rank": rank,
        "outputs": outputs,
        "commitment": statement.commitment,
        "nonce": statement.nonce,
        "left": plain_of(statement.left),
        "right": None if statement.right is None else plain_of(statement.right),
        "values": plain_of(statement.values),
    }


@pytest.fixture(scope="module")
def delivery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("delivery") / "delivery"
    path.write_bytes(pack_delivery(SEED, MODULES))
    return path


@pytest.fixture
def job(keys: KeyStore, delivery: Path) -> dict[str, Any]:
    modules = [module_plain(module) for module in MODULES]
    return {"keys": str(keys.folder), "delivery": str(delivery), "modules": modules}


def answers(job: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return list(carry_out({**job, **more}))


# --- what jobs do ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_commitments_come_one_by_one_and_are_checked_against_a_delivery(
    job: dict[str, Any],
) -> None:
    *made, last = answers(job, kind="commit")
    assert last == {"kind": "done"}
    assert [one["module"] for one in made] == ["to_q", "to_k"]
    promised = [
        {**plain, "commitment": one["value"]}
        for plain, one in zip(job["modules"], made, strict=True)
    ]
    assert answers(job, kind="check", modules=promised) == [{"kind": "verified", "square": 0.0}]
    promised[1]["commitment"] = promised[0]["commitment"]
    (rejected,) = answers(job, kind="check", modules=promised)
    assert rejected["kind"] == "rejected"
    assert rejected["reason"].startswith("to_k: the delivered weights give the commitment")


@pytest.mark.slow
@pytest.mark.parametrize("at", ["weight", "salt"])
def test_delivery_with_one_byte_changed_is_rejected(
    at: str, job: dict[str, Any], delivery: Path, tmp_path: Path
) -> None:
    made = answers(job, kind="commit")[:-1]
    promised = [
        {**plain, "commitment": one["value"]}
        for plain, one in zip(job["modules"], made, strict=True)
    ]
    altered = bytearray(delivery.read_bytes())
    altered[20 if at == "salt" else -1] ^= 1
    (tmp_path / "altered").write_bytes(altered)
    (rejected,) = answers(job, kind="check", modules=promised, delivery=str(tmp_path / "altered"))
    assert rejected["kind"] == "rejected"
    assert ("to_q" if at == "salt" else "to_k") in rejected["reason"]


@pytest.mark.slow
def test_proof_fills_in_the_values_and_verifies(
    job: dict[str, Any], shown: ShownAll, keys: KeyStore
) -> None:
    statement = statement_plain(shown.probe.statement)
    made, last = answers(job, kind="prove", statement={**statement, "values": None})
    assert last == {"kind": "done"}
    assert made["values"] == integers_bytes(shown.probe.statement.values)
    verified = answers(job, kind="verify", statement=statement, proof=made["proof"])
    assert verified == [{"kind": "verified", "square": 0.0}]


def test_offers_proof_gives_the_size_and_needs_no_questions(
    job: dict[str, Any], shown: ShownAll
) -> None:
    statement = statement_plain(shown.offer.statement)
    del statement["left"], statement["right"]
    (verified,) = answers(job, kind="verify", statement=statement, proof=shown.offer.proof)
    assert verified["kind"] == "verified"
    assert verified["square"] > 0


@pytest.mark.slow
def test_true_proof_of_a_zero_adapter_is_rejected(
    job: dict[str, Any], keys: KeyStore, tmp_path: Path
) -> None:
    zero = QuantisedModule("to_q", layer().a, 0 * layer().b)
    (tmp_path / "zero").write_bytes(pack_delivery(SEED, [zero]))
    job |= {"delivery": str(tmp_path / "zero"), "modules": [module_plain(zero)]}
    commitment = answers(job, kind="commit")[0]["value"]
    statement = {
        **module_plain(zero),
        "kind": OFFER,
        "base": "b",
        "offer": "o",
        "module": "to_q",
        "commitment": commitment,
        "nonce": bytes(16),
    }
    made = answers(job, kind="prove", statement=statement)[0]
    assert made["values"] == bytes(16 * 16)
    values = (4, 4, 16, made["values"])
    (rejected,) = answers(
        job, kind="verify", statement=statement | {"values": values}, proof=made["proof"]
    )
    assert rejected == {"kind": "rejected", "reason": "to_q: the adapter is zero there"}


def test_keys_are_made_ready(job: dict[str, Any], keys: KeyStore) -> None:
    assert answers(job, kind="keys", shapes=[shape_numbers(SQUARE)]) == [{"kind": "done"}]
    (rejected,) = answers(job, kind="keys", shapes=[(64, 4, 66)])
    assert rejected["reason"] == "no circuit is known for the shape (64, 4, 66)"


def test_larger_reference_strings_lie_next_to_the_keys(tmp_path: Path) -> None:
    assert store_of({"keys": str(tmp_path)}) == store_in(tmp_path)


# --- what jobs refuse -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["probe", "delta"])
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("kind", None, "kind: got NoneType, expected str"),
        ("kind", "magic", "kind: got 'magic'"),
        ("base", 5, "base: got int"),
        ("base", "\ud800", "base: no text"),
        ("offer", b"o", "offer: got bytes"),
        ("offer", "\udfff", "offer: no text"),
        ("module", ["to_q"], "module: got list"),
        ("module", "\ud800", "module: no text"),
        ("inputs", 64.0, "inputs: got float"),
        ("inputs", True, "inputs: got bool"),
        ("rank", "4", "rank: got str"),
        ("outputs", None, "outputs: got NoneType"),
        ("outputs", 10**30, "expected a rank of"),
        ("commitment", "C", "commitment: got str"),
        ("commitment", b"C", "commitment: got 1 bytes"),
        ("nonce", None, "nonce: got NoneType"),
        ("nonce", b"", "nonce: got 0 bytes"),
        ("left", None, "matrix: expected rows"),
        ("left", (), "matrix: expected rows"),
        ("left", "text", "matrix: expected rows"),
        ("left", (2, 64, 16), "matrix: expected rows"),
        ("left", (2, 64.0, 16, b""), "matrix: expected rows"),
        ("left", (True, 64, 16, b""), "matrix: expected rows"),
        ("left", (2, 64, 16, "00"), "matrix: expected rows"),
        ("left", (0, 64, 16, b""), "matrix: 0 x 64"),
        ("left", (-1, -64, 16, bytes(1024)), "matrix: -1 x -64"),
        ("left", (2, 64, 0, b""), "integers of 0 bytes"),
        ("left", (1, 1, 1 << 20, bytes(1 << 20)), "integers of 1048576 bytes"),
        ("left", (2, 64, 17, bytes(2176)), "integers of 17 bytes"),
        ("left", (2, 64, 16, bytes(2047)), "matrix: 2047 bytes for 2 x 64 of 16"),
        ("left", (1 << 40, 1 << 40, 1, b""), "matrix: 0 bytes for"),
        ("left", (1, 1, 2, b"\xff\x7f"), "left: got 1 x 1, expected 1 x 64"),
        ("values", (1, 1, 1, b"x"), "values: got 1 x 1"),
        ("values", [], "matrix: expected rows"),
        ("values", 7, "matrix: expected rows"),
    ],
)
def test_malformed_statement_is_rejected_by_name(
    kind: str, name: str, value: object, says: str, job: dict[str, Any], shown: ShownAll
) -> None:
    made = shown.of_kind(kind)
    statement = {**statement_plain(made.statement), name: value}
    (rejected,) = answers(job, kind="verify", statement=statement, proof=made.proof)
    assert rejected["kind"] == "rejected"
    assert says in rejected["reason"]


@pytest.mark.parametrize(
    "name", ["kind", "base", "offer", "module", "inputs", "commitment", "left"]
)
def test_statement_that_lacks_a_field_is_rejected(
    name: str, job: dict[str, Any], shown: ShownAll
) -> None:
    statement = statement_plain(shown.probe.statement)
    del statement[name]
    (rejected,) = answers(job, kind="verify", statement=statement, proof=shown.probe.proof)
    assert rejected["kind"] == "rejected"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=9) | st.text(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from(("left", "right", "values", "rank", "kind")), anything))
def test_any_plain_statement_is_a_statement_or_refused(changes: dict[str, Any]) -> None:
    plain = {
        "kind": "probe",
        "base": "b",
        "offer": "o",
        "module": "m",
        "inputs": 1,
        "rank": 1,
        "outputs": 1,
        "commitment": bytes(64),
        "nonce": bytes(16),
        "left": (1, 1, 1, b"x"),
        "right": (1, 1, 1, b"x"),
        "values": (1, 1, 1, b"x"),
        **changes,
    }
    try:
        statement_of(plain)
    except StatementError:
        assert changes


def test_values_that_are_not_stated_are_not_verified(job: dict[str, Any], shown: ShownAll) -> None:
    statement = {**statement_plain(shown.probe.statement), "values": None}
    (rejected,) = answers(job, kind="verify", statement=statement, proof=shown.probe.proof)
    assert rejected["kind"] == "rejected"


@pytest.mark.parametrize(
    ("modules", "says"),
    [
        ([], "modules: 0, expected some"),
        ([{"name": "q", "inputs": 1, "rank": 1, "outputs": 1}] * 2, "modules: 2, expected some"),
        ([{}], "name: got NoneType"),
        ([{"name": b"q", "inputs": 1, "rank": 1, "outputs": 1}], "name: got bytes"),
        ([{"name": "q", "inputs": 1.0, "rank": 1, "outputs": 1}], "inputs: got float"),
        ([{"name": "q", "inputs": 1, "rank": 2, "outputs": 1}], "expected a rank of"),
    ],
)
def test_modules_that_mean_nothing_are_refused(modules: list[Any], says: str) -> None:
    with pytest.raises(StatementError, match=says):
        named_shapes({"modules": modules})


def test_check_without_a_promised_commitment_is_rejected(job: dict[str, Any]) -> None:
    (rejected,) = answers(job, kind="check")
    assert rejected == {"kind": "rejected", "reason": "commitment: got NoneType, expected bytes"}


def test_layer_the_adapter_does_not_have_is_refused(job: dict[str, Any], shown: ShownAll) -> None:
    statement = {**statement_plain(shown.probe.statement), "module": "to_v"}
    (rejected,) = answers(job, kind="prove", statement=statement)
    assert rejected["reason"] == "the adapter has no layer 'to_v'"


def test_delivery_is_read_no_further_than_it_can_be_long(
    job: dict[str, Any], delivery: Path, tmp_path: Path
) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.write(delivery.read_bytes())
        file.truncate(1 << 40)  # a hole: reading it would end the process
    (rejected,) = answers(job, kind="commit", delivery=str(huge))
    size = delivery.stat().st_size
    assert f"got {size + 1} bytes" in rejected["reason"]


def test_missing_file_fails_and_blames_nobody(job: dict[str, Any], tmp_path: Path) -> None:
    (failed,) = answers(job, kind="commit", delivery=str(tmp_path / "none"))
    assert failed["kind"] == "failed"
    assert "No such file" in failed["error"]


def test_lack_of_a_library_disk_or_memory_fails_and_blames_nobody(
    job: dict[str, Any], shown: ShownAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement = statement_plain(shown.probe.statement)
    for error, says in (
        (native.NativeError("no srs"), "could not be checked: no srs"),
        (OSError(28, "No space left on device"), "No space left"),
        (MemoryError(), "out of memory"),
    ):

        def fails(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(native, "verify", fails)
        (failed,) = answers(job, kind="verify", statement=statement, proof=shown.probe.proof)
        assert failed["kind"] == "failed"
        assert says in failed["error"]


def test_full_disk_is_not_the_proofs_fault(
    job: dict[str, Any], shown: ShownAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    statement = statement_plain(shown.probe.statement)
    (failed,) = answers(job, kind="verify", statement=statement, proof=shown.probe.proof)
    assert failed["kind"] == "failed"


@given(st.lists(st.lists(st.integers(-(2**127), 2**127 - 1), min_size=3, max_size=3), min_size=1))
@settings(max_examples=30)
def test_matrices_come_back_from_their_plain_form(rows: list[list[int]]) -> None:
    matrix = tuple(map(tuple, rows))
    assert matrix_of(plain_of(matrix)) == matrix


def test_narrow_integers_are_signed_and_little_endian() -> None:
    assert matrix_of((2, 2, 2, bytes.fromhex("ff7f0080fffe0100"))) == ((32767, -32768), (-257, 1))
