"""Routers on the command line, without a node: a real tiny run, real training."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.cli.output import print_failure
from node.errors import ErrorCode, NodeError
from node.home import Home, prepare
from node.router_job import RouterOrder, Watcher, train_here
from node.routers import RouterPlace, trained_routers
from node.runs import import_run
from p2p.blobs import BlobStore
from p2p.records import ClaimPolicy
from tests.support.cli_run import Run, answer_of, refusal_of
from tests.training.conftest import TINY_SPEC, draw_pictures
from training.config import SCHEMA
from training.experts.checkpoint import ExpertInfo, published_files
from training.experts.nets import build_net
from training.files import write_folder
from training.preparation.prepare import PreparedRun, prepare_run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedRun:
    folder = tmp_path_factory.mktemp("run")
    return prepare_run(draw_pictures(folder / "pictures", 240), folder / "out", TINY_SPEC)


@pytest.fixture
def place(prepared: PreparedRun, home: Path) -> RouterPlace:
    """The tiny run in the home of the command line."""
    prepare(Home.at(home))
    created = import_run(prepared, BlobStore.open(home / "blobs"), ClaimPolicy())
    return RouterPlace(Home.at(home), created.run, created.manifest)


def order(**changes: object) -> RouterOrder:
    facts: dict[str, object] = {
        "kind": "learned", "samples": 512, "pictures": 60, "data": (), "preset": None,
        "seed": 0, "threads": 1, "device": "cpu", **changes,
    }  # fmt: skip
    return RouterOrder(**facts)  # type: ignore[arg-type]


def stop_after(steps: int) -> Watcher:
    count: Iterator[int] = iter(range(1, 10**6))
    return Watcher(lambda *_: None, lambda: next(count) >= steps)


PATIENT = Watcher(lambda *_: None, lambda: False)


def add_expert(place: RouterPlace, prepared: PreparedRun, cluster: int) -> None:
    run = prepared.load()
    info = ExpertInfo(
        schema=SCHEMA, objective="fm", schedule="linear", cluster=cluster, run=run.digest,
        preset=run.spec.preset, codec=run.codec_digest, text=run.spec.text,
        latent=run.facts.latent, samples=16, step=1, seed=0, loss=1.0, model_digest="",
    )  # fmt: skip
    weights = dict(build_net(info.shape, cluster).state_dict())
    folder = place.folder / "experts" / str(cluster) / "bafkreia"
    folder.parent.mkdir(parents=True)
    write_folder(folder, published_files(info, weights))


@pytest.mark.slow
def test_trained_router_is_told_listed_and_shown(run: Run, place: RouterPlace) -> None:
    told = run("router", "train", "--run", place.run, "--samples", "512")
    assert told.exit_code == 0, told.output
    assert "learned, of clusters 0, 1" in told.stdout
    assert max(len(line) for line in told.stdout.splitlines() if "folder" not in line) <= 80
    listed = answer_of(run("router", "list", "--run", place.run, "--json"))["routers"]
    assert [one["kind"] for one in listed] == ["learned"]
    shown = answer_of(run("router", "show", "learned", "--run", place.run, "--json"))
    assert shown["schema"] == 1
    assert shown["samples"] == 512
    assert len(shown["calibration"]) == 10
    assert 0 <= shown["calibration"][0]["accuracy"] <= 1
    assert trained_routers(place.folder) == {"learned": Path(shown["folder"])}


@pytest.mark.slow
def test_gauss_is_measured_and_shown_like_the_others(run: Run, place: RouterPlace) -> None:
    told = run("router", "train", "--kind", "gauss", "--run", place.run)
    assert told.exit_code == 0, told.output
    assert "fitted to" in told.stdout
    assert "gauss" in run("router", "list", "--run", place.run).stdout
    shown = answer_of(run("router", "show", "gauss", "--run", place.run, "--json"))
    assert (shown["source"], len(shown["calibration"])) == ("data", 10)


@pytest.mark.slow
def test_router_stopped_halfway_goes_on_to_the_same_router(
    place: RouterPlace, home: Path, run: Run
) -> None:
    del run
    blobs = BlobStore.open(home / "blobs")
    with pytest.raises(NodeError, match="What was learned is kept") as stopped:
        train_here(place, blobs, order(), stop_after(2))
    assert print_failure(stopped.value, as_json=True) == 130
    assert trained_routers(place.folder) == {}
    seen: list[int] = []
    watcher = Watcher(lambda _, done, __: seen.append(done), lambda: False)
    resumed = train_here(place, blobs, order(), watcher)
    assert seen[0] == 3 * 128
    assert train_here(place, blobs, order(), PATIENT) == resumed
    assert [path.name for path in place.router("learned").parent.iterdir()] == ["learned"]


@pytest.mark.slow
def test_synthetic_router_names_the_experts_it_learned_from(
    place: RouterPlace, prepared: PreparedRun, run: Run
) -> None:
    for cluster in (0, 1):
        add_expert(place, prepared, cluster)
    told = run(
        "router", "train", "--kind", "synthetic", "--pictures", "100", "--samples", "256",
        "--run", place.run, "--json",
    )  # fmt: skip
    assert answer_of(told)["kind"] == "synthetic"
    assert (
        "synthetic, of clusters 0, 1"
        in run("router", "show", "synthetic", "--run", place.run).stdout
    )


@pytest.mark.slow
def test_pictures_of_ones_own_stand_in_for_the_runs_data(
    place: RouterPlace, tmp_path: Path, prepared: PreparedRun
) -> None:
    empty = BlobStore.open(tmp_path / "empty", floor_bytes=0)
    import_shared = import_run(prepared, empty, ClaimPolicy())
    for root in import_shared.manifest.data:
        empty.unpin(root)
    empty.collect_garbage(min_age_s=0)
    with pytest.raises(NodeError, match="two clusters or more; here: none") as caught:
        train_here(place, empty, order(), PATIENT)
    assert "--kind synthetic" in caught.value.fix
    pictures = str(draw_pictures(tmp_path / "more", 60))
    info = train_here(place, empty, order(samples=256, data=(pictures,)), PATIENT)
    assert sum(info.counts) == 54


def test_home_without_a_router_says_that_gauss_needs_none(run: Run) -> None:
    assert "gauss needs no training" in run("router", "list").stdout
    assert answer_of(run("router", "list", "--json"))["routers"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("show", "synthetic"), ErrorCode.NOT_FOUND, "router train --kind synthetic"),
        (("show", "guessed"), ErrorCode.USAGE, "learned"),
        (("show", "gauss"), ErrorCode.NOT_FOUND, "router train --kind gauss"),
        (("train", "--kind", "synthetic"), ErrorCode.NOT_FOUND, "paris-node experts pull"),
        (("train", "--samples", "0"), ErrorCode.USAGE, "128"),
        (("train", "--run", "boats"), ErrorCode.USAGE, "not a run id"),
        (("train", "--preset", "huge"), ErrorCode.FAILED, "tiny/1, tiny/2, S/2, B/2"),
        (("train", "--data", "./nowhere"), ErrorCode.FAILED, "nowhere"),
    ],
)
@pytest.mark.slow
def test_wrong_orders_are_told_with_a_way_out(
    run: Run, arguments: tuple[str, ...], code: ErrorCode, words: str
) -> None:
    result = run("router", *arguments)
    assert result.exit_code == code.exit_code, result.output
    assert words in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_altered_router_is_a_failed_verification(run: Run, place: RouterPlace) -> None:
    assert run("router", "train", "--run", place.run, "--samples", "128", "-q").exit_code == 0
    path = place.router("learned") / "router.json"
    path.write_text(path.read_text().replace('"schema":1', '"schema":7'))
    code, error = refusal_of(run("router", "show", "--run", place.run, "--json"))
    assert (code, error["code"]) == (6, "verification_failed")
    assert "schema 7, this program reads 1" in error["message"]
