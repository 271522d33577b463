"""Jobs of child processes of bench_verification: what a node does, through the node's own doors.

    python scripts/verification_ours.py JOB ARGUMENTS    prints one line of JSON

A folder holds one adapter of random weights: delivery, sheet.json, and for each module a statement
and a proof. Libraries are loaded before the clock starts; the whole process is timed by its parent.
"""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from verification.circuit import Shape, circuit_of
from verification.jobs import carry_out, plain_of, statement_of
from verification.statement import DELTA, OFFER, sheet_nonce
from verification_meter import Figures, Meter, do_job, middle

BASE, OFFER_ID = "the bench's base", "the bench's offer"
DELIVERY, SHEET = "delivery", "sheet.json"
USER_BOUND = 2**11 - 1
Module = tuple[str, int, int, int]
"""Name, inputs, rank, outputs."""


def prepare(folder: str, modules: Sequence[Module]) -> Figures:
    """Make an adapter of random weights; nothing is measured."""
    import numpy as np  # noqa: PLC0415  not in processes that only verify

    from verification.adapter import QuantisedModule, pack_delivery  # noqa: PLC0415

    generator = np.random.default_rng(0)
    found = []
    for name, inputs, rank, outputs in modules:
        a = generator.normal(0, 80, (inputs, rank)).round().astype(np.int16)
        b = generator.normal(0, 80, (rank, outputs)).round().astype(np.int16)
        found.append(QuantisedModule(name, a, b))
    place = Path(folder)
    place.mkdir(parents=True)
    (place / DELIVERY).write_bytes(pack_delivery(bytes(range(32)), found))
    _write_sheet(place, [dict(zip(_FIELDS, module, strict=True)) for module in modules])
    return {}


def set_up(keys: str, shapes: Sequence[tuple[int, int, int]]) -> Figures:
    """Derive the keys of some shapes."""
    import ezkl  # noqa: F401, PLC0415
    import onnx  # noqa: F401, PLC0415

    from verification.keys import KeyStore  # noqa: PLC0415

    meter = Meter()
    for shape in shapes:
        KeyStore(Path(keys)).proving(circuit_of(Shape(*shape)))
    spent = meter.spent()
    return spent | {"keys_mb": sum(x.stat().st_size for x in Path(keys).rglob("*.key")) / 1e6}


def commit(folder: str, keys: str) -> Figures:
    """Commit to all modules."""
    _load_prover()
    place, modules = Path(folder), _read_sheet(folder)
    meter = Meter()
    answers = _done(
        {"kind": "commit", "modules": modules, "delivery": str(place / DELIVERY), "keys": keys}
    )
    spent = meter.spent()
    for module, answer in zip(modules, answers, strict=False):
        module["commitment"] = answer["value"].hex()
    _write_sheet(place, modules)
    return spent | {"commitment_bytes": len(answers[0]["value"])}


def prove(folder: str, keys: str, rows: int = 0) -> Figures:
    """Prove a statement on each module: the offer's own, or deltas of so many rows."""
    _load_prover()
    place, modules = Path(folder), _read_sheet(folder)
    plains = [_plain(module, modules, rows) for module in modules]
    meter = Meter()
    found = [
        _done(
            {
                "kind": "prove",
                "modules": modules,
                "delivery": str(place / DELIVERY),
                "keys": keys,
                "statement": plain,
            }
        )[0]
        for plain in plains
    ]
    spent = meter.spent()
    for number, (plain, one) in enumerate(zip(plains, found, strict=True)):
        shape = (rows or 4, plain["outputs"] if rows else 4)
        filled = {**plain, "values": (*shape, 16, one["values"])}
        _statement_file(place, number).write_text(json.dumps(filled, default=bytes.hex))
        _proof_file(place, number).write_bytes(one["proof"])
    proof, values = len(found[0]["proof"]), len(found[0]["values"])
    return spent | {"proof_bytes": proof, "values_bytes": values}


def verify(folder: str, keys: str, rounds: int = 1) -> Figures:
    """Check the proofs of all modules, as often as `rounds` says; the first time is not `warm`."""
    import ezkl  # noqa: F401, PLC0415

    jobs = [
        {"kind": "verify", "statement": plain, "proof": proof, "keys": keys}
        for plain, proof in _statements(Path(folder))
    ]
    whole, seconds, cpu_seconds = Meter(), [], []
    for _ in range(rounds):
        meter = Meter()
        for job in jobs:
            _done(job)
        seconds.append(meter.spent()["wall_s"])
        cpu_seconds.append(meter.spent()["cpu_s"])
    warm = seconds[1:] or seconds
    return whole.spent() | {
        "rounds": rounds,
        "warm_ms": 1e3 * middle(warm),
        "warm_ms_least": 1e3 * min(warm),
        "warm_cpu_ms": 1e3 * middle(cpu_seconds[1:] or cpu_seconds),
    }


def fold(folder: str, rounds: int = 5) -> Figures:
    """What reading a statement and folding it take: all that grows with its rows."""
    plain, _ = next(_statements(Path(folder)))
    read, folded = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        statement = statement_of(plain)
        read.append(time.perf_counter() - began)
        began = time.perf_counter()
        statement.fold()
        folded.append(time.perf_counter() - began)
    return {
        "statement_ms": 1e3 * middle(read),
        "fold_ms": 1e3 * middle(folded),
    }


