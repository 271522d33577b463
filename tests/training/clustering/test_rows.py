from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from training.clustering.rows import (
    ChainedRows,
    MemoryRows,
    Rows,
    cut,
    open_rows,
    open_spool,
    pieces,
)
from training.errors import DataError, TensorFileError
from training.tensors import pack_tensors

TABLE = torch.randn(23, 3, generator=torch.Generator().manual_seed(0)).half().float()


def in_memory(_: Path) -> Rows:
    return MemoryRows(TABLE)


def as_npy(folder: Path, dtype: str = "<f4") -> Rows:
    np.save(folder / "rows.npy", TABLE.numpy().astype(dtype))
    return open_rows(folder / "rows.npy")


def as_half_npy(folder: Path) -> Rows:
    return as_npy(folder, "<f2")


def as_safetensors(folder: Path) -> Rows:
    tensors = {"caption": torch.arange(23), "features": TABLE.half(), "zeros": torch.zeros(5)}
    (folder / "rows.safetensors").write_bytes(pack_tensors(tensors))
    return open_rows(folder / "rows.safetensors")


def as_spool(folder: Path) -> Rows:
    paths = []
    for number, batch in enumerate(torch.split(TABLE, [10, 1, 12])):
        paths.append(folder / f"{number}.safetensors")
        paths[-1].write_bytes(pack_tensors({"features": batch}))
    return open_spool(paths)


Make = Callable[[Path], Rows]
every_kind = pytest.mark.parametrize(
    "make", [in_memory, as_npy, as_half_npy, as_safetensors, as_spool]
)


@every_kind
def test_any_piece_can_be_read(make: Make, tmp_path: Path) -> None:
    rows = make(tmp_path)
    assert (len(rows), rows.width) == (23, 3)
    for start, stop in ((0, 23), (0, 0), (4, 5), (9, 12), (22, 23), (20, 99), (23, 30)):
        found = rows.read(start, stop)
        assert found.dtype == torch.float32
        assert torch.equal(found, TABLE[start:stop]), (start, stop)


@every_kind
def test_parts_are_rows_themselves(make: Make, tmp_path: Path) -> None:
    part = make(tmp_path).part(5, 21)
    assert len(part) == 16
    assert torch.equal(part.read(0, 16), TABLE[5:21])
    assert torch.equal(part.part(4, 7).read(1, 3), TABLE[10:12])
    assert len(part.part(3, 3)) == 0


@every_kind
@pytest.mark.parametrize("size", [1, 7, 23, 100])
def test_blocks_and_pieces_hold_every_row_once_in_order(
    make: Make, size: int, tmp_path: Path
) -> None:
    rows = make(tmp_path)
    blocks = [block.read(0, len(block)) for block in cut(rows, size)]
    assert torch.equal(torch.cat(blocks), TABLE)
    assert max(map(len, blocks)) <= size
    assert torch.equal(torch.cat(list(pieces(rows, size))), TABLE)


def test_a_default_block_is_bounded_in_bytes() -> None:
    wide = MemoryRows(torch.zeros(40, 2**20))
    assert [len(block) for block in cut(wide)] == [16, 16, 8]


def test_a_part_in_memory_does_not_hold_the_rest() -> None:
    part = MemoryRows(torch.zeros(1000, 4)).part(3, 5)
    assert part.tensor.untyped_storage().nbytes() == 2 * 4 * 4


@pytest.mark.parametrize("tensor", [torch.zeros(3), torch.zeros(3, 3, dtype=torch.int64)])
def test_other_tensors_are_no_rows(tensor: Tensor) -> None:
    with pytest.raises(DataError, match="expected floating-point rows"):
        MemoryRows(tensor)


def test_sources_of_different_widths_do_not_chain() -> None:
    with pytest.raises(DataError, match=r"widths \[2, 3\]"):
        ChainedRows((MemoryRows(torch.zeros(1, 2)), MemoryRows(torch.zeros(1, 3))))
    with pytest.raises(DataError, match="expected one width"):
        ChainedRows(())


def test_a_file_cut_short_after_it_was_opened_is_named(tmp_path: Path) -> None:
    rows = as_npy(tmp_path)
    path = tmp_path / "rows.npy"
    path.write_bytes(path.read_bytes()[:-20])
    assert torch.equal(rows.read(0, 21), TABLE[:21])
    with pytest.raises(DataError, match=r"rows\.npy: ends within row 21, expected 23 rows"):
        rows.read(20, 23)


def test_a_file_cut_short_before_is_refused(tmp_path: Path) -> None:
    for make, name in ((as_npy, "rows.npy"), (as_safetensors, "rows.safetensors")):
        make(tmp_path)
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(TensorFileError, match=name):
            open_rows(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    rows = as_npy(tmp_path)
    (tmp_path / "rows.npy").unlink()
    with pytest.raises(DataError, match=r"rows\.npy: cannot be read"):
        rows.read(0, 1)
    for name in ("rows.npy", "rows.safetensors"):
        with pytest.raises((DataError, TensorFileError), match="cannot be read"):
            open_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((3, 2)), "got float64"),
        (np.zeros((3, 2), dtype=">f4"), "got >f4"),
        (np.zeros(3, dtype="<f4"), r"got F32 \[3\]"),
        (np.zeros((0, 2), dtype="<f4"), "0 rows"),
        (np.asfortranarray(np.zeros((3, 2), dtype="<f4")), "Fortran"),
        (np.array([[{}]], dtype=object), "got object"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, reason: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises((DataError, TensorFileError), match=reason):
        open_rows(tmp_path / "x.npy")


def test_what_is_no_npy_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"no numpy here, but long enough for a magic")
    with pytest.raises(DataError, match=r"x\.npy: not a \.npy file"):
        open_rows(tmp_path / "x.npy")


def test_a_tensor_of_another_name_is_not_found(tmp_path: Path) -> None:
    as_safetensors(tmp_path)
    with pytest.raises(TensorFileError, match="has no tensor 'latents', it holds caption, feat"):
        open_rows(tmp_path / "rows.safetensors", "latents")
    with pytest.raises(DataError, match=r"got I64 \[23\]"):
        open_rows(tmp_path / "rows.safetensors", "caption")
