import itertools

import pytest
import torch

from training.experts.precision import (
    WORTH,
    DeviceFacts,
    bf16_speedup,
    choose_precision,
    cpu_facts,
    describe_device,
)

ZEN4 = "model name\t: AMD EPYC 9354\nflags\t\t: fpu avx2 avx512_bf16\n"
GRAVITON = "Features\t: fp asimd bf16\n"


@pytest.mark.parametrize(
    ("facts", "name", "reason"),
    [
        (DeviceFacts("cuda", "NVIDIA H100", True), "bf16", "NVIDIA H100 computes it in hardware"),
        (DeviceFacts("cuda", "Tesla T4", False), "fp32", "Tesla T4 has no bf16 in hardware"),
        (DeviceFacts("mps", "mps", False), "fp32", "not tried on mps"),
        (DeviceFacts("cpu", "an EPYC", False), "fp32", "an EPYC has neither avx512_bf16 nor amx"),
        (DeviceFacts("cpu", "a Xeon", True, WORTH), "bf16", "measured 1.10x as fast on a Xeon"),
        (DeviceFacts("cpu", "a Xeon", True, WORTH - 0.01), "fp32", "measured 1.09x as fast"),
    ],
)
def test_precision_follows_from_what_the_device_can_do(
    facts: DeviceFacts, name: str, reason: str
) -> None:
    chosen = choose_precision("auto", facts)
    assert chosen.name == name
    assert chosen.reason.startswith(f"{name} because")
    assert reason in chosen.reason


def test_precision_that_is_set_is_used_and_its_cost_is_said() -> None:
    slow, fast = DeviceFacts("cpu", "an EPYC", False), DeviceFacts("cuda", "an H100", True)
    assert choose_precision("bf16", slow).name == "bf16"
    assert choose_precision("bf16", slow).reason == "bf16 as set, though an EPYC only imitates it"
    assert choose_precision("fp32", fast).reason == "fp32 as set"
    assert choose_precision("fp32", slow).reason == "fp32 as set"


def test_bf16_of_a_cpu_is_read_from_its_flags() -> None:
    assert cpu_facts(ZEN4) == ("AMD EPYC 9354", True)
    assert cpu_facts(ZEN4.replace("avx512_bf16", "avx512f")) == ("AMD EPYC 9354", False)
    assert cpu_facts(GRAVITON) == ("this CPU", True)
    assert cpu_facts("") == ("this CPU", False)


def test_speed_is_the_best_of_several_tries() -> None:
    seconds = itertools.chain.from_iterable(
        [(0.0, plain), (0.0, short)] for plain, short in [(9, 1), (4, 2), (6, 8), (6, 8), (6, 8)]
    )
    clock = itertools.chain.from_iterable(seconds)
    assert bf16_speedup(16, lambda: float(next(clock))) == 4.0


def test_this_machine_is_described_and_measured_only_if_it_has_bf16() -> None:
    facts = describe_device(torch.device("cpu"), width=16)
    assert facts.kind == "cpu"
    assert (facts.bf16_speedup is not None) == facts.has_bf16
