"""The program that knows what adapters do: quantises, measures, finds directions, asks for deltas.

Every order names {shared, models, expert, threads, device}: a run's shared folder, the folder of
pretrained parts, a checkpoint's folder.  One of these is its `kind`; paths are strings.

claim   {lora, out}: an adapter's folder, a file to write its integers to (`training.lora.arrays`).
        Says `claimed` {base_loss, adapted_loss, float_loss, rows, seed, scaling, rank, alpha,
        targets, licence, base, sha256, offer, modules: [{name, in, out, rank}]}.
pairs   {probe, targets, pairs}: says for each layer `pairs` {module, captured, norm, weights,
        left, right}: int16 little-endian [pairs, in] and [pairs, out]; then `done` {base_loss,
        rows, seed}.
measure {probe, lora}: says `measured` {base_loss, adapted_loss, rows, seed}.
deltas  {probe, targets, scaling, draws}: says `ask` {module, rows, x: int16 LE [rows, in]} again
        and again, is told `answer` {values: int64 LE [rows, out]}; then `done` {base_loss,
        adapted_loss, rows_used}.
keep    {arrays, folder, cid, offer, targets, rank, alpha, rows, seed, base_loss, adapted_loss,
        licence, probe: folder or None}: writes a bought adapter; says `kept` {sha256}.

Or `failed` {code, error, fix}.  {kind: "cancel"} ends an order at its next message.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from node.errors import ErrorCode
from node.workers.link import Message, ParentGoneError, ParentLink
from node.workers.trainer import device_of

if TYPE_CHECKING:
    from training.experts.loaded import Expert
    from training.lora.layers import ModuleShape
    from training.lora.probe import Probe
    from training.run import Run

logger = logging.getLogger(__name__)

ASK_BYTES: Final = 2**20 - 4096
"""Of one question's or answer's numbers; the rest of a MiB is for the frame around them."""

ASK_ROWS: Final = 64
"""Rows of one question: peers take no more of the widest layer in one frame."""

_X_BYTES: Final = 2
_VALUE_BYTES: Final = 8

Order = Mapping[str, Any]


class _Cancelled(Exception):
    """The node does not want the rest."""


def claim(order: Order, link: ParentLink) -> Iterator[Message]:
    """What an adapter does as it would be sold, and its integers in a file."""
    from training.files import write_file  # noqa: PLC0415
    from training.lora.arrays import pack_arrays  # noqa: PLC0415
    from training.lora.files import check_base, read_lora  # noqa: PLC0415
    from training.lora.losses import probe_loss, with_weights  # noqa: PLC0415
    from training.lora.quantised import dequantise, quantise  # noqa: PLC0415

    run, expert = _base(order)
    info, weights = read_lora(Path(order["lora"]))
    check_base(info, expert.info)
    probe = _probe(run, order["lora"])
    draws, shape = probe.draws(), info.shape
    arrays = quantise(shape, weights)
    sold = dequantise(shape, arrays)
    yield _progress(1, 4)
    base_loss = probe_loss(expert, run.text, draws)
    yield _progress(2, 4)
    losses = []
    for part, values in enumerate((sold, weights), start=3):
        losses.append(
            probe_loss(with_weights(expert, shape, values, info.scaling), run.text, draws)
        )
        yield _progress(part, 4)
    write_file(Path(order["out"]), pack_arrays(info.modules, arrays))
    yield {
        "kind": "claimed",
        "base_loss": base_loss,
        "adapted_loss": losses[0],
        "float_loss": losses[1],
        "rows": len(probe),
        "seed": probe.seed,
        "scaling": info.scaling,
        "rank": info.rank,
        "alpha": info.alpha,
        "targets": info.targets,
        "licence": info.licence,
        "base": info.base.cid,
        "sha256": info.sha256,
        "offer": info.offer,
        "modules": [
            {"name": m.name, "in": m.in_features, "out": m.out_features, "rank": info.rank}
            for m in info.modules
        ],
    }


def pairs(order: Order, link: ParentLink) -> Iterator[Message]:
    """In which directions an adapter's layers would change the loss."""
    from training.lora.losses import probe_loss  # noqa: PLC0415
    from training.lora.pairs import probe_gradients, probe_pairs, weight_norms  # noqa: PLC0415

    run, expert = _base(order)
    layers, probe = _layers(expert, order), _probe(run, order["probe"])
    base_loss = probe_loss(expert, run.text, probe.draws())
    yield _progress(1, 2)
    gradients = probe_gradients(expert, run.text, probe.draws(), layers)
    yield _progress(2, 2)
    norms = weight_norms(expert.net, layers)
    for layer in layers:
        found = probe_pairs(gradients.pop(layer.name), order["pairs"])
        yield {
            "kind": "pairs",
            "module": layer.name,
            "captured": found.captured,
            "norm": norms[layer.name],
            "weights": [pair.weight for pair in found.pairs],
            "left": _int16([pair.inputs for pair in found.pairs]),
            "right": _int16([pair.outputs for pair in found.pairs]),
        }
    yield {"kind": "done", "base_loss": base_loss, "rows": len(probe), "seed": probe.seed}


