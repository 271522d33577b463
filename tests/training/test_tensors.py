import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training import tensors as tensors_module
from training.errors import TensorFileError
from training.tensors import (
    MAX_HEADER_BYTES,
    MAX_RANK,
    MAX_TENSORS,
    TensorSpec,
    check_header,
    pack_tensors,
    read_header,
    read_tensors,
    spec_of,
)

HERE = Path("some.safetensors")
TENSORS = {
    "b.weight": torch.arange(6.0).reshape(2, 3),
    "a": torch.tensor([1, 2], dtype=torch.int64),
}
SCHEMA = {name: spec_of(tensor) for name, tensor in TENSORS.items()}


def file_of(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **changes}}


def test_what_is_packed_reads_back_and_the_library_agrees(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack_tensors(TENSORS))
    ours, theirs = read_tensors(path, SCHEMA), safetensors.torch.load(path.read_bytes())
    for name, tensor in TENSORS.items():
        assert torch.equal(ours[name], tensor)
        assert torch.equal(theirs[name], tensor)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True),
        st.tuples(
            st.sampled_from([torch.float32, torch.float16, torch.int32, torch.uint8, torch.bool]),
            st.lists(st.integers(0, 3), max_size=4),
        ),
        max_size=5,
    )
)
def test_header_of_packed_tensors_says_what_they_are(
    described: dict[str, tuple[torch.dtype, list[int]]],
) -> None:
    tensors = {name: torch.ones(shape, dtype=dtype) for name, (dtype, shape) in described.items()}
    assert check_header(HERE, pack_tensors(tensors)) == {n: spec_of(t) for n, t in tensors.items()}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "too short"),
        (b"1234567", "too short"),
        (file_of(b"{}", length=3), "header of 3 bytes in a file of 10"),
        (file_of(b" " * (MAX_HEADER_BYTES + 1)), "header of 262145 bytes"),
        (file_of(b"{}", length=2**63), "header of 9223372036854775808 bytes"),
        (file_of(b"{"), "not JSON"),
        (file_of(b"\xff\xff"), "not JSON"),
        (file_of(b"[" * 50_000 + b"]" * 50_000), "not JSON"),
        (file_of(b"[]"), "not a JSON object"),
        (file_of(b'{"a":1,"a":1}'), "twice"),
        (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
        (file_of({"../../etc/x": one()["a"]}, b"1234"), "not allowed"),
        (file_of({"a..b": one()["a"]}, b"1234"), "not allowed"),
        (file_of({"": one()["a"]}, b"1234"), "not allowed"),
        (file_of({"a": 3}), "exactly dtype"),
        (file_of(one(more=1), b"1234"), "exactly dtype"),
        (file_of(one(dtype="F8"), b"1234"), "dtype"),
        (file_of(one(dtype=["U8"]), b"1234"), "dtype"),
        (file_of(one(shape=[-4]), b"1234"), "sizes"),
        (file_of(one(shape=[4.0]), b"1234"), "sizes"),
        (file_of(one(shape=[True]), b"1234"), "sizes"),
        (file_of(one(shape=4), b"1234"), "sizes"),
        (file_of(one(shape=[2**41]), b"1234"), "sizes"),
        (file_of(one(shape=[1] * MAX_RANK + [4]), b"1234"), "rank 9"),
        (file_of(one(data_offsets=[0, 4, 4]), b"1234"), "two numbers"),
        (file_of(one(data_offsets=[0, 3]), b"123"), "3 bytes for a U8"),
        (file_of(one(data_offsets=[4, 0]), b"1234"), "-4 bytes"),
        (file_of(one(data_offsets=[1, 5]), b"12345"), "starts at 1"),
        (file_of(one(), b"12345"), "5 bytes of data"),
        (file_of(one(), b"123"), "3 bytes of data"),
        (file_of({**one(), "b": one()["a"]}, b"1234"), "starts at 0"),
    ],
)
def test_malformed_file_is_refused_with_its_name_and_reason(data: bytes, reason: str) -> None:
    with pytest.raises(TensorFileError, match=reason) as caught:
        check_header(HERE, data)
    assert caught.value.path == HERE
    assert str(caught.value).startswith("some.safetensors: ")


