"""The adapter program: its messages by themselves, and all of it at the end of a real line."""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import trio
from numpy.typing import NDArray

from node.adapter_facts import DeltaJob, Place
from node.adapters import Adapters
from node.home import Home
from node.supervise import open_worker
from node.workers import adapter
from node.workers.adapter import ASK_ROWS, Order, asked, carry_out
from node.workers.link import Message, ParentLink, encode_message
from tests.training.conftest import TINY_SPEC, TINY_TRAIN, draw_pictures
from training import errors
from training.clusters import Cluster
from training.experts.checkpoint import published_folder
from training.experts.loaded import load_expert
from training.experts.loop import train
from training.lora.arrays import ModuleArrays, unpack_arrays
from training.lora.files import read_info, read_lora
from training.lora.layers import PROBE_FILES
from training.lora.quantised import quantise
from training.lora.settings import LoraRows, LoraSettings
from training.lora.train import LoraJob, train_lora
from training.preparation.prepare import prepare_run


@dataclass
class Heard:
    """A line to a node: keeps what it is told, says what it is to say."""

    answers: list[Message] = field(default_factory=list)
    news: list[Message] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)

    def send(self, message: Message) -> None:
        self.messages.append(message)

    def receive(self) -> Message:
        return self.answers.pop(0)

    def poll(self) -> Message | None:
        return self.news.pop(0) if self.news else None

    @property
    def link(self) -> ParentLink:
        return cast("ParentLink", self)


def answer(values: NDArray[np.int64]) -> Message:
    return {"kind": "answer", "values": values.astype("<i8").tobytes()}


def test_question_is_asked_in_parts_and_its_answers_joined() -> None:
    x = np.arange(3 * (ASK_ROWS + 2)).reshape(-1, 3).astype(np.int16)
    values = np.arange(2 * (ASK_ROWS + 2)).reshape(-1, 2) - 2**62
    heard = Heard([answer(values[:ASK_ROWS]), answer(values[ASK_ROWS:])])
    assert np.array_equal(asked(heard.link, "layer", x, 2), values)
    assert [message["rows"] for message in heard.messages] == [ASK_ROWS, 2]
    assert b"".join(cast("bytes", message["x"]) for message in heard.messages) == x.tobytes()


@pytest.mark.parametrize(("inputs", "outputs"), [(4608, 1152), (1152, 4608), (65536, 8)])
def test_frames_of_questions_and_answers_stay_below_a_mebibyte(inputs: int, outputs: int) -> None:
    class Exact(Heard):
        def receive(self) -> Message:
            rows = cast("int", self.messages[-1]["rows"])
            self.answers.append(answer(np.zeros((rows, outputs), np.int64)))
            return self.answers[-1]

    heard = Exact()
    asked(heard.link, "layer", np.zeros((70, inputs), np.int16), outputs)
    frames = [len(encode_message(message)) for message in (*heard.messages, *heard.answers)]
    assert max(frames) < 2**20
    assert sum(cast("int", message["rows"]) for message in heard.messages) == 70


@pytest.mark.parametrize("values", [b"", bytes(47), bytes(49), None, "x" * 48])
def test_answer_of_another_length_is_refused(values: object) -> None:
    heard = Heard([{"kind": "answer", "values": values}])
    with pytest.raises(errors.ProbeError, match=r"layer first: an answer of .* expected 48"):
        asked(heard.link, "first", np.zeros((3, 4), np.int16), 2)


