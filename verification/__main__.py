"""Proofs from the command line: python -m verification commit | prove | verify | ...

One job in a process of its own, under limits. Prints one JSON object; exit status 0 if it was done
or holds, 1 if it was rejected, 2 if nothing could be decided (no library, no file, or files that
are not what they should be). The kernel ends a job that passes its processor time with SIGXCPU.

    commit SHEET DELIVERY               the commitments to an adapter's layers
    prove SHEET DELIVERY STATEMENT -o P  a proof; fills in the statement's values
    verify STATEMENT PROOF              is the statement shown?
    check-delivery SHEET DELIVERY       are these the weights the sheet commits to?
    add-srs K FILE                      take a larger reference string, if it is the pinned one

SHEET is JSON {modules: [{name, inputs, rank, outputs, commitment?}]}; STATEMENT is JSON {kind,
base, offer, module, inputs, rank, outputs, commitment, nonce, left?, right?, values?}; bytes are
hex, a matrix is [rows, columns, bytes per integer, hex]. DELIVERY is a file of
`verification.adapter`.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from verification.jobs import carry_out
from verification.sandbox import JOB_CPU_S, limit_job, limit_process

DONE: Final = 0
REJECTED: Final = 1
UNDECIDED: Final = 2

MAX_JSON_BYTES: Final = 64 << 20
"""A statement of 1,024 rows has 20 MB; ezkl would be busy for half a minute with ten times that."""
MAX_PROOF_BYTES: Final = 1 << 20
_MOST_CPU_S: Final = 86_400
_STATUS: Final = {"done": DONE, "verified": DONE, "rejected": REJECTED, "failed": UNDECIDED}
_BYTES_FIELDS: Final = ("commitment", "nonce")
_MATRIX_FIELDS: Final = ("left", "right", "values")
_SHAPE_FIELDS: Final = dict.fromkeys(("inputs", "rank", "outputs"), int)
_MODULE_FIELDS: Final = {"name": str, **_SHAPE_FIELDS}
_STATEMENT_FIELDS: Final = {
    **dict.fromkeys(("kind", "base", "offer", "module"), str),
    **_SHAPE_FIELDS,
    **dict.fromkeys(_BYTES_FIELDS, bytes),
}


class InputError(Exception):
    """A file that cannot be read as what it should be."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one job; the exit status."""
    options = _parser().parse_args(arguments)
    limit_process()
    limit_job(options.cpu)
    try:
        job = _job(options)
        answers = list(carry_out(job))
        if options.job == "prove" and answers[-1]["kind"] == "done":
            options.output.write_bytes(answers[0]["proof"])
    except (InputError, OSError, MemoryError) as error:
        answers = [{"kind": "failed", "error": str(error) or "out of memory"}]
    print(json.dumps(_summary(options.job, answers)))  # noqa: T201  a program's result
    return _STATUS[str(answers[-1]["kind"])]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m verification",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--keys", type=Path, default=Path.home() / ".cache" / "paris-node" / "circuits",
        help="folder of derived keys (default: %(default)s)",
    )  # fmt: skip
    common.add_argument(
        "--cpu", type=_seconds, default=JOB_CPU_S, help="processor seconds allowed (%(default)s)"
    )
    jobs = parser.add_subparsers(dest="job", required=True)
    for name, files in (
        ("commit", ("sheet", "delivery")),
        ("prove", ("sheet", "delivery", "statement")),
        ("verify", ("statement", "proof")),
        ("check-delivery", ("sheet", "delivery")),
        ("add-srs", ("file",)),
    ):
        job = jobs.add_parser(name, parents=[common])
        if name == "add-srs":
            job.add_argument("k", type=int, help="it is for circuits of 2^K rows")
        for file in files:
            job.add_argument(file, type=Path)
        if name == "prove":
            job.add_argument("-o", "--output", type=Path, required=True, help="the proof's file")
    return parser


def _seconds(text: str) -> int:
    seconds = int(text)
    if not 1 <= seconds <= _MOST_CPU_S:
        raise argparse.ArgumentTypeError(f"got {seconds}, expected 1..{_MOST_CPU_S}")
    return seconds


def _job(options: argparse.Namespace) -> dict[str, Any]:
    kind = "check" if options.job == "check-delivery" else options.job
    job: dict[str, Any] = {"kind": kind, "keys": str(options.keys)}
    if "sheet" in options:
        job["delivery"] = str(options.delivery)
        modules = _json(options.sheet).get("modules")
        if not isinstance(modules, list):
            raise InputError(f"{options.sheet}: no list of modules")
        job["modules"] = [_module(one) for one in modules]
        if kind == "check" and not all("commitment" in module for module in job["modules"]):
            raise InputError(f"{options.sheet}: a module has no commitment")
    if "statement" in options:
        job["statement"] = _statement(_json(options.statement), options.statement)
    if "k" in options:
        job |= {"k": options.k, "file": str(options.file)}
    if "proof" in options:
        job["proof"] = _read(options.proof, MAX_PROOF_BYTES)
    return job


def _module(plain: Mapping[str, Any]) -> dict[str, Any]:
    try:
        module = {name: plain[name] for name in _MODULE_FIELDS}
        _check_kinds(module, _MODULE_FIELDS)
        if "commitment" in plain:
            module["commitment"] = bytes.fromhex(plain["commitment"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the sheet: a module is malformed: {error!r}") from error
    return module


def _statement(plain: dict[str, Any], path: Path) -> dict[str, Any]:
    found = {**plain}
    try:
        for name in _BYTES_FIELDS:
            if name in found:
                found[name] = bytes.fromhex(found[name])
        for name in _MATRIX_FIELDS:
            if found.get(name) is not None:
                rows, columns, width, data = found[name]
                found[name] = (rows, columns, width, bytes.fromhex(data))
                _check_kinds(dict(enumerate(found[name])), {0: int, 1: int, 2: int})
        _check_kinds(found, _STATEMENT_FIELDS)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: the statement is malformed: {error!r}") from error
    return found


def _check_kinds(found: Mapping[Any, object], kinds: Mapping[Any, type]) -> None:
    for name, kind in kinds.items():
        if type(found[name]) is not kind:
            raise TypeError(f"{name} is no {kind.__name__}")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a JSON object")
    return found


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"{path} has more than {limit} bytes")
    return data


def _summary(job: str, answers: list[dict[str, object]]) -> dict[str, object]:
    last = answers[-1]
    summary: dict[str, object] = {"job": job, "result": last["kind"]}
    for name in ("reason", "error"):
        if name in last:
            summary[name] = last[name]
    for answer in answers[:-1]:
        if answer["kind"] == "commitment":
            found = summary.setdefault("modules", [])
            assert isinstance(found, list)  # noqa: S101  made in the line above
            found.append({"name": answer["module"], "commitment": _hex(answer["value"])})
        else:
            summary["values"] = _hex(answer["values"])
            summary["proof_bytes"] = len(_bytes(answer["proof"]))
    return summary


def _hex(value: object) -> str:
    return _bytes(value).hex()


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes)  # noqa: S101  our own answers
    return value


if __name__ == "__main__":
    sys.exit(main())
