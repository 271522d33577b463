"""Keys are derived here or not at all; what was put in their place is derived anew."""

import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import verification.keys
from tests.support.proofs import NARROW, SEED, SQUARE, WIDE, layer, offered, store_in
from verification import native, prover
from verification.circuit import Circuit, Pin, Shape, circuit_of, known
from verification.errors import StatementError, UnavailableError
from verification.keys import Keys, KeyStore, derive, private_folder

CIRCUIT = circuit_of(SQUARE)


@pytest.fixture
def own(keys: KeyStore, tmp_path: Path) -> KeyStore:
    """A store that holds the keys of one circuit already, to be altered."""
    found = keys.proving(CIRCUIT)
    own = store_in(tmp_path / "circuits")
    shutil.copytree(found.vk.parent, own.folder / found.vk.parent.name)
    return own


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[Shape]:
    """Of which shapes keys were derived."""
    seen: list[Shape] = []

    def watched(circuit: Circuit, srs: Path, folder: Path) -> None:
        seen.append(circuit.shape)
        derive(circuit, srs, folder)

    monkeypatch.setattr(verification.keys, "derive", watched)
    return seen


@pytest.mark.slow
def test_keys_are_derived_once_and_are_the_pinned_ones(
    tmp_path: Path, derivations: list[Shape]
) -> None:
    store = store_in(tmp_path / "new" / "circuits")
    first = store.verifying(CIRCUIT)
    assert store.verifying(CIRCUIT) == first
    assert len(derivations) == 1
    assert not first.pk.exists()
    assert store.proving(CIRCUIT).pk.stat().st_size > 1_000_000
    assert store.proving(CIRCUIT) == first
    assert len(derivations) == 2
    assert [path.name for path in store.folder.iterdir()] == [known(SQUARE).circuit]
    for folder in (store.folder, first.vk.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_keys_that_are_here_are_not_derived_again(own: KeyStore, derivations: list[Shape]) -> None:
    assert own.proving(CIRCUIT) == own.verifying(CIRCUIT)
    assert derivations == []


def replace_by_key_of_another_circuit(found: Keys, keys: KeyStore) -> None:
    other = keys.verifying(circuit_of(WIDE))
    shutil.copyfile(other.vk, found.vk)


def flip_a_bit_of_the_key(found: Keys, _: KeyStore) -> None:
    data = bytearray(found.vk.read_bytes())
    data[len(data) // 2] ^= 1
    found.vk.write_bytes(data)


def cut_the_key(found: Keys, _: KeyStore) -> None:
    os.truncate(found.vk, 100)


def drop_the_key(found: Keys, _: KeyStore) -> None:
    found.vk.unlink()


def drop_the_settings(found: Keys, _: KeyStore) -> None:
    found.settings.unlink()


def make_outputs_private(found: Keys, _: KeyStore) -> None:
    hostile = json.loads(found.settings.read_text())
    hostile["run_args"]["output_visibility"] = "Private"
    found.settings.write_text(json.dumps(hostile))


def replace_settings_by_a_bomb(found: Keys, _: KeyStore) -> None:
    hostile = json.loads(found.settings.read_text())
    hostile["total_assignments"] = 10**9
    found.settings.write_text(json.dumps(hostile))


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm",
    [
        replace_by_key_of_another_circuit,
        flip_a_bit_of_the_key,
        cut_the_key,
        drop_the_key,
        drop_the_settings,
        make_outputs_private,
        replace_settings_by_a_bomb,
    ],
)
def test_what_is_not_ours_is_derived_anew(
    harm: Callable[[Keys, KeyStore], None],
    own: KeyStore,
    keys: KeyStore,
    derivations: list[Shape],
) -> None:
    whole = keys.verifying(CIRCUIT)
    keys.verifying(circuit_of(WIDE))
    derivations.clear()
    harm(own.verifying(CIRCUIT), keys)
    found = own.verifying(CIRCUIT)
    assert derivations == [SQUARE]
    assert found.vk.read_bytes() == whole.vk.read_bytes()
    assert {**json.loads(found.settings.read_text()), "timestamp": 0} == {
        **json.loads(whole.settings.read_text()),
        "timestamp": 0,
    }


@pytest.mark.slow
def test_key_that_is_never_the_pinned_one_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another build of ezkl, or a table of another release."""
    pin = Pin(known(SQUARE).circuit, "0" * 64, known(SQUARE).proof_size)
    monkeypatch.setattr(verification.keys, "known", lambda _: pin)
    with pytest.raises(UnavailableError, match=f"{known(SQUARE).vk_sha256}, expected 0000"):
        store_in(tmp_path).verifying(CIRCUIT)


@pytest.mark.slow
def test_settings_the_library_should_not_make_are_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def derive_oddly(circuit: Circuit, srs: Path, folder: Path) -> None:
        derive(circuit, srs, folder)
        odd = json.loads((folder / "settings.json").read_text())
        (folder / "settings.json").write_text(json.dumps(odd | {"required_lookups": ["Abs"]}))

    monkeypatch.setattr(verification.keys, "derive", derive_oddly)
    with pytest.raises(UnavailableError, match="required_lookups is not as ezkl"):
        store_in(tmp_path).verifying(CIRCUIT)


def test_unknown_circuit_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    store = store_in(tmp_path / "circuits")
    with pytest.raises(StatementError, match="no circuit is known"):
        store.verifying(circuit_of(Shape(64, 4, 66)))
    assert not store.folder.exists()


def test_failure_of_the_library_on_our_own_circuit_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise native.NativeError("out of memory")

    monkeypatch.setattr(native, "set_up", fails)
    with pytest.raises(UnavailableError, match=r"\(64, 4, 64\) can't be set up: out of memory"):
        store_in(tmp_path).verifying(CIRCUIT)
    assert list(tmp_path.iterdir()) == []


def test_missing_onnx_is_unavailable_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UnavailableError, match=r"need onnx.*pip install 'paris-node\[zk\]'"):
        store_in(tmp_path).verifying(CIRCUIT)


def test_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="keys can't be kept in"):
        store_in(tmp_path / "file").verifying(CIRCUIT)


def test_key_that_is_a_folder_is_unavailable(own: KeyStore) -> None:
    found = own.verifying(CIRCUIT)
    found.vk.unlink()
    found.vk.mkdir()
    with pytest.raises(UnavailableError, match="keys can't be kept in"):
        own.verifying(CIRCUIT)


@pytest.mark.slow
def test_damaged_proving_key_costs_one_proof_and_no_more(own: KeyStore) -> None:
    commitment = prover.commit(layer(), SEED, own)
    statement = offered(layer(), commitment)
    os.truncate(own.proving(CIRCUIT).pk, 5000)
    with pytest.raises(UnavailableError, match="no proof could be made"):
        prover.prove(statement, layer(), SEED, own)
    assert prover.prove(statement, layer(), SEED, own)


@pytest.mark.slow
def test_two_processes_on_one_empty_folder_both_get_the_pinned_key(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from verification.keys import KeyStore;"
        "from verification.circuit import Shape, circuit_of;"
        "print(KeyStore(Path(sys.argv[1])).proving(circuit_of(Shape(64, 1, 64))).pin.vk_sha256)"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "circuits")], stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0].decode().strip() for process in started]
    assert said == [known(NARROW).vk_sha256] * 2
    assert [path.name for path in (tmp_path / "circuits").iterdir()] == [known(NARROW).circuit]


# --- work folders ---------------------------------------------------------------------------------


def test_work_folder_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    with private_folder(tmp_path) as folder:
        assert folder.parent == tmp_path
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "weights").write_text("secret")
    assert list(tmp_path.iterdir()) == []


def test_work_folder_of_a_killed_process_goes_with_the_next_job(tmp_path: Path) -> None:
    left = tmp_path / ".work-left"
    left.mkdir()
    (left / "model.onnx").write_text("weights and salt")
    (tmp_path / "keys").mkdir()
    with private_folder(tmp_path) as folder:
        assert {*tmp_path.iterdir()} == {folder, tmp_path / "keys"}


def test_work_folder_that_is_in_use_stays(tmp_path: Path) -> None:
    with private_folder(tmp_path) as first:
        with private_folder(tmp_path) as second:
            assert {*tmp_path.iterdir()} == {first, second}
        assert {*tmp_path.iterdir()} == {first}


@pytest.mark.slow
def test_no_folder_is_swept_between_being_made_and_being_locked(tmp_path: Path) -> None:
    """Whoever sweeps waits for whoever makes one, and the other way round."""
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    code = (
        "import sys; from pathlib import Path; from verification.keys import private_folder\n"
        "print('ready', flush=True)\n"
        "with private_folder(Path(sys.argv[1])): print('made', flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
        assert list(tmp_path.iterdir()) == []
        os.close(holder)
        assert process.stdout.readline() == "made\n"
    assert process.returncode == 0


def test_link_in_place_of_a_work_folder_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    (tmp_path / ".work-link").symlink_to(tmp_path / "precious")
    (tmp_path / ".work-file").write_text("not a folder")
    with private_folder(tmp_path):
        assert (tmp_path / "precious" / "file").read_text() == "kept"
