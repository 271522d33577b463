"""Who is guilty: real commitments, real deliveries, real files; and files that prove nothing."""

import stat
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import node.judging
from node.errors import ErrorCode, NodeError
from node.judging import Verdict, judge
from p2p.ids import blob_id
from p2p.limits import MAX_FRAUD_SIZE
from p2p.lora_records import LoraOffer
from tests.support.frauds import (
    SOLD,
    accusation,
    committed_offer,
    delivered,
    one_number_off,
    with_module,
    write_accusation,
)
from tests.support.lora_offers import HEX
from tests.support.people import NOW, alice, bob, carol, sealed
from tests.support.proofs import WIDE, shared_keys
from verification.circuit import known
from verification.keys import KeyStore

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    return shared_keys(tmp_path_factory)


@pytest.fixture(scope="module")
def offer(keys: KeyStore) -> LoraOffer:
    return committed_offer(keys)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def judged(tmp_path: Path, keys: KeyStore, proof: Any) -> Verdict:
    return judge(write_accusation(tmp_path / "x.fraud", proof), keys.folder, now=NOW)


def test_seller_that_sent_what_it_committed_to_is_not_guilty(
    tmp_path: Path, keys: KeyStore, offer: LoraOffer, temporary: Path
) -> None:
    verdict = judged(tmp_path, keys, accusation(offer))
    assert (verdict.is_guilty, verdict.reason) == (False, "")
    assert (verdict.case.seller, verdict.case.buyer) == (alice.peer, bob.peer)
    assert verdict.case.offer_id == blob_id(sealed(offer, alice))
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("plaintext", "reason"),
    [
        pytest.param(delivered(SOLD[0], one_number_off(SOLD[1])), "block.0.to_k", id="one number"),
        pytest.param(delivered(one_number_off(SOLD[0]), SOLD[1]), "block.0.to_q", id="the first"),
        pytest.param(delivered(SOLD[1], SOLD[0]), "block.0.to_q", id="layers exchanged"),
        pytest.param(delivered(seed=b"s" * 32), "block.0.to_q", id="another salt"),
        pytest.param(delivered()[:-2], "bytes", id="cut"),
        pytest.param(delivered() + b"\0\0", "bytes", id="longer"),
        pytest.param(b"not an adapter", "bytes", id="something else"),
    ],
)
def test_seller_that_sent_anything_else_is_guilty_and_it_is_said_why(
    tmp_path: Path, keys: KeyStore, offer: LoraOffer, plaintext: bytes, reason: str
) -> None:
    verdict = judged(tmp_path, keys, accusation(offer, plaintext))
    assert verdict.is_guilty
    assert reason in verdict.reason
    assert verdict.case.seller == alice.peer


def test_seller_of_what_does_not_decrypt_is_guilty_without_a_commitment_recomputed(
    tmp_path: Path, keys: KeyStore, offer: LoraOffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere")
    verdict = judged(tmp_path, keys, accusation(offer, ciphertext=b"noise" * 50))
    assert verdict.is_guilty
    assert "does not decrypt" in verdict.reason


# --- what convicts nobody -------------------------------------------------------------------------
def _refused(path: Path, keys: KeyStore) -> NodeError:
    with pytest.raises(NodeError, match="proves nothing against anybody") as caught:
        judge(path, keys.folder, now=NOW)
    assert caught.value.code is ErrorCode.VERIFICATION_FAILED
    return caught.value


@pytest.mark.parametrize("field", ["offer", "agreement", "delivery", "buyer_secret", "ciphertext"])
def test_file_altered_in_any_part_proves_nothing(
    tmp_path: Path, keys: KeyStore, offer: LoraOffer, field: str
) -> None:
    proof = accusation(offer, delivered(SOLD[0], one_number_off(SOLD[1])))
    part = bytearray(getattr(proof, field))
    part[len(part) // 2] ^= 1
    altered = replace(proof, **{field: bytes(part)})
    _refused(write_accusation(tmp_path / "x.fraud", altered), keys)


def test_delivery_that_somebody_else_signed_proves_nothing(
    tmp_path: Path, keys: KeyStore, offer: LoraOffer
) -> None:
    theirs = replace(accusation(offer), offer=sealed(offer, carol))
    error = _refused(write_accusation(tmp_path / "x.fraud", theirs), keys)
    assert "signed by" in error.message


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"circuit": HEX}, id="another circuit"),
        pytest.param({"circuit": known(WIDE).circuit}, id="that of another shape"),
        pytest.param({"commitment": b"c" * 64 * 9}, id="another size"),
        pytest.param({"inputs": 65}, id="a shape of no preset"),
        pytest.param({"inputs": 9000}, id="a shape of no circuit"),
    ],
)
def test_offer_that_this_program_cannot_recompute_convicts_nobody(
    tmp_path: Path, keys: KeyStore, offer: LoraOffer, changes: dict[str, Any]
) -> None:
    """It may be from a newer version: an honest seller of it must not be found guilty."""
    proof = accusation(with_module(offer, **changes))
    _refused(write_accusation(tmp_path / "x.fraud", proof), keys)


