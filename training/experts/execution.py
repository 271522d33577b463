"""How this machine computes steps: what may change their last digits, never what they mean.

Bits depend on the device, the precision, the number of threads, processes and samples at a time
(measured: two threads differ from one after 20 steps).  So a save remembers them, and whoever goes
on from it on the same kind of machine computes as it did, whatever has been set since.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Execution:
    """One way to compute.

    Args:
        device: "cpu", "cuda" or "mps".
        precision: "fp32" or "bf16".
        reason: why that precision: a sentence for people.
        threads: of torch, per process.
        processes: that share each batch.
        micro_batch: samples at a time, per process.
    """

    device: str
    precision: str
    reason: str
    threads: int
    processes: int
    micro_batch: int


def continued(
    saved: Execution | None, wanted: Execution, *, is_precision_set: bool
) -> tuple[Execution, tuple[str, ...]]:
    """How to go on from a save: exactly as it was made, where this machine can.

    Args:
        saved: how the save was made; None for one that does not say.
        wanted: by this machine and its settings; `micro_batch` is what fits at most.
        is_precision_set: somebody asked for this precision; it was not chosen.

    Returns:
        What to do, and sentences to log: what is kept, and what makes the rest differ.
    """
    if saved is None:
        return wanted, ()
    before = f"{saved.device} in {saved.processes} process(es)"
    now = f"{wanted.device} in {wanted.processes} process(es)"
    if before != now:
        return wanted, (f"the save was made on {before}, training goes on on {now}: {_ROUNDING}",)
    notes = []
    if saved.threads != wanted.threads:
        notes.append(
            f"threads = {wanted.threads} takes effect in the next training: this one began with "
            f"{saved.threads}, and would not be the same bit for bit"
        )
    result = replace(saved, micro_batch=min(saved.micro_batch, wanted.micro_batch))
    if result.micro_batch < saved.micro_batch:
        notes.append(
            f"{result.micro_batch} samples at a time fit the memory, the save was made with "
            f"{saved.micro_batch}: {_ROUNDING}"
        )
    if is_precision_set and saved.precision != wanted.precision:
        result = replace(result, precision=wanted.precision, reason=wanted.reason)
        notes.append(f"{wanted.precision} as set, the save was made in {saved.precision}")
    return result, tuple(notes)


_ROUNDING = "equal up to rounding, not bit for bit"
