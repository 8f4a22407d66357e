"""A backbone is found by one name, whatever kind of file it is in."""

from __future__ import annotations

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.pretrained.hf_config import read_config
from sleeplm.pretrained.hf_tokenizer import read_tokenizer, special_ids
from sleeplm.pretrained.hf_weights import load_params
from sleeplm.pretrained.published import find_backbone


@pytest.mark.slow
def test_a_folder_is_read_as_its_parts_are(reference):
    folder = reference("smollm2").folder
    found = find_backbone(str(folder), max_len=64)
    assert found.config == read_config(folder, max_len=64)
    for ours, alone in zip(
        jax.tree.leaves(found.load(found.config)),
        jax.tree.leaves(load_params(folder, found.config)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, alone)


@pytest.mark.slow
def test_the_package_is_a_name_and_its_file_is_another(smollm2):
    by_name, by_file = find_backbone("smollm2"), find_backbone(str(smollm2.path))
    assert by_name.config == by_file.config
    text = "Sleep helps the brain."
    tokenizer = by_name.read_tokenizer()
    assert tokenizer.encode(text) == by_file.read_tokenizer().encode(text) != []


@pytest.mark.slow
def test_what_it_is_handed_on_with_ends_where_its_file_says_not_where_the_run_ended_texts(
    smollm2, tmp_path
):
    from sleeplm.bench.handover import Lived, tokenizer_of
    from sleeplm.bench.retention import RetentionConfig

    file = find_backbone(str(smollm2.path), max_len=64)
    config = RetentionConfig(
        backbone=str(smollm2.path), model=dataclasses.replace(file.config, eos=0)
    )
    files, ids = tokenizer_of(Lived(config, None, None, {}, {}, ""))  # type: ignore[arg-type]
    tokenizer = file.read_tokenizer()
    longest = {"max_position_embeddings": 8192}  # not the 64 of this run
    assert ids == {"pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2} | longest
    assert files["tokenizer_config.json"]["model_max_length"] == 8192
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "config.json").write_text(json.dumps(ids))
    again = read_tokenizer(tmp_path)
    assert (again.pad, again.bos, again.stops) == (tokenizer.pad, tokenizer.bos, tokenizer.stops)


def test_a_model_may_end_generation_at_several_tokens():
    stops = types.SimpleNamespace(pad=0, bos=1, stops=(7, 5))
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": [7, 5]}
    assert special_ids(stops) == ids  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["nowhere", "nowhere.gguf"])
def test_what_is_not_there_is_one_line(name, tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        find_backbone(str(tmp_path / name))