def wire(folder: str) -> Figures:
    """Bytes of the files that travel: the offer (not yet sealed) and its proofs."""
    from p2p.codec import pack  # noqa: PLC0415
    from p2p.ids import ClusterId, RunId, blob_id  # noqa: PLC0415
    from p2p.lora_records import (  # noqa: PLC0415
        LORA_FORMAT,
        LeakPolicy,
        LoraClaims,
        LoraModule,
        LoraOffer,
    )
    from p2p.offer_proofs import ModuleProof, OfferProofs, pack_offer_proofs  # noqa: PLC0415
    from verification.circuit import known  # noqa: PLC0415

    modules, some_id = _read_sheet(folder), blob_id(b"bench")
    records, proofs = [], []
    for module, (plain, proof) in zip(modules, _statements(Path(folder)), strict=True):
        name, inputs, rank, outputs = (module[field] for field in _FIELDS)
        circuit = known(Shape(inputs, rank, outputs)).circuit
        records.append(LoraModule(name, inputs, outputs, circuit, plain["commitment"]))
        proofs.append(ModuleProof(name, plain["values"][3], proof))
    offer = LoraOffer(
        run=RunId(some_id),
        cluster=ClusterId(0),
        base=some_id,
        name="bench",
        form=LORA_FORMAT,
        rank=modules[0]["rank"],
        alpha=float(modules[0]["rank"]),
        targets="attention",
        modules=tuple(records),
        claims=LoraClaims(some_id, rows=32, seed=0, base_loss=1.0, adapted_loss=0.5),
        leaks=LeakPolicy(scalars=32, proofs=34, delta_rows=0),
        terms="",
        licence="",
        seq=1,
        created_at=0.0,
        expires_at=1.0,
    )
    return {
        "offer_bytes": len(pack(offer)),
        "proofs_bytes": len(pack_offer_proofs(OfferProofs(some_id, tuple(proofs)))),
        "delivery_bytes": (Path(folder) / DELIVERY).stat().st_size,
    }


_FIELDS = ("name", "inputs", "rank", "outputs")


def _load_prover() -> None:
    import ezkl  # noqa: F401, PLC0415
    import numpy as np  # noqa: F401, PLC0415
    import onnx  # noqa: F401, PLC0415


def _plain(module: dict[str, Any], modules: list[dict[str, Any]], rows: int) -> dict[str, Any]:
    """A statement without its values."""
    named = [
        (one["name"], Shape(one["inputs"], one["rank"], one["outputs"]), one["commitment"])
        for one in modules
    ]
    plain = {field: module[field] for field in _FIELDS[1:]}
    plain |= {
        "kind": DELTA if rows else OFFER,
        "base": BASE,
        "offer": OFFER_ID,
        "module": module["name"],
        "commitment": module["commitment"],
        "nonce": sheet_nonce(BASE, named),
    }
    if rows:
        import random  # noqa: PLC0415

        draw = random.Random(1)
        plain["left"] = plain_of(
            tuple(
                tuple(draw.randint(-USER_BOUND, USER_BOUND) for _ in range(module["inputs"]))
                for _ in range(rows)
            )
        )
    return plain


def _done(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers to a job.

    Raises:
        RuntimeError: it was rejected, or failed.
    """
    answers: list[dict[str, Any]] = list(carry_out(job))
    if answers[-1]["kind"] not in ("done", "verified"):
        raise RuntimeError(str(answers[-1]))
    return answers


def _write_sheet(folder: Path, modules: list[dict[str, Any]]) -> None:
    (folder / SHEET).write_text(json.dumps({"modules": modules}, default=bytes.hex))


def _read_sheet(folder: str) -> list[dict[str, Any]]:
    modules: list[dict[str, Any]] = json.loads((Path(folder) / SHEET).read_text())["modules"]
    for module in modules:
        if "commitment" in module:
            module["commitment"] = bytes.fromhex(module["commitment"])
    return modules


def _statements(folder: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Every statement of a folder with its proof, in the modules' order."""
    number = 0
    while _proof_file(folder, number).exists():
        plain = json.loads(_statement_file(folder, number).read_text())
        for field in ("commitment", "nonce"):
            plain[field] = bytes.fromhex(plain[field])
        for field in ("left", "right", "values"):
            if plain.get(field) is not None:
                plain[field] = (*plain[field][:3], bytes.fromhex(plain[field][3]))
        yield plain, _proof_file(folder, number).read_bytes()
        number += 1


def _statement_file(folder: Path, number: int) -> Path:
    return folder / f"statement-{number}.json"


def _proof_file(folder: Path, number: int) -> Path:
    return folder / f"proof-{number}"


if __name__ == "__main__":
    do_job(
        {
            "prepare": prepare,
            "set_up": set_up,
            "commit": commit,
            "prove": prove,
            "verify": verify,
            "fold": fold,
            "wire": wire,
        }
    )