def test_header_length_tensor_count_and_rank_are_allowed_up_to_the_limit() -> None:
    assert check_header(HERE, file_of(b"{}" + b" " * (MAX_HEADER_BYTES - 2))) == {}
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    full = {f"t{i}": entry for i in range(MAX_TENSORS)}
    assert len(check_header(HERE, file_of(full))) == MAX_TENSORS
    with pytest.raises(TensorFileError, match="2001 tensors"):
        check_header(HERE, file_of({**full, "more": entry}))
    assert check_header(HERE, file_of(one(shape=[1] * (MAX_RANK - 1) + [4]), b"1234"))


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_header_or_a_typed_error(data: bytes) -> None:
    try:
        check_header(HERE, data)
    except TensorFileError:
        return
    assert len(data) >= 10


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 40))
def test_damaged_file_never_reads_as_another_schema(
    tmp_path: Path, position: int, value: int, cut: int
) -> None:
    data = bytearray(pack_tensors(TENSORS))
    data[position % len(data)] = value
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(data[: len(data) - cut]))
    try:
        found = read_tensors(path, SCHEMA)
    except TensorFileError:
        return
    assert {name: spec_of(tensor) for name, tensor in found.items()} == SCHEMA


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({**SCHEMA, "c": TensorSpec("F32", (1,))}, "lacks tensor c"),
        ({"a": SCHEMA["a"], "z": TensorSpec("F32", (99,))}, "lacks tensor z"),
        ({**SCHEMA, "a": TensorSpec("I64", (1, 2))}, r"expected I64 \[1, 2\], got I64 \[2\]"),
        ({**SCHEMA, "a": TensorSpec("F64", (2,))}, "expected F64"),
    ],
)
def test_file_of_another_schema_is_refused(
    tmp_path: Path, schema: dict[str, TensorSpec], reason: str
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack_tensors(TENSORS))
    with pytest.raises(TensorFileError, match=reason):
        read_tensors(path, schema)


def test_extra_tensor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack_tensors(TENSORS))
    with pytest.raises(TensorFileError, match="unexpected tensor a"):
        read_tensors(path, {"b.weight": SCHEMA["b.weight"]})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_unless_allowed(tmp_path: Path, bad: float) -> None:
    tensors = {"w": torch.tensor([1.0, bad])}
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack_tensors(tensors))
    schema = {"w": spec_of(tensors["w"])}
    with pytest.raises(TensorFileError, match="w holds NaN or infinite"):
        read_tensors(path, schema)
    assert len(read_tensors(path, schema, must_be_finite=False)["w"]) == 2


def test_oversized_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.truncate(50 * 2**30)  # sparse: reading it would not fit in memory
    with pytest.raises(TensorFileError, match="expected at most"):
        read_tensors(path, SCHEMA)


def test_missing_file_and_symbolic_link_are_typed_errors(tmp_path: Path) -> None:
    with pytest.raises(TensorFileError, match="cannot be read"):
        read_tensors(tmp_path / "none", SCHEMA)
    real = tmp_path / "x.safetensors"
    real.write_bytes(pack_tensors(TENSORS))
    (tmp_path / "link").symlink_to(real)
    with pytest.raises(TensorFileError, match="cannot be read"):
        read_tensors(tmp_path / "link", SCHEMA)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "x" * 300])
def test_name_that_could_not_be_read_back_is_not_written(name: str) -> None:
    with pytest.raises(ValueError, match="cannot store"):
        pack_tensors({name: torch.zeros(1)})


def test_header_is_read_and_checked_without_the_data(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(pack_tensors({"x": torch.full((2, 3), torch.nan), "y": torch.zeros(1)}))
    assert read_header(path) == {"x": TensorSpec("F32", (2, 3)), "y": TensorSpec("F32", (1,))}
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TensorFileError, match="27 bytes of data, the header describes 28"):
        read_header(path)


def test_only_the_chosen_tensors_are_read(tmp_path: Path) -> None:
    """NaN in the others is not seen: they stay on the disk."""
    tensors = {"a": torch.tensor([float("nan")]), "b": torch.arange(4.0), "c": torch.ones(0)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack_tensors(tensors))
    schema = {name: spec_of(tensor) for name, tensor in tensors.items()}
    assert read_header(path) == schema
    found = read_tensors(path, schema, only={"b", "c"})
    assert set(found) == {"b", "c"}
    assert torch.equal(found["b"], tensors["b"])
    with pytest.raises(TensorFileError, match="tensor a holds NaN"):
        read_tensors(path, schema)
    with pytest.raises(TensorFileError, match="unexpected tensor a"):
        read_tensors(path, {"b": schema["b"], "c": schema["c"]}, only={"b"})


def test_file_that_shrinks_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack_tensors(TENSORS))
    checked = tensors_module._check_schema

    def shrink(path: Path, *rest: Any) -> None:
        checked(path, *rest)
        os.truncate(path, path.stat().st_size - 1)

    monkeypatch.setattr(tensors_module, "_check_schema", shrink)
    with pytest.raises(TensorFileError, match="grew shorter"):
        read_tensors(path, SCHEMA)
