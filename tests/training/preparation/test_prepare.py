import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.training.conftest import SIDE, TINY_SPEC, draw_pictures
from training.clusters import Cluster
from training.errors import ConfigError, DataError, ModelMissingError
from training.files import digest_of
from training.preparation.prepare import PreparedRun, Progress, default_spec, prepare_run
from training.run import CLUSTERS_FILE, CODEC_FILE, RUN_FILE, Run, load_run
from training.sources.folders import load_folder


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_prepared_run_has_the_documented_files_and_no_other(prepared: PreparedRun) -> None:
    assert sorted(contents(prepared.root)) == [
        "clusters/0/captions.json",
        "clusters/0/latents-000.safetensors",
        "clusters/1/captions.json",
        "clusters/1/latents-000.safetensors",
        "shared/captions.json",
        "shared/clusters.safetensors",
        "shared/codec.safetensors",
        "shared/run.json",
    ]


def test_clusters_hold_every_picture_once_with_its_caption(prepared: PreparedRun, run: Run) -> None:
    loaded = [Cluster.load(info.folder) for info in prepared.clusters]
    assert [len(c) for c in loaded] == [info.n for info in prepared.clusters]
    assert tuple(len(c) for c in loaded) == run.facts.rows
    captions = Counter(caption for c in loaded for caption in c.row_captions())
    assert captions == {"a disc": 24, "two bars": 24}
    counted = run.caption_counts.by_cluster()
    assert counted == {c.number: dict(Counter(c.row_captions())) for c in loaded}


def test_pictures_of_two_kinds_are_told_apart_without_captions(prepared: PreparedRun) -> None:
    purest = [
        Counter(Cluster.load(i.folder).row_captions()).most_common(1) for i in prepared.clusters
    ]
    assert sum(common[0][1] for common in purest) >= 40


def test_clusters_are_reported_beside_captions_that_are_classes(
    prepared: PreparedRun, tmp_path: Path
) -> None:
    report = prepared.report
    assert report.sizes == tuple(info.n for info in prepared.clusters)
    assert report.nmi is not None
    assert report.nmi > 0.4
    assert report.silhouette is not None
    folder = draw_pictures(tmp_path / "named", 8)
    lines = [json.dumps({"file_name": f"{i:03d}.png", "text": f"picture {i}"}) for i in range(8)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    assert prepare_run(folder, tmp_path / "out", TINY_SPEC).report.nmi is None


def test_same_source_and_spec_give_the_same_bytes(
    pictures: Path, prepared: PreparedRun, tmp_path: Path
) -> None:
    again = prepare_run(pictures, tmp_path / "again", TINY_SPEC)
    assert contents(again.root) == contents(prepared.root)


def test_new_pictures_are_assigned_where_they_were_clustered(
    pictures: Path, prepared: PreparedRun, run: Run
) -> None:
    owners = run.clusters.assign(load_folder(pictures, SIDE, 1).images)
    assert tuple(owners.bincount(minlength=2).tolist()) == run.facts.rows


def test_progress_counts_pictures_phase_by_phase(pictures: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    prepare_run(pictures, tmp_path / "out", TINY_SPEC, seen.append)
    phases = list(dict.fromkeys(p.phase for p in seen))
    assert phases == ["sample", "fit", "encode", "cluster", "write"]
    for phase in ("sample", "encode", "write"):
        counted = [p.done for p in seen if p.phase == phase]
        assert counted == sorted(counted)
        assert (counted[-1], seen[-1].total) == (48, 48)


@pytest.mark.parametrize(("count", "clusters"), [(1, 1), (3, 2), (5, 8)])
def test_too_few_pictures_for_k_clusters_are_refused(
    tmp_path: Path, count: int, clusters: int
) -> None:
    folder = draw_pictures(tmp_path / "few", count)
    with pytest.raises(DataError, match=f"{clusters} clusters need at least {2 * clusters}"):
        prepare_run(folder, tmp_path / "out", replace(TINY_SPEC, clusters=clusters))


def test_fewest_pictures_that_suffice_make_a_run(tmp_path: Path) -> None:
    folder = draw_pictures(tmp_path / "few", 4)
    made = prepare_run(folder, tmp_path / "out", TINY_SPEC)
    assert sum(info.n for info in made.clusters) == 4


def test_bad_source_and_used_output_are_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file or folder"):
        prepare_run(tmp_path / "none", tmp_path / "a", TINY_SPEC)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(DataError, match="not an empty folder"):
        prepare_run(pictures, tmp_path / "used", TINY_SPEC)
    with pytest.raises(DataError, match="32 pixels a side and grey"):
        prepare_run("fashion", tmp_path / "b", replace(TINY_SPEC, image_size=64))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"codec": "jpeg"}, "unknown codec"),
        ({"extractor": "eyes"}, "unknown extractor"),
        ({"text": "words"}, "unknown text encoder"),
        ({"image_size": 20}, "divisible by 8"),
        ({"image_size": 24, "preset": "tiny-cpu"}, "divisible by 2"),
    ],
)
def test_spec_that_does_not_fit_together_is_refused(
    pictures: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        prepare_run(pictures, tmp_path / "out", replace(TINY_SPEC, **change))  # type: ignore[arg-type]


def test_skipped_files_are_reported(tmp_path: Path) -> None:
    folder = draw_pictures(tmp_path / "pictures", 8)
    (folder / "000.png").write_bytes(b"broken")
    made = prepare_run(folder, tmp_path / "out", TINY_SPEC)
    assert str(made.skipped) == "1 unreadable picture: 000.png (UnidentifiedImageError)"


def test_default_spec_of_a_folder_is_named_after_it_and_in_colour_if_it_is(tmp_path: Path) -> None:
    assert default_spec("fashion").preset == "fashion-tiny"
    folder = draw_pictures(tmp_path / "boats", 4)
    spec = default_spec(folder, clusters=3)
    assert (spec.name, spec.clusters, spec.image_channels) == ("boats", 3, 1)
    Image.new("RGB", (8, 8), "red").save(folder / "001.png")
    assert default_spec(folder).image_channels == 3


def copied(prepared: PreparedRun, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared.shared, tmp_path / "shared"))


