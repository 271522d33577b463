"""Layers by the preset's name alone: the same as the net's own, and no torch for them."""

import subprocess
import sys
from pathlib import Path

import pytest

from training.config import PRESETS
from training.errors import ConfigError
from training.experts.nets import NetShape
from training.lora.layers import TARGETS, adaptable_layers
from training.lora.modules import AdapterShape

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("targets", list(TARGETS))
@pytest.mark.parametrize("preset", list(PRESETS))
def test_layers_are_those_of_the_net_in_its_order(preset: str, targets: str) -> None:
    net = NetShape(preset, (16, 4, 4), "minilm-l6")
    assert adaptable_layers(preset, targets) == AdapterShape(net, targets, 1).modules()


def test_unknown_names_are_refused_naming_the_known() -> None:
    with pytest.raises(ConfigError, match="known: fashion-tiny"):
        adaptable_layers("huge", "attention")
    with pytest.raises(ConfigError, match=r"known: attention, attention\+ff"):
        adaptable_layers("XL/2", "all")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["training.lora.layers", "training.lora.arrays"])
def test_a_node_reads_them_without_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