def measure(order: Order, link: ParentLink) -> Iterator[Message]:
    """A probe's loss without an adapter and with it."""
    from training.lora.losses import probe_loss  # noqa: PLC0415
    from training.lora.train import with_lora  # noqa: PLC0415

    run, expert = _base(order)
    adapted = with_lora(expert, Path(order["lora"]))
    probe = _probe(run, order["probe"])
    base_loss = probe_loss(expert, run.text, probe.draws())
    yield _progress(1, 2)
    yield {
        "kind": "measured",
        "base_loss": base_loss,
        "adapted_loss": probe_loss(adapted, run.text, probe.draws()),
        "rows": len(probe),
        "seed": probe.seed,
    }


def deltas(order: Order, link: ParentLink) -> Iterator[Message]:
    """A few draws' loss with an adapter that answers from elsewhere."""
    from training.lora.deltas import Remote, probe_loss_with  # noqa: PLC0415
    from training.lora.losses import probe_loss  # noqa: PLC0415

    run, expert = _base(order)
    layers = _layers(expert, order)
    draws = _probe(run, order["probe"]).draws(order["draws"])
    base_loss = probe_loss(expert, run.text, draws)
    yield _progress(1, 2)
    widths = {layer.name: layer.out_features for layer in layers}

    def delta(module: str, x: NDArray[np.int16]) -> NDArray[np.int64]:
        return asked(link, module, x, widths[module])

    adapted_loss, rows = probe_loss_with(
        expert, run.text, draws, Remote(layers, order["scaling"], delta)
    )
    yield {
        "kind": "done",
        "base_loss": base_loss,
        "adapted_loss": adapted_loss,
        "rows_used": rows,
    }


def keep(order: Order, link: ParentLink) -> Iterator[Message]:
    """Write a delivered adapter as a folder that can be used like one trained here."""
    from training.lora.arrays import unpack_arrays  # noqa: PLC0415
    from training.lora.files import HeldOutLoss, LoraBase  # noqa: PLC0415
    from training.lora.quantised import Bought, quantised_folder  # noqa: PLC0415

    run, expert = _base(order)
    bought = Bought(
        base=LoraBase.of(expert.info, order["cid"]),
        targets=order["targets"],
        rank=order["rank"],
        alpha=order["alpha"],
        held_out=HeldOutLoss(order["rows"], order["base_loss"], order["adapted_loss"]),
        seed=order["seed"],
        licence=order["licence"],
        offer=order["offer"],
    )
    data = Path(order["arrays"]).read_bytes()
    arrays = unpack_arrays(data, bought.shape.modules(), bought.rank)
    probe = _probe(run, order["probe"]) if order["probe"] else None
    info = quantised_folder(Path(order["folder"]), bought, arrays, probe)
    yield {"kind": "kept", "sha256": info.sha256}


Work = Callable[[Order, ParentLink], Iterator[Message]]
WORK: Final[Mapping[str, Work]] = {
    work.__name__: work for work in (claim, pairs, measure, deltas, keep)
}


