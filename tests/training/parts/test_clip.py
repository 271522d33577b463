import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.support.hub_models import write_clip
from training.errors import ModelMissingError
from training.parts.hub import Models
from training.parts.libraries import clip_text_classes, tokenizer_class
from training.parts.text import PretrainedText, load_text_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return write_clip(folder / "clip-vit-l14")


@pytest.fixture(scope="module")
def encoder(folder: Path, reference: Any) -> PretrainedText:
    return load_text_encoder("clip-vit-l14", Models(folder))


def padded_ids(folder: Path, caption: str) -> torch.Tensor:
    """The caption's ids padded to 77 with the end's id, as the published pipelines do."""
    tokenizer = tokenizer_class().from_file(str(folder / "clip-vit-l14" / "tokenizer.json"))
    end = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.enable_truncation(77)
    tokenizer.enable_padding(length=77, pad_id=end, pad_token="<|endoftext|>")
    return torch.tensor([tokenizer.encode(caption).ids])


@pytest.mark.parametrize("caption", ["a disc", "", "A Red   boat", "boats " * 60])
def test_states_equal_those_of_the_caption_padded_to_77(
    folder: Path, reference: Any, encoder: PretrainedText, caption: str
) -> None:
    found = encoder.encode([caption])
    length = int(found.mask.sum())
    with torch.no_grad():
        expected = reference(input_ids=padded_ids(folder, caption)).last_hidden_state[0]
    assert found.states.shape == (1, length, 768)
    assert torch.allclose(found.states[0], expected[:length], atol=1e-5)


def test_caption_begins_and_ends_with_its_marks_and_is_cut_at_77(encoder: PretrainedText) -> None:
    assert encoder.encode([""]).mask.tolist() == [[1, 1]]
    assert encoder.encode(["a disc " * 99]).states.shape == (1, 77, 768)
    assert encoder.dim == 768


def test_states_do_not_depend_on_neighbours(encoder: PretrainedText) -> None:
    alone = encoder.encode(["a disc"]).states[0].clone()
    encoder._cache.clear()
    beside = encoder.encode(["two bars and a red boat", "a disc"])
    assert torch.equal(beside.states[1, : len(alone)], alone)
    assert not bool(beside.states[1, len(alone) :].any())
    assert beside.mask[1].sum() == len(alone)


@pytest.mark.slow
def test_folder_of_the_text_half_alone_gives_the_same_states(
    encoder: PretrainedText, reference: Any, tmp_path: Path
) -> None:
    """As pipelines' `text_encoder` folders hold it: written by transformers itself."""
    config, _ = clip_text_classes()
    part = tmp_path / "clip-vit-l14"
    write_clip(part)
    reference.save_pretrained(part)
    assert config.from_pretrained(part, local_files_only=True).hidden_size == 768
    names = safetensors.torch.load_file(part / "model.safetensors")
    assert not any("vision" in name for name in names)
    found = load_text_encoder("clip-vit-l14", Models(tmp_path)).encode(["a disc", ""])
    assert torch.equal(found.states, encoder.encode(["a disc", ""]).states)


def test_other_files_are_refused(tmp_path: Path) -> None:
    part = tmp_path / "clip-vit-l14"
    write_clip(part)
    path = part / "config.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps({**good, "text_config_dict": {}}))
    with pytest.raises(ModelMissingError, match="hidden_size is 512, expected 768"):
        load_text_encoder("clip-vit-l14", Models(tmp_path)).encode(["a"])
    path.write_text(json.dumps({**good, "text_config_dict": {"hidden_size": 768}}))
    with pytest.raises(ModelMissingError, match=r"tensor text_model\.encoder\.layers\.0\.mlp\.fc1"):
        load_text_encoder("clip-vit-l14", Models(tmp_path)).encode(["a"])
    path.write_text(json.dumps({**good, "text_config": {"hidden_act": "no-such"}}))
    with pytest.raises(ModelMissingError, match="describes no such network"):
        load_text_encoder("clip-vit-l14", Models(tmp_path)).encode(["a"])
