"""`python -m verification`: one JSON object and an exit status, whatever the files hold."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import verification.__main__
from tests.support.proofs import SEED, ShownAll, layer, shape_numbers
from verification.__main__ import DONE, MAX_JSON_BYTES, MAX_PROOF_BYTES, REJECTED, UNDECIDED, main
from verification.adapter import pack_delivery
from verification.digests import Matrix, integers_bytes
from verification.keys import KeyStore
from verification.srs import PINNED, SrsFolder
from verification.statement import Statement

Run = Callable[..., tuple[int, dict[str, Any]]]


def matrix_json(matrix: Matrix) -> list[object]:
    return [len(matrix), len(matrix[0]), 16, integers_bytes(matrix).hex()]


def statement_json(statement: Statement) -> dict[str, Any]:
    inputs, rank, outputs = shape_numbers(statement.shape)
    return {
        "kind": statement.kind,
        "base": statement.base,
        "offer": statement.offer,
        "module": statement.module,
        "inputs": inputs,
        "rank": rank,
        "outputs": outputs,
        "commitment": statement.commitment.hex(),
        "nonce": statement.nonce.hex(),
        "left": matrix_json(statement.left),
        "right": None if statement.right is None else matrix_json(statement.right),
        "values": matrix_json(statement.values),
    }


@pytest.fixture
def run(keys: KeyStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The program in this process, which must not take its limits; exit status and answer."""
    monkeypatch.setattr(verification.__main__, "limit_process", lambda: None)
    monkeypatch.setattr(verification.__main__, "limit_job", lambda _: None)

    def run(job: str, *arguments: object) -> tuple[int, dict[str, Any]]:
        status = main([job, "--keys", str(keys.folder), *map(str, arguments)])
        answer = json.loads(capsys.readouterr().out)
        assert answer["job"] == job
        return status, answer

    return run


def test_a_larger_srs_is_taken_only_if_it_is_the_pinned_one(tmp_path: Path, run: Run) -> None:
    shipped = SrsFolder()(13)
    altered = tmp_path / "altered.srs"
    altered.write_bytes(b"\1" + shipped.read_bytes()[1:])
    folder = ("--keys", tmp_path / "keys")
    assert run("add-srs", 13, shipped, *folder) == (DONE, {"job": "add-srs", "result": "done"})
    assert (tmp_path / "keys" / "srs" / "kzg13.srs").read_bytes() == shipped.read_bytes()
    status, answer = run("add-srs", 13, altered, *folder)
    assert (status, answer["result"]) == (UNDECIDED, "failed")
    assert PINNED[13].sha256 in answer["error"]
    assert run("add-srs", 14, shipped, *folder)[0] == UNDECIDED


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    inputs, rank, outputs = shape_numbers(layer().shape)
    module = {"name": "to_q", "inputs": inputs, "rank": rank, "outputs": outputs}
    return written(tmp_path / "sheet.json", {"modules": [module]})


@pytest.fixture
def delivery(tmp_path: Path) -> Path:
    path = tmp_path / "delivery"
    path.write_bytes(pack_delivery(SEED, [layer()]))
    return path


def written(path: Path, plain: object) -> Path:
    path.write_text(json.dumps(plain))
    return path


@pytest.mark.slow
def test_commit_prove_verify_and_check_fit_together(
    run: Run, sheet: Path, delivery: Path, shown: ShownAll, tmp_path: Path
) -> None:
    status, committed = run("commit", sheet, delivery)
    assert (status, committed["result"]) == (DONE, "done")
    commitment = shown.probe.statement.commitment.hex()
    assert committed["modules"] == [{"name": "to_q", "commitment": commitment}]

    asked = statement_json(shown.probe.statement)
    del asked["values"]
    question, proof = written(tmp_path / "asked.json", asked), tmp_path / "proof"
    status, proved = run("prove", sheet, delivery, question, "-o", proof)
    assert (status, proved["proof_bytes"]) == (DONE, len(proof.read_bytes()))
    assert proved["values"] == integers_bytes(shown.probe.statement.values).hex()

    stated = written(tmp_path / "stated.json", asked | {"values": [2, 2, 16, proved["values"]]})
    assert run("verify", stated, proof) == (DONE, {"job": "verify", "result": "verified"})

    promised = json.loads(sheet.read_text())
    promised["modules"][0]["commitment"] = commitment
    checked = run("check-delivery", written(sheet, promised), delivery)
    assert checked == (DONE, {"job": "check-delivery", "result": "verified"})


