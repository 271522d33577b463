"""The settings a circuit is checked under are those we know, or none."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.support.proofs import NARROW, SQUARE, WIDE
from verification import native
from verification.circuit import Shape, circuit_of, onnx_bytes
from verification.errors import UnavailableError
from verification.settings import check_settings, expected_settings

CIRCUIT = circuit_of(SQUARE)


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "settings.json"
    file.write_text(json.dumps(expected_settings(CIRCUIT) | {"timestamp": 1} | changes))
    return file


@pytest.mark.parametrize(
    "shape", [SQUARE, NARROW, WIDE, Shape(128, 3, 512), Shape(256, 15, 64)], ids=str
)
def test_settings_the_library_makes_are_the_expected_ones(shape: Shape, tmp_path: Path) -> None:
    circuit = circuit_of(shape)
    model, settings = tmp_path / "model", tmp_path / "settings"
    model.write_bytes(onnx_bytes(circuit))
    native.settings_and_circuit(model, circuit.logrows, settings, tmp_path / "compiled")
    check_settings(settings, circuit)
    found = json.loads(settings.read_text())
    assert found.pop("timestamp") > 0
    assert found == expected_settings(circuit)


def test_when_they_were_made_does_not_matter(tmp_path: Path) -> None:
    check_settings(written(tmp_path, timestamp=10**12), CIRCUIT)


@pytest.mark.parametrize("name", expected_settings(CIRCUIT))
def test_any_other_value_of_any_field_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        UnavailableError, match=rf"settings of circuit \(64, 4, 64\): {name} is not"
    ):
        check_settings(written(tmp_path, **{name: "other"}), CIRCUIT)


TRUE_JSON = json.dumps(expected_settings(CIRCUIT)).encode()
RUN_ARGS: Any = expected_settings(CIRCUIT)["run_args"]


@pytest.mark.parametrize("name", RUN_ARGS)
def test_any_other_value_of_any_argument_is_refused(name: str, tmp_path: Path) -> None:
    file = written(tmp_path, run_args={**RUN_ARGS, name: math.nan})
    with pytest.raises(UnavailableError, match="run_args"):
        check_settings(file, CIRCUIT)


def test_a_field_more_or_less_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="backdoor"):
        check_settings(written(tmp_path, backdoor=1), CIRCUIT)
    plain = expected_settings(CIRCUIT)
    del plain["required_lookups"]
    (tmp_path / "less").write_text(json.dumps(plain))
    with pytest.raises(UnavailableError, match="required_lookups"):
        check_settings(tmp_path / "less", CIRCUIT)


def test_settings_of_another_circuit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="einsum_params"):
        check_settings(written(tmp_path), circuit_of(NARROW))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b" " * 70_000 + TRUE_JSON]
)
def test_files_that_are_no_settings_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "settings").write_bytes(data)
    with pytest.raises(UnavailableError, match="settings of circuit"):
        check_settings(tmp_path / "settings", CIRCUIT)


def test_settings_without_a_moment_are_those_of_the_circuit(tmp_path: Path) -> None:
    (tmp_path / "settings").write_bytes(TRUE_JSON)
    check_settings(tmp_path / "settings", CIRCUIT)


def test_missing_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="No such file"):
        check_settings(tmp_path / "none", CIRCUIT)