def does(*said: Message, error: BaseException | None = None) -> Any:
    def work(order: Order, link: ParentLink) -> Iterator[Message]:
        yield from said
        if error is not None:
            raise error

    return work


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ProbeError("bad"), "verification_failed"),
        (errors.LoraError("bad"), "verification_failed"),
        (errors.TensorFileError(Path("x"), "bad"), "verification_failed"),
        (errors.CheckpointError("bad"), "verification_failed"),
        (errors.ConfigError("bad"), "usage"),
        (errors.ModelMissingError("bad"), "not_found"),
        (errors.TooLargeError("bad"), "resource"),
        (errors.DivergedError("bad"), "failed"),
        (MemoryError(), "resource"),
        (OSError("bad"), "resource"),
    ],
)
def test_every_refusal_has_its_code_and_reason(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    monkeypatch.setattr(adapter, "WORK", {"claim": does(error=error)})
    heard = Heard()
    carry_out(heard.link, {"kind": "claim"})
    (failed,) = heard.messages
    assert (failed["kind"], failed["code"]) == ("failed", code)
    assert str(failed["error"]).endswith(("bad.", "out of memory."))


def test_bug_is_not_passed_off_as_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "WORK", {"claim": does(error=KeyError("lora"))})
    with pytest.raises(KeyError):
        carry_out(Heard().link, {"kind": "claim"})