@pytest.mark.slow
def test_tampered_proof_statement_or_delivery_is_rejected_with_status_1(
    run: Run, sheet: Path, delivery: Path, shown: ShownAll, tmp_path: Path
) -> None:
    statement = written(tmp_path / "statement.json", statement_json(shown.probe.statement))
    proof = tmp_path / "proof"
    proof.write_bytes(shown.probe.proof[:-1] + bytes([shown.probe.proof[-1] ^ 1]))
    status, answer = run("verify", statement, proof)
    assert (status, answer["result"]) == (REJECTED, "rejected")
    assert "does not show what is stated" in answer["reason"]

    proof.write_bytes(shown.probe.proof)
    other = statement_json(shown.probe.statement) | {"offer": "another"}
    assert run("verify", written(statement, other), proof)[0] == REJECTED

    promised = json.loads(sheet.read_text())
    promised["modules"][0]["commitment"] = shown.probe.statement.commitment.hex()
    delivery.write_bytes(delivery.read_bytes()[:-1] + b"\x7f")
    status, answer = run("check-delivery", written(sheet, promised), delivery)
    assert (status, answer["result"]) == (REJECTED, "rejected")
    assert "to_q: the delivered weights give" in answer["reason"]
    assert run("prove", sheet, delivery, statement, "-o", tmp_path / "new")[0] == REJECTED
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "none", "none"),
        ("commit", "none", "none"),
        ("commit", "SHEET", "none"),
        ("check-delivery", "none", "DELIVERY"),
        ("prove", "SHEET", "DELIVERY", "none", "-o", "new"),
        ("verify", ".", "."),
    ],
)
def test_missing_file_decides_nothing_and_has_status_2(
    arguments: Sequence[str], run: Run, sheet: Path, delivery: Path, tmp_path: Path
) -> None:
    places = {"SHEET": sheet, "DELIVERY": delivery}
    places |= {name: tmp_path / name for name in ("none", ".", "new")}
    status, answer = run(*(places.get(name, name) for name in arguments))
    assert (status, answer["result"]) == (UNDECIDED, "failed")
    assert "No such file" in answer["error"] or "Is a directory" in answer["error"]


def test_proof_that_cannot_be_written_has_status_2(
    run: Run,
    sheet: Path,
    delivery: Path,
    shown: ShownAll,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = [{"kind": "proof", "values": b"", "proof": b"p"}, {"kind": "done"}]
    monkeypatch.setattr(verification.__main__, "carry_out", lambda _: iter(made))
    statement = written(tmp_path / "statement.json", statement_json(shown.probe.statement))
    status, answer = run("prove", sheet, delivery, statement, "-o", tmp_path / "no" / "proof")
    assert (status, answer["result"]) == (UNDECIDED, "failed")


def test_lack_of_memory_has_status_2(
    run: Run, sheet: Path, delivery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def huge(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(verification.__main__, "carry_out", huge)
    status, answer = run("commit", sheet, delivery)
    assert (status, answer["error"]) == (UNDECIDED, "out of memory")


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"modules": None},
        {"modules": 5},
        {"modules": {"name": "q"}},
        {"modules": [5]},
        {"modules": ["name"]},
        {"modules": [{"name": "q", "inputs": 64, "rank": 4}]},
        {"modules": [{"name": "q", "inputs": 64.0, "rank": 4, "outputs": 64}]},
        {"modules": [{"name": "q", "inputs": True, "rank": 4, "outputs": 64}]},
        {"modules": [{"name": 7, "inputs": 64, "rank": 4, "outputs": 64}]},
        {"modules": [{"name": "q", "inputs": 64, "rank": 4, "outputs": 64, "commitment": 1}]},
        {"modules": [{"name": "q", "inputs": 64, "rank": 4, "outputs": 64, "commitment": "x"}]},
    ],
)
def test_malformed_sheet_has_status_2(
    plain: object, run: Run, delivery: Path, tmp_path: Path
) -> None:
    for job in ("commit", "check-delivery"):
        status, answer = run(job, written(tmp_path / "sheet.json", plain), delivery)
        assert (status, answer["result"]) == (UNDECIDED, "failed")
        assert "sheet" in answer["error"]


