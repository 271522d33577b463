import pytest
import torch

from training.experts.precision import (
    WORTH_WIDTH,
    DeviceFacts,
    choose_precision,
    cpu_facts,
    describe_device,
)

XEON = "model name\t: Intel(R) Xeon(R) 8488C\nflags\t\t: fpu avx2 avx512_bf16 amx_bf16\n"
WIDE, NARROW = WORTH_WIDTH, WORTH_WIDTH - 1


@pytest.mark.parametrize(
    ("facts", "width", "name", "reason"),
    [
        (DeviceFacts("cuda", "an H100", True), NARROW, "bf16", "an H100 computes it in hardware"),
        (DeviceFacts("cuda", "Tesla T4", False), WIDE, "fp32", "Tesla T4 has no bf16 in hardware"),
        (DeviceFacts("mps", "mps", False), WIDE, "fp32", "not tried on mps"),
        (DeviceFacts("cpu", "an EPYC", False), WIDE, "fp32", "an EPYC has no bf16 in hardware"),
        (DeviceFacts("cpu", "a Xeon", True), WIDE, "bf16", "a Xeon computes it in hardware"),
        (DeviceFacts("cpu", "a Xeon", True), NARROW, "fp32", "layers 383 wide are faster in it"),
    ],
)
def test_precision_follows_from_what_the_device_can_do(
    facts: DeviceFacts, width: int, name: str, reason: str
) -> None:
    chosen = choose_precision("auto", facts, width)
    assert chosen.name == name
    assert chosen.reason.startswith(f"{name} because")
    assert reason in chosen.reason


def test_precision_that_is_set_is_used_and_its_cost_is_said() -> None:
    slow, fast = DeviceFacts("cpu", "an EPYC", False), DeviceFacts("cuda", "an H100", True)
    assert choose_precision("bf16", slow, WIDE).name == "bf16"
    assert (
        choose_precision("bf16", slow, WIDE).reason
        == "bf16 as set, though an EPYC only imitates it"
    )
    assert choose_precision("fp32", fast, WIDE).reason == "fp32 as set"
    assert choose_precision("fp32", slow, WIDE).reason == "fp32 as set"


def test_bf16_of_a_cpu_is_read_from_its_flags() -> None:
    assert cpu_facts(XEON) == ("Intel(R) Xeon(R) 8488C", True)
    assert cpu_facts(XEON.replace(" amx_bf16", "")) == ("Intel(R) Xeon(R) 8488C", False)
    assert cpu_facts("") == ("this CPU", False)


def test_this_machine_is_described_alike_every_time() -> None:
    assert describe_device(torch.device("cpu")) == describe_device(torch.device("cpu"))
    assert describe_device(torch.device("cpu")).kind == "cpu"
