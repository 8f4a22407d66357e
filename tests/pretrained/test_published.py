"""A backbone is found by one name, whatever kind of file it is in."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.pretrained.hf_config import read_config
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


@pytest.mark.parametrize("name", ["nowhere", "nowhere.gguf"])
def test_what_is_not_there_is_one_line(name, tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        find_backbone(str(tmp_path / name))