@pytest.mark.parametrize("data", [b"", b"no fraud", bytes(MAX_FRAUD_SIZE + 1)])
def test_file_of_something_else_proves_nothing(tmp_path: Path, keys: KeyStore, data: bytes) -> None:
    (tmp_path / "x.fraud").write_bytes(data)
    _refused(tmp_path / "x.fraud", keys)


def test_file_that_is_not_there_is_not_found(tmp_path: Path, keys: KeyStore) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(NodeError, match="cannot be read") as caught:
            judge(path, keys.folder, now=NOW)
        assert caught.value.code is ErrorCode.NOT_FOUND


# --- the checker ----------------------------------------------------------------------------------
@pytest.fixture
def checker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the checker's place; a test writes what it does."""
    path = tmp_path / "checker"
    path.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    return path


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "exit 0",
        "echo Traceback >&2; exit 1",
        'echo \'{"result": "rejected"}\'; exit 0',
        'echo \'{"result": "verified"}\'; exit 1',
        'echo \'{"result": "rejected"}\'; exit 2',
        'echo \'{"result": "failed", "error": "no ezkl"}\'; exit 2',
        "echo '[\"rejected\"]'; exit 1",
        "echo rejected; exit 1",
        "kill -9 $$",
    ],
)
def test_checker_that_does_not_say_plainly_what_it_found_decides_nothing(
    tmp_path: Path, keys: KeyStore, offer: LoraOffer, checker: Path, script: str, temporary: Path
) -> None:
    checker.write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(NodeError, match="Nothing is decided") as caught:
        judged(tmp_path, keys, accusation(offer))
    assert caught.value.code is ErrorCode.RESOURCE
    assert ("no ezkl" in caught.value.message) == ("no ezkl" in script)
    assert not list(temporary.iterdir())


def test_checker_that_hangs_is_ended_and_decides_nothing(
    tmp_path: Path,
    keys: KeyStore,
    offer: LoraOffer,
    checker: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checker.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(node.judging, "_WALL_PER_CPU", 0.001)
    with pytest.raises(NodeError, match="not done within"):
        judged(tmp_path, keys, accusation(offer))


def test_what_was_delivered_lies_where_nobody_else_can_read_it(
    tmp_path: Path, keys: KeyStore, offer: LoraOffer, checker: Path
) -> None:
    seen = tmp_path / "seen"
    checker.write_text(
        f'#!/bin/sh\nfor last; do :; done\nstat -c %a "$(dirname "$last")" > {seen}\n'
        f'cat "$last" >> {seen}\n'
    )
    with pytest.raises(NodeError, match="Nothing is decided"):
        judged(tmp_path, keys, accusation(offer))
    assert seen.read_bytes() == b"700\n" + delivered()


def test_keys_that_cannot_be_made_decide_nothing(
    tmp_path: Path, keys: KeyStore, offer: LoraOffer
) -> None:
    (tmp_path / "keys").touch()
    path = write_accusation(tmp_path / "x.fraud", accusation(offer))
    with pytest.raises(NodeError, match="Nothing is decided") as caught:
        judge(path, tmp_path / "keys", now=NOW)
    assert caught.value.code is ErrorCode.RESOURCE


def test_checker_is_ours_whatever_lies_in_the_folder_it_is_called_from(
    tmp_path: Path, keys: KeyStore, offer: LoraOffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "verification"
    fake.mkdir()
    (fake / "__init__.py").touch()
    (fake / "__main__.py").write_text('print(\'{"result": "verified"}\')\n')
    monkeypatch.chdir(tmp_path)
    verdict = judged(tmp_path, keys, accusation(offer, delivered(*map(one_number_off, SOLD))))
    assert verdict.is_guilty


def test_keys_are_derived_where_there_are_none(
    tmp_path: Path, keys: KeyStore, offer: LoraOffer
) -> None:
    path = write_accusation(tmp_path / "x.fraud", accusation(offer))
    assert not judge(path, tmp_path / "home" / "circuits", now=NOW).is_guilty
    mode = (tmp_path / "home" / "circuits").stat().st_mode
    assert stat.S_IMODE(mode) == 0o700