def test_altered_shared_file_is_refused_by_name(prepared: PreparedRun, tmp_path: Path) -> None:
    shared = copied(prepared, tmp_path)
    for name, part in ((CODEC_FILE, "codec"), (CLUSTERS_FILE, "clusters")):
        data = bytearray((shared / name).read_bytes())
        data[-1] ^= 1
        (shared / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name} does not match"):
            getattr(load_run(shared), part)
    (shared / "captions.json").unlink()
    with pytest.raises(DataError, match=r"captions\.json cannot be read"):
        _ = load_run(shared).caption_counts


def test_run_file_that_cannot_be_used_says_why(prepared: PreparedRun, tmp_path: Path) -> None:
    shared = copied(prepared, tmp_path)
    facts = json.loads((shared / RUN_FILE).read_bytes())
    cases = [
        ({**facts, "schema": 2}, "schema 2"),
        ({**facts, "rows": [1]}, "row counts"),
        ({**facts, "rows": [0, 48]}, "row counts"),
        ({**facts, "fine": 10**9}, "centroid counts"),
        ({**facts, "latent": [0, 2, 2]}, "impossible sizes"),
        ({**facts, "digests": {}}, "digests must name"),
        ({**facts, "models": {}}, "models must name exactly minilm-l6/config.json"),
        ({**facts, "pixels": 255}, "255 pixels, pixel-pca reads 256"),
        ({**facts, "spec": {**facts["spec"], "codec": "jpeg"}}, "unknown codec"),
        ({k: v for k, v in facts.items() if k != "pixels"}, "missing key 'pixels'"),
    ]
    for value, reason in cases:
        (shared / RUN_FILE).write_text(json.dumps(value))
        with pytest.raises(DataError, match=reason):
            load_run(shared)
    with pytest.raises(DataError, match="no run in"):
        load_run(tmp_path)


@pytest.mark.slow
def test_bundled_run_prepares_as_measured(tmp_path: Path) -> None:
    made = prepare_run("fashion", tmp_path / "out", default_spec("fashion"))
    sizes = [info.n for info in made.clusters]
    assert sum(sizes) == 10_000
    assert min(sizes) >= 1_000
    assert sum(len(data) for data in contents(made.root).values()) < 6_000_000
    counts = made.load().caption_counts
    table = torch.tensor(counts.counts, dtype=torch.float64)
    # Each caption's pictures sit mostly together: chance would leave the largest share at 0.31.
    assert float((table.max(0).values / table.sum(0)).mean()) > 0.6


def test_caption_table_that_does_not_fit_the_run_is_refused(
    prepared: PreparedRun, tmp_path: Path
) -> None:
    shared = copied(prepared, tmp_path)
    facts = json.loads((shared / RUN_FILE).read_bytes())
    table = json.loads((shared / "captions.json").read_bytes())
    (first, *rest), other = table["counts"], table["other"]
    for counts, leftover in (
        ([first], other[:1]),
        ([first[:1], *rest], other),
        ([[first[0] + 1, *first[1:]], *rest], other),
        ([[first[0] + 5, *first[1:]], *rest], [other[0] - 5, *other[1:]]),
        (table["counts"], other[:1]),
    ):
        data = json.dumps({**table, "counts": counts, "other": leftover}).encode()
        (shared / "captions.json").write_bytes(data)
        facts["digests"]["captions.json"] = digest_of(data)
        (shared / RUN_FILE).write_text(json.dumps(facts))
        with pytest.raises(DataError, match="does not fit 2 clusters"):
            _ = load_run(shared).caption_counts


def test_run_made_before_files_were_pinned_is_still_used(
    prepared: PreparedRun, tmp_path: Path
) -> None:
    shared = copied(prepared, tmp_path)
    facts = json.loads((shared / RUN_FILE).read_bytes())
    assert sorted(facts.pop("models")) == [
        f"minilm-l6/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")
    ]
    (shared / RUN_FILE).write_text(json.dumps(facts))
    run = load_run(shared)
    assert run.text.encode(["a disc"]).states.shape[-1] == 384
    assert run.codec_digest == run.codec.digest


def test_text_encoder_of_other_files_than_the_runs_is_refused(
    prepared: PreparedRun, tmp_path: Path
) -> None:
    shared = copied(prepared, tmp_path)
    facts = json.loads((shared / RUN_FILE).read_bytes())
    pinned = facts["models"]["minilm-l6/model.safetensors"]
    facts["models"]["minilm-l6/model.safetensors"] = "0" * 64
    (shared / RUN_FILE).write_text(json.dumps(facts))
    with pytest.raises(ModelMissingError, match=f"{pinned}, the run's is {'0' * 64}"):
        load_run(shared).text.encode(["a disc"])
