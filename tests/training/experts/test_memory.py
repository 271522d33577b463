from pathlib import Path

import pytest
import torch

from training.errors import TooLargeError
from training.experts.memory import available_bytes, fitting_batch, sample_bytes
from training.experts.nets import NetShape, build_net

MIB = 2**20


def test_batch_is_halved_until_it_fits_four_fifths_of_what_is_left() -> None:
    def fit(available: int) -> int:
        return fitting_batch(32, each=10 * MIB, weights=100 * MIB, available=available * MIB)

    assert fit(300 + 400) == 32  # 320 MiB of 400
    assert fit(300 + 399) == 16
    assert fit(300 + 30) == 2
    assert fit(300 + 10) == 1


def test_sample_that_cannot_fit_is_refused_with_the_mend() -> None:
    with pytest.raises(
        TooLargeError, match=r"about 3\.0 GiB .* 2\.0 GiB are available: .* smaller"
    ):
        fitting_batch(32, each=1500 * MIB, weights=512 * MIB, available=2048 * MIB)


def test_one_sample_takes_what_its_forward_keeps() -> None:
    small = build_net(NetShape("fashion-tiny", (16, 2, 2), "minilm-l6"), seed=0)
    kept = sample_bytes(small, (16, 2, 2), 384)
    more = sample_bytes(small, (16, 4, 4), 384)  # four times the tokens
    weights = sum(p.nbytes for p in small.parameters())
    assert 50_000 < kept < more
    assert more - kept > 4 * 12 * 64 * 4 * 4  # layers x 12 new tokens x width x bytes x tensors
    assert kept < weights  # and the weights themselves do not count
    assert all(p.grad is None for p in small.parameters())
    assert torch.is_grad_enabled()


def test_available_memory_is_the_least_of_machine_and_control_groups(tmp_path: Path) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    group = cgroups / "system.slice" / "node.service"
    (proc / "self").mkdir(parents=True)
    group.mkdir(parents=True)
    assert available_bytes(proc, cgroups) is None  # a system that does not say
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert available_bytes(proc, cgroups) == 4000 * 1024
    (proc / "self" / "cgroup").write_text("0::/system.slice/node.service\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("7\n")
    assert available_bytes(proc, cgroups) == 4000 * 1024
    (group.parent / "memory.max").write_text("1000000\n")
    (group.parent / "memory.current").write_text("400000\n")
    assert available_bytes(proc, cgroups) == 600_000  # a limit further up binds as well
    (group / "memory.max").write_text("5\n")
    assert available_bytes(proc, cgroups) == 0
