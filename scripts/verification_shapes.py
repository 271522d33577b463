"""Parts of bench_verification: one layer of each shape, and whole adapters, as a node does them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from training.lora.layers import adaptable_layers
from verification.circuit import Shape, circuit_of
from verification_bench import Adapter, Module, derive_keys, plain
from verification_meter import Figures
from verification_spawn import medians, run_alone, say

RANK = 4


def measure_shape(shape: Shape, folder: Path, repeats: int, rounds: int) -> Figures:
    """Everything about one shape.

    Args:
        shape: of A and B.
        folder: for keys and an adapter of one layer; exists.
        repeats: fresh processes each figure is a median of.
        rounds: verifications of the warm process.
    """
    say(f"shape {shape}: set up, commit, prove, verify")
    circuit, place = circuit_of(shape), folder / "adapter"
    keys, setups = folder / "keys", []
    for _ in range(repeats):
        shutil.rmtree(keys, ignore_errors=True)
        setups.append(derive_keys(keys, [plain(shape)]))
    adapter = Adapter.make(place, keys, [("layer", *plain(shape))])
    commits = [adapter.commit() for _ in range(repeats)]
    proofs = [adapter.prove() for _ in range(repeats)]
    verifies = [adapter.verify() for _ in range(repeats)]
    command = ("-m", "verification", "verify", "statement-0.json", "proof-0", "--keys", "KEYS")
    paths = {name: str(place / name) for name in command[3:5]} | {"KEYS": str(keys)}
    by_command = [run_alone([paths.get(word, word) for word in command]) for _ in range(repeats)]
    python = [run_alone(["-c", "pass"]) for _ in range(repeats)]
    return {
        "shape": plain(shape),
        "logrows": circuit.logrows,
        "columns": circuit.columns,
        "salt": (circuit.salt_rows, circuit.salt_columns),
        "repeats": repeats,
        "set_up": medians(setups),
        "commit": medians(commits),
        "prove": medians(proofs),
        "verify_once": medians(verifies),
        "warm": adapter.verify(rounds),
        "command": medians([_times(one.cpu_s, one.wall_s, one.rss_mb) for one in by_command]),
        "python_wall_s": medians([_times(one.cpu_s, one.wall_s, 0) for one in python])["wall_s"],
    }


def whole_adapters() -> dict[str, list[Module]]:
    """What is offered as a whole: a layer of each block of XL/2, and all of the bundled run's."""
    attention = [
        layer for layer in adaptable_layers("XL/2", "attention") if layer.name.endswith("1.to_q")
    ]
    tiny = adaptable_layers("fashion-tiny", "attention+ff")
    return {
        "XL/2, attn1.to_q": [(m.name, m.in_features, RANK, m.out_features) for m in attention],
        "fashion-tiny, all": [(m.name, m.in_features, RANK, m.out_features) for m in tiny],
    }


def measure_adapter(name: str, modules: Sequence[Module], folder: Path) -> Figures:
    """One adapter on its way from its maker to a user, each with keys of its own; no network.

    Args:
        name: for the table.
        modules: its layers.
        folder: is made.
    """
    say(f"adapter {name}: {len(modules)} layers, its maker, then a user")
    at_maker = Adapter.make(folder / "adapter", folder / "maker", modules)
    at_user = Adapter(at_maker.folder, folder / "user")
    shapes = sorted({module[1:] for module in modules})
    steps = {
        "maker_keys": derive_keys(at_maker.keys, shapes),
        "commit": at_maker.commit(),
        "prove": at_maker.prove(),
        "user_keys": derive_keys(at_user.keys, shapes),
        "verify": at_user.verify(),
    }
    return {
        "name": name,
        "modules": len(modules),
        **steps,
        **at_maker.wire(),
        "whole_s": sum(step["start_wall_s"] for step in steps.values()),
    }


def _times(cpu_s: float, wall_s: float, rss_mb: float) -> Figures:
    return {"cpu_s": cpu_s, "wall_s": wall_s, "rss_mb": rss_mb}