def asked(link: ParentLink, module: str, x: NDArray[np.int16], width: int) -> NDArray[np.int64]:
    """The node's answer to a layer's inputs, asked in parts that fit a frame.

    Args:
        link: to the node.
        module: the layer's name.
        x: [T, in].
        width: of the answer.

    Returns:
        [T, out].

    Raises:
        ProbeError: an answer of another length.
        _Cancelled: the node wants no more.
    """
    from training.errors import ProbeError  # noqa: PLC0415

    most = ASK_BYTES // max(_X_BYTES * x.shape[1], _VALUE_BYTES * width)
    step = max(1, min(ASK_ROWS, most))
    parts = []
    for start in range(0, len(x), step):
        rows = x[start : start + step]
        link.send({"kind": "ask", "module": module, "rows": len(rows), "x": _int16([rows])})
        news = link.receive()
        if news["kind"] != "answer":
            raise _Cancelled
        values = news["values"]
        expected = _VALUE_BYTES * len(rows) * width
        if not isinstance(values, bytes) or len(values) != expected:
            got = len(values) if isinstance(values, bytes) else type(values).__name__
            raise ProbeError(f"layer {module}: an answer of {got} bytes, expected {expected}")
        parts.append(np.frombuffer(values, dtype="<i8").reshape(len(rows), width))
    return np.concatenate(parts).astype(np.int64)


def carry_out(link: ParentLink, order: Order) -> None:
    """Do one order and say how it went."""
    from training.errors import TrainingError  # noqa: PLC0415

    try:
        for message in WORK[order["kind"]](order, link):
            link.send(message)
            if (news := link.poll()) is not None and news["kind"] == "cancel":
                raise _Cancelled
    except _Cancelled:
        logger.info("order cancelled")
    except (TrainingError, OSError, MemoryError) as error:
        logger.exception("order failed")
        code, fix = _means(error)
        why = str(error) or "out of memory"
        link.send({"kind": "failed", "code": code.label, "error": f"{why}.", "fix": fix})


def _means(error: Exception) -> tuple[ErrorCode, str]:
    """What an error is called, and what helps."""
    from training import errors  # noqa: PLC0415

    table: tuple[tuple[type[Exception] | tuple[type[Exception], ...], ErrorCode, str], ...] = (
        (errors.ModelMissingError, ErrorCode.NOT_FOUND, ""),
        (errors.ConfigError, ErrorCode.USAGE, ""),
        (errors.CheckpointError, ErrorCode.VERIFICATION_FAILED, "paris-node experts pull CID"),
        (
            (errors.LoraError, errors.ProbeError, errors.TensorFileError),
            ErrorCode.VERIFICATION_FAILED,
            "",
        ),
        ((errors.TooLargeError, MemoryError), ErrorCode.RESOURCE, "free some memory"),
        (OSError, ErrorCode.RESOURCE, "free some space"),
    )
    found = (entry[1:] for entry in table if isinstance(error, entry[0]))
    return next(found, (ErrorCode.FAILED, ""))


def _base(order: Order) -> "tuple[Run, Expert]":
    from training.experts.loaded import load_expert  # noqa: PLC0415
    from training.run import load_run  # noqa: PLC0415

    run = load_run(Path(order["shared"]), Path(order["models"]))
    return run, load_expert(Path(order["expert"]), run, device_of(order["device"]))


def _layers(expert: "Expert", order: Order) -> "tuple[ModuleShape, ...]":
    from training.lora.layers import adaptable_layers  # noqa: PLC0415

    return adaptable_layers(expert.info.preset, order["targets"])


def _probe(run: "Run", folder: str) -> "Probe":
    from training.lora.probe import read_probe  # noqa: PLC0415

    return read_probe(Path(folder), run.facts.latent)


def _progress(part: int, parts: int) -> Message:
    return {"kind": "progress", "part": part, "parts": parts}


def _int16(rows: list[NDArray[np.int16]]) -> bytes:
    return b"".join(row.astype("<i2").tobytes() for row in rows)


def main() -> None:
    """Serve the node on the descriptor given as the first argument, until it hangs up."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    link = ParentLink(int(sys.argv[1]))
    os.nice(1)
    try:
        while True:
            order = link.receive()
            if order["kind"] in WORK:
                _prepare_torch(int(str(order["threads"])))
                carry_out(link, order)
    except ParentGoneError:
        logger.info("the node is gone")
    logging.shutdown()
    os._exit(0)  # nothing is left to do; unloading torch would take a second more


def _prepare_torch(threads: int) -> None:
    import torch  # noqa: PLC0415

    torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