def test_cancel_ends_an_order_at_its_next_message(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = {"kind": "progress", "part": 1}, {"kind": "progress", "part": 2}
    monkeypatch.setattr(adapter, "WORK", {"claim": does(first, second)})
    heard = Heard(news=[{"kind": "cancel"}])
    carry_out(heard.link, {"kind": "claim"})
    assert heard.messages == [first]


def test_cancel_instead_of_an_answer_ends_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(order: Order, link: ParentLink) -> Iterator[Message]:
        asked(link, "first", np.zeros((3, 4), np.int16), 2)
        yield {"kind": "done"}

    monkeypatch.setattr(adapter, "WORK", {"deltas": work})
    heard = Heard([{"kind": "cancel"}])
    carry_out(heard.link, {"kind": "deltas"})
    assert [message["kind"] for message in heard.messages] == ["ask"]


@dataclass(frozen=True)
class Made:
    """A base, an adapter on it, and where all that lies."""

    place: Place
    lora: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("adapters")
    prepared = prepare_run(draw_pictures(folder / "pictures"), folder / "run", TINY_SPEC)
    run, cluster = prepared.load(), Cluster.load(prepared.clusters[0].folder)
    for _ in train(cluster, run, TINY_TRAIN, state_dir=folder / "state"):
        pass
    expert = published_folder(folder / "state", TINY_TRAIN.budget_samples)
    rows = LoraRows(-cluster.stored, tuple(cluster.row_captions()))
    settings = LoraSettings(
        rank=2, alpha=4, samples=160, batch=8, learning_rate=5e-3, licence="CC0-1.0"
    )
    base = load_expert(expert, run)
    list(train_lora(LoraJob(base, run, rows, settings, folder / "lora", "bafkbase")))
    torch.set_num_threads(before)
    return Made(Place(prepared.shared, folder / "models", expert, 1, "cpu"), folder / "lora")


def ordered(made: Made, kind: str, heard: Heard | None = None, **facts: object) -> list[Message]:
    """What the program says to an order, in this process; its reports of progress are left out."""
    heard = heard or Heard()
    place = {name: str(value) for name, value in asdict(made.place).items()}
    carry_out(heard.link, {"kind": kind, **place, **facts})
    return [message for message in heard.messages if message["kind"] != "progress"]


@pytest.fixture(scope="module")
def claimed(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is claimed of the adapter; the file of its integers is `out`."""
    out = tmp_path_factory.mktemp("claimed") / "adapter.bin"
    (found,) = ordered(made, "claim", lora=str(made.lora), out=str(out))
    return {**found, "out": out}


class Owner(Heard):
    """A line to a node that knows who answers for the adapter, exactly."""

    def __init__(self, arrays: Mapping[str, ModuleArrays]) -> None:
        super().__init__()
        self.arrays = arrays

    def receive(self) -> Message:
        ask: Any = self.messages[-1]
        a, b = self.arrays[ask["module"]]
        x = np.frombuffer(ask["x"], "<i2").reshape(ask["rows"], -1)
        return answer(x.astype(np.int64) @ a.astype(np.int64) @ b.astype(np.int64))


def arrays_of(made: Made, claimed: Mapping[str, Any]) -> dict[str, ModuleArrays]:
    return unpack_arrays(claimed["out"].read_bytes(), read_info(made.lora).modules, 2)


@pytest.mark.slow
def test_claim_is_of_the_integers_that_it_writes(made: Made, claimed: dict[str, Any]) -> None:
    info, weights = read_lora(made.lora)
    facts = {name: claimed[name] for name in ("rank", "alpha", "scaling", "targets", "sha256")}
    assert facts == {name: getattr(info, name) for name in facts}
    assert (claimed["base"], claimed["offer"], claimed["licence"]) == ("bafkbase", "", "CC0-1.0")
    assert claimed["rows"] == info.held_out.rows
    assert claimed["modules"] == [
        {"name": m.name, "in": m.in_features, "out": m.out_features, "rank": 2}
        for m in info.modules
    ]
    gained = claimed["base_loss"] - claimed["float_loss"]
    assert gained > 0
    assert abs(claimed["adapted_loss"] - claimed["float_loss"]) < 1e-3 * gained
    expected = quantise(info.shape, weights)
    for name, (a, b) in arrays_of(made, claimed).items():
        assert np.array_equal(a, expected[name][0])
        assert np.array_equal(b, expected[name][1])


@pytest.mark.slow
def test_what_is_delivered_is_kept_and_measures_as_claimed(
    made: Made, claimed: dict[str, Any], tmp_path: Path
) -> None:
    names = ("targets", "rank", "alpha", "rows", "seed", "base_loss", "adapted_loss", "licence")
    facts = {name: claimed[name] for name in names}
    bought = tmp_path / "bought"
    (kept,) = ordered(
        made, "keep", **facts, arrays=str(claimed["out"]), folder=str(bought),
        cid="bafkbase", offer="bafkoffer", probe=str(made.lora),
    )  # fmt: skip
    info, _ = read_lora(bought)
    assert (info.sha256, info.offer, info.base) == (
        kept["sha256"], "bafkoffer", read_info(made.lora).base
    )  # fmt: skip
    for name in PROBE_FILES:
        assert (bought / name).read_bytes() == (made.lora / name).read_bytes()
    (found,) = ordered(made, "measure", probe=str(bought), lora=str(bought))
    assert {name: found[name] for name in ("rows", "seed", "base_loss", "adapted_loss")} == {
        name: claimed[name] for name in ("rows", "seed", "base_loss", "adapted_loss")
    }


@pytest.mark.slow
def test_pairs_foretell_what_an_adapter_does_that_is_not_seen(
    made: Made, claimed: dict[str, Any]
) -> None:
    *found, done = ordered(made, "pairs", probe=str(made.lora), targets=claimed["targets"], pairs=3)
    assert {name: done[name] for name in ("kind", "base_loss", "rows", "seed")} == {
        "kind": "done", **{name: claimed[name] for name in ("base_loss", "rows", "seed")}
    }  # fmt: skip
    assert [message["module"] for message in found] == [m["name"] for m in claimed["modules"]]
    change = 0.0
    layer: Any
    for layer in found:
        assert layer["norm"] > 0
        assert 0 < layer["captured"] <= 1
        a, b = (part.astype(object) for part in arrays_of(made, claimed)[layer["module"]])
        left = np.frombuffer(layer["left"], "<i2").reshape(3, len(a)).astype(object)
        right = np.frombuffer(layer["right"], "<i2").reshape(3, b.shape[1]).astype(object)
        values = np.diagonal(left @ a @ b @ right.T)
        change += claimed["scaling"] * sum(
            weight * int(y) for weight, y in zip(layer["weights"], values, strict=True)
        )
    true = claimed["adapted_loss"] - claimed["base_loss"]
    assert 0.5 < change / true < 5  # far from first order: the sign and the size, no more


@pytest.mark.slow
def test_deltas_measure_an_adapter_that_is_not_here(made: Made, claimed: dict[str, Any]) -> None:
    facts = {"targets": claimed["targets"], "scaling": claimed["scaling"], "draws": 256}
    owner = Owner(arrays_of(made, claimed))
    *asks, done = ordered(made, "deltas", owner, probe=str(made.lora), **facts)
    assert {message["kind"] for message in asks} == {"ask"}
    rows = Counter[str]()
    for message in asks:
        rows[str(message["module"])] += cast("int", message["rows"])
    assert done["rows_used"] == max(rows.values()) == 256 * 4  # a token a pixel of 2 x 2
    gained = claimed["base_loss"] - claimed["adapted_loss"]
    assert done["base_loss"] == claimed["base_loss"]
    assert abs(cast("float", done["adapted_loss"]) - claimed["adapted_loss"]) < 0.01 * gained


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("pairs", {"targets": "attention", "pairs": 1}),
        ("deltas", {"targets": "attention", "scaling": 1.0, "draws": 1}),
        ("measure", {"lora": ""}),
        ("claim", {"out": "/nowhere/x.bin"}),
    ],
)
def test_stranger_s_probe_is_refused_with_a_reason(
    made: Made, tmp_path: Path, kind: str, facts: dict[str, object]
) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(made.lora, spoilt)
    (spoilt / "probe.json").write_text('{"captions":[],"schema":1,"seed":0}')
    said = ordered(made, kind, None, **{**facts, "probe": str(spoilt), "lora": str(spoilt)})
    assert [(message["kind"], message["code"]) for message in said] == [
        ("failed", "verification_failed")
    ]
    assert "1 to 64 rows, this one 0" in str(said[0]["error"])


@pytest.mark.slow
def test_adapter_of_another_base_is_not_claimed(made: Made, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(made.lora, other)
    facts = (other / "lora.json").read_text()
    digest = read_info(made.lora).base.model_digest
    (other / "lora.json").write_text(facts.replace(digest, "f" * 64))
    (failed,) = ordered(made, "claim", lora=str(other), out=str(tmp_path / "out.bin"))
    assert (failed["kind"], failed["code"]) == ("failed", "verification_failed")
    assert "was made for the checkpoint" in str(failed["error"])
    assert not (tmp_path / "out.bin").exists()


@pytest.mark.slow
def test_delivery_of_another_length_is_not_kept(
    made: Made, claimed: dict[str, Any], tmp_path: Path
) -> None:
    names = ("targets", "rank", "alpha", "rows", "seed", "base_loss", "adapted_loss", "licence")
    (tmp_path / "short.bin").write_bytes(claimed["out"].read_bytes()[:-2])
    (failed,) = ordered(
        made, "keep", **{name: claimed[name] for name in names}, cid="", offer="bafkoffer",
        arrays=str(tmp_path / "short.bin"), folder=str(tmp_path / "bought"), probe=None,
    )  # fmt: skip
    assert failed["code"] == "verification_failed"
    assert not (tmp_path / "bought").exists()


@pytest.mark.slow
async def test_program_claims_and_asks_at_the_end_of_a_real_line(
    made: Made, claimed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    home = Home.at(tmp_path / "home")
    home.worker_log("adapter").parent.mkdir(parents=True)
    adapters, out = Adapters(home), tmp_path / "adapter.bin"
    found = await adapters.claim(made.place, made.lora, out, timeout_s=120)
    assert out.read_bytes() == claimed["out"].read_bytes()
    assert found.adapted_loss == pytest.approx(claimed["adapted_loss"], rel=1e-6)
    owner = Owner(arrays_of(made, claimed))

    async def answers(module: str, rows: int, x: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        owner.send({"kind": "ask", "module": module, "rows": rows, "x": x})
        return cast("bytes", owner.receive()["values"])

    job = DeltaJob(made.lora, found.targets, found.scaling, 32)
    measured = await adapters.deltas(made.place, job, answers, timeout_s=120)
    assert measured.rows_used == 32 * 4
    assert measured.adapted_loss < measured.base_loss


@pytest.mark.slow
async def test_program_leaves_when_its_node_is_gone(tmp_path: Path) -> None:
    log = tmp_path / "adapter.log"
    async with open_worker("node.workers.adapter", log=log, grace_s=30) as worker:
        await worker.send({"kind": "cancel"})  # of an order that is over: nothing happens
        process = worker._process
        await worker._line.aclose()
        with trio.fail_after(20):
            await process.wait()
    assert process.returncode == 0
