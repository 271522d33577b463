"""The door to ezkl: whatever it throws comes out as one of our errors."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ezkl
import pytest

from tests.support.proofs import SQUARE, ShownAll
from verification import native
from verification.circuit import circuit_of, onnx_bytes
from verification.digests import felt_hex
from verification.errors import UnavailableError
from verification.keys import Keys, KeyStore
from verification.native import NativeError, NotProvenError


@pytest.fixture(scope="module")
def found(keys: KeyStore) -> Keys:
    return keys.verifying(circuit_of(SQUARE))


def instances_of(shown: ShownAll) -> list[str]:
    folded = shown.probe.statement.fold()
    return [felt_hex(x) for x in (*folded.u, *folded.v, folded.y)]


def whole(shown: ShownAll) -> bytes:
    return shown.probe.statement.commitment + shown.probe.proof


def test_true_proof_holds(shown: ShownAll, found: Keys, tmp_path: Path) -> None:
    native.verify(whole(shown), instances_of(shown), found.verifying, tmp_path / "proof")


@pytest.mark.parametrize("index", [0, 1, 2, 63, 125, 126, 127, 251, 252])
def test_no_public_number_can_be_another(
    index: int, shown: ShownAll, found: Keys, tmp_path: Path
) -> None:
    """Salt positions, weights' positions of both vectors, and the result."""
    instances = instances_of(shown)
    assert len(instances) == 253
    moved = int.from_bytes(bytes.fromhex(instances[index]), "little") + 1
    instances[index] = felt_hex(moved)
    with pytest.raises(NotProvenError, match="halo2"):
        native.verify(whole(shown), instances, found.verifying, tmp_path / "proof")


@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: [*x, x[0]], lambda _: []])
def test_other_numbers_of_public_numbers_do_not_hold(
    change: Callable[[list[str]], list[str]], shown: ShownAll, found: Keys, tmp_path: Path
) -> None:
    with pytest.raises(NotProvenError, match="halo2"):
        native.verify(
            whole(shown), change(instances_of(shown)), found.verifying, tmp_path / "proof"
        )


@pytest.mark.parametrize("damaged", ["settings", "vk", "srs"])
def test_key_that_cannot_be_read_is_not_the_proofs_fault(
    damaged: str, shown: ShownAll, found: Keys, tmp_path: Path
) -> None:
    key = {"settings": found.settings, "vk": found.vk, "srs": found.srs}
    for data in (b"", os.urandom(3000)):
        (tmp_path / "damaged").write_bytes(data)
        key[damaged] = tmp_path / "damaged"
        places = key["settings"], key["vk"], key["srs"]
        with pytest.raises(NativeError, match="Failed to run verify") as caught:
            native.verify(whole(shown), instances_of(shown), places, tmp_path / "proof")
        assert not isinstance(caught.value, NotProvenError)


@pytest.mark.slow
def test_panic_of_the_library_is_one_of_our_errors(
    shown: ShownAll, found: Keys, tmp_path: Path
) -> None:
    """The library's own is no `Exception`, and would end a process that catches those."""
    hostile = json.loads(found.settings.read_text())
    hostile["run_args"]["num_inner_cols"] = 0
    (tmp_path / "settings").write_text(json.dumps(hostile))
    proof = {"instances": [instances_of(shown)], "proof": list(whole(shown))}
    names = ("protocol", "hex_proof", "split", "pretty_public_inputs", "timestamp", "version")
    (tmp_path / "proof").write_text(json.dumps(proof | dict.fromkeys(names)))
    hostile_file, proof_file = str(tmp_path / "settings"), str(tmp_path / "proof")
    with pytest.raises(BaseException, match="divide by zero") as raw:
        ezkl.verify(proof_file, hostile_file, str(found.vk), str(found.srs), False)
    assert not isinstance(raw.value, Exception)
    places = tmp_path / "settings", found.vk, found.srs
    with pytest.raises(NativeError, match="panicked: attempt to divide by zero") as caught:
        native.verify(whole(shown), instances_of(shown), places, tmp_path / "proof")
    assert not isinstance(caught.value, NotProvenError)


@pytest.mark.parametrize("message", [["zz"], ["01"], ["ff" * 32]])
def test_panic_over_a_field_element_is_one_of_our_errors(message: list[str], found: Keys) -> None:
    with pytest.raises(NativeError, match="panicked"):
        native.commit(message, found.vk, found.settings, found.srs)


def test_file_errors_of_the_library_are_ours(found: Keys, tmp_path: Path) -> None:
    for vk, srs in ((tmp_path / "none", found.srs), (found.vk, tmp_path / "none")):
        with pytest.raises(NativeError, match="Failed to load"):
            native.commit([felt_hex(1)], vk, found.settings, srs)


def test_garbage_is_refused_by_every_call(found: Keys, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(os.urandom(5000))
    out = tmp_path / "out"
    for job in (
        lambda: native.settings_and_circuit(garbage, 10, out, out),
        lambda: native.compile_circuit(garbage, found.settings, out),
        lambda: native.set_up(garbage, found.srs, out, out),
        lambda: native.prove([["00"], ["00"]], garbage, garbage, found.srs, folder=tmp_path),
    ):
        with pytest.raises(NativeError, match="Failed to"):
            job()


def test_interrupt_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ezkl, "compile_circuit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        native.compile_circuit(tmp_path, tmp_path, tmp_path)


@pytest.mark.parametrize("answer", [False, None, 1, "True"])
def test_only_true_is_taken_for_true(
    answer: Any, shown: ShownAll, found: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ezkl, "verify", lambda *_: answer)
    with pytest.raises(NotProvenError, match="did not say"):
        native.verify(whole(shown), instances_of(shown), found.verifying, tmp_path / "proof")


def test_other_release_of_the_library_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ezkl, "__version__", "23.0.6")
    with pytest.raises(UnavailableError, match=r"ezkl 23\.0\.6 is installed; .* of 23\.0\.5: pip"):
        native.compile_circuit(tmp_path, tmp_path, tmp_path)


def test_missing_library_is_unavailable_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ezkl", None)
    with pytest.raises(UnavailableError, match=r"pip install 'paris-node\[zk\]'"):
        native.compile_circuit(tmp_path, tmp_path, tmp_path)


def test_settings_of_the_library_are_all_taken(tmp_path: Path) -> None:
    """A name it does not know would be set on the object and forgotten."""
    (tmp_path / "model").write_bytes(onnx_bytes(circuit_of(SQUARE)))
    native.settings_and_circuit(tmp_path / "model", 10, tmp_path / "settings", tmp_path / "out")
    found = json.loads((tmp_path / "settings").read_text())["run_args"]
    assert found["param_visibility"] == "KZGCommit"
    assert (found["input_scale"], found["param_scale"], found["logrows"]) == (0, 12, 10)


@pytest.mark.slow
def test_importing_the_package_loads_neither_ezkl_nor_onnx_nor_numpy() -> None:
    code = "import sys, verification.jobs; print({'ezkl', 'onnx', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