def test_sheet_without_modules_promises_nothing_and_is_not_verified(
    run: Run, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(pack_delivery(SEED, []))
    sheet = written(tmp_path / "sheet.json", {"modules": []})
    assert run("check-delivery", sheet, empty)[0] == REJECTED


def test_sheet_without_commitments_cannot_be_checked(run: Run, sheet: Path, delivery: Path) -> None:
    status, answer = run("check-delivery", sheet, delivery)
    assert (status, answer["error"]) == (UNDECIDED, f"{sheet}: a module has no commitment")


HOSTILE_JSON: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not JSON"),
    "null": (b"null", "is not a JSON object"),
    "a list": (b"[]", "is not a JSON object"),
    "a number of a million digits": (b"9" * 1_000_000, "is not JSON"),
    "nested 100,000 deep": (b"[" * 100_000, "is not JSON"),
    "an object nested 100,000 deep": (b'{"a":' * 100_000, "is not JSON"),
    "20,000 empty lists": (b"[" + b"[]," * 20_000 + b"[]]", "is not a JSON object"),
    "not UTF-8": (b"\xff\xfe\xfd\x00\xd8", "is not JSON"),
    "zero bytes": (bytes(1000), "is not JSON"),
    "cut": (b'{"kind": "probe"', "is not JSON"),
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_hostile_json_has_status_2(name: str, run: Run, tmp_path: Path) -> None:
    data, says = HOSTILE_JSON[name]
    (tmp_path / "statement.json").write_bytes(data)
    (tmp_path / "proof").write_bytes(b"")
    status, answer = run("verify", tmp_path / "statement.json", tmp_path / "proof")
    assert (status, answer["result"]) == (UNDECIDED, "failed")
    assert says in answer["error"]


HOSTILE_FIELDS: list[tuple[dict[str, Any], int]] = [
    ({"kind": None}, UNDECIDED),
    ({"inputs": float("nan")}, UNDECIDED),
    ({"rank": float("inf")}, UNDECIDED),
    ({"rank": -4}, REJECTED),
    ({"outputs": 10**400}, REJECTED),
    ({"inputs": True}, UNDECIDED),
    ({"commitment": "zz"}, UNDECIDED),
    ({"commitment": ""}, REJECTED),
    ({"commitment": 5}, UNDECIDED),
    ({"nonce": "00"}, REJECTED),
    ({"nonce": None}, UNDECIDED),
    ({"module": "\ud800"}, REJECTED),
    ({"left": None}, REJECTED),
    ({"left": 5}, UNDECIDED),
    ({"left": "abcd"}, UNDECIDED),
    ({"left": [1, 2, 3]}, UNDECIDED),
    ({"left": [2, 64, 16, "zz"]}, UNDECIDED),
    ({"left": ["2", 64, 16, ""]}, UNDECIDED),
    ({"left": [2, 64, {}, ""]}, UNDECIDED),
    ({"left": [2, 64, 1e400, ""]}, UNDECIDED),
    ({"left": [2, 64, 16, ""]}, REJECTED),
    ({"left": [-2, -64, 16, "00" * 2048]}, REJECTED),
    ({"left": [1, 1, 100_000, "7f" * 100_000]}, REJECTED),
    ({"values": [10**30, 10**30, 10**30, ""]}, REJECTED),
    ({"right": [64, 2, 16, "ff" * 2047 + "7f"]}, REJECTED),
]


@pytest.mark.parametrize(("changes", "expected"), HOSTILE_FIELDS)
def test_hostile_fields_are_told_from_false_ones(
    changes: dict[str, Any], expected: int, run: Run, shown: ShownAll, tmp_path: Path
) -> None:
    """2 for a file that is no statement, 1 for a statement that nothing could show."""
    plain = statement_json(shown.probe.statement) | changes
    (tmp_path / "proof").write_bytes(shown.probe.proof)
    status, answer = run("verify", written(tmp_path / "s.json", plain), tmp_path / "proof")
    assert status == expected
    assert answer["result"] == {UNDECIDED: "failed", REJECTED: "rejected"}[expected]


@pytest.mark.parametrize("name", ["kind", "base", "offer", "module", "rank", "commitment", "nonce"])
def test_missing_field_has_status_2(name: str, run: Run, shown: ShownAll, tmp_path: Path) -> None:
    plain = statement_json(shown.probe.statement)
    del plain[name]
    (tmp_path / "proof").write_bytes(shown.probe.proof)
    status, answer = run("verify", written(tmp_path / "s.json", plain), tmp_path / "proof")
    assert status == UNDECIDED
    assert name in answer["error"]


PROOF_SIZES = [(0, REJECTED), (MAX_PROOF_BYTES, REJECTED), (MAX_PROOF_BYTES + 1, UNDECIDED)]


@pytest.mark.parametrize(("size", "expected"), PROOF_SIZES)
def test_empty_and_huge_proofs_are_refused(
    size: int, expected: int, run: Run, shown: ShownAll, tmp_path: Path
) -> None:
    statement = written(tmp_path / "s.json", statement_json(shown.probe.statement))
    (tmp_path / "proof").write_bytes(os.urandom(size))
    status, answer = run("verify", statement, tmp_path / "proof")
    assert status == expected
    assert f"got {size} bytes" in answer.get("reason", "") or "more than" in answer.get("error", "")


# --- as a program of its own ----------------------------------------------------------------------


def program(*arguments: object, code: str = "") -> subprocess.CompletedProcess[str]:
    """`python -m verification` in a process of its own, after some lines of code."""
    run = f"import sys, runpy; {code}\nrunpy.run_module('verification', run_name='__main__')"
    command = [sys.executable, "-c", run, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_program_verifies_rejects_and_says_so_by_its_status(
    shown: ShownAll, keys: KeyStore, tmp_path: Path
) -> None:
    statement = written(tmp_path / "s.json", statement_json(shown.probe.statement))
    (tmp_path / "proof").write_bytes(shown.probe.proof)
    files = (statement, tmp_path / "proof", "--keys", keys.folder)
    command = [sys.executable, "-m", "verification", "verify", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, json.loads(done.stdout)["result"]) == (DONE, "verified")
    (tmp_path / "proof").write_bytes(shown.probe.proof[::-1])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, json.loads(done.stdout)["result"]) == (REJECTED, "rejected")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_program_refuses_a_hundred_megabytes_by_size(tmp_path: Path) -> None:
    with (tmp_path / "s.json").open("wb") as file:
        file.truncate(100 << 20)
    (tmp_path / "proof").write_bytes(b"")
    done = program("verify", tmp_path / "s.json", tmp_path / "proof")
    assert done.returncode == UNDECIDED
    assert json.loads(done.stdout)["error"].endswith(f"has more than {MAX_JSON_BYTES} bytes")
    assert done.stderr == ""


@pytest.mark.slow
def test_program_that_lacks_memory_for_a_bomb_says_so(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_bytes(b"[" + b"[]," * 4_000_000 + b"[]]")
    (tmp_path / "proof").write_bytes(b"")
    code = "import resource; resource.setrlimit(resource.RLIMIT_AS, (200 << 20, 200 << 20))"
    done = program("verify", tmp_path / "s.json", tmp_path / "proof", code=code)
    assert done.returncode == UNDECIDED
    assert json.loads(done.stdout)["error"] == "out of memory"
    assert done.stderr == ""


@pytest.mark.slow
def test_program_without_ezkl_says_what_to_install(
    shown: ShownAll, keys: KeyStore, tmp_path: Path
) -> None:
    statement = written(tmp_path / "s.json", statement_json(shown.probe.statement))
    (tmp_path / "proof").write_bytes(shown.probe.proof)
    files = ("verify", statement, tmp_path / "proof", "--keys", keys.folder)
    done = program(*files, code="sys.modules['ezkl'] = None")
    assert done.returncode == UNDECIDED
    assert "pip install 'paris-node[zk]'" in json.loads(done.stdout)["error"]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [(), ("steal",), ("verify",), ("commit", "a", "b", "--cpu", "0"), ("--cpu", "x")]
)
def test_usage_errors_have_status_2_and_no_traceback(arguments: Sequence[str]) -> None:
    done = program(*arguments)
    assert (done.returncode, done.stdout) == (UNDECIDED, "")
    assert "usage: python -m verification" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("cpu", ["0", "-1", "86401", "1e3", "nan"])
def test_processor_time_that_means_nothing_is_refused(
    cpu: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run("commit", "sheet", "delivery", "--cpu", cpu)
    assert caught.value.code == UNDECIDED
    assert "--cpu" in capsys.readouterr().err


@pytest.mark.slow
def test_program_limits_itself_before_it_reads_anything(tmp_path: Path) -> None:
    code = (
        "import resource, verification.__main__ as m\n"
        "m.carry_out = lambda job: [{'kind': 'failed', 'error': str([resource.getrlimit(x)[0]"
        " for x in (resource.RLIMIT_AS, resource.RLIMIT_CORE, resource.RLIMIT_CPU)])}]\n"
        "sys.exit(m.main())"
    )
    sheet = written(tmp_path / "sheet.json", {"modules": []})
    command = [sys.executable, "-c", f"import sys; {code}", "commit", str(sheet), "d", "--cpu", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    memory, core, cpu = json.loads(json.loads(done.stdout)["error"])
    assert (memory, core) == (4 << 30, 0)
    assert 7 < cpu < 60
