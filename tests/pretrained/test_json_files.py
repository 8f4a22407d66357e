"""JSON of others is read as UTF-8 and as an object, or refused in one line that names the file."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.pretrained.json_files import read_json, read_object

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "config.json"


def test_an_object_is_read(path):
    path.write_text('{"a": [1, null]}')
    assert read_object(path, "model") == {"a": [1, None]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
        (b'{"a": "\xff"}', "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"[1]", "must hold a JSON object, not list"),
        (b"null", "must hold a JSON object, not NoneType"),
        (None, "No such file"),
    ],
    ids=["cut off", "empty", "other encoding", "too deep", "list", "null", "not there"],
)
def test_anything_else_is_one_line_that_names_the_file_and_what_would_be_right(path, content, said):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_object(path, "model", "name another folder")
    assert (error.value.field, error.value.value) == ("model", str(path))
    text = str(error.value)
    assert said in text and text.endswith(": name another folder") and "\n" not in text


def test_what_is_no_object_can_be_asked_for_too(path):
    path.write_text("[1]")
    assert read_json(path, "modules") == [1]
    path.write_text("[1")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        read_json(path, "modules")


PROGRAM = """
import pathlib, sys
from sleeplm.pretrained.json_files import read_object
from sleeplm.pretrained.tensor_files import write_text
path = pathlib.Path(sys.argv[1])
write_text(path, '{"a": "\\u00e9"}')
assert read_object(path, "model") == {"a": "\\u00e9"}
"""


@pytest.mark.slow
def test_a_locale_without_accents_changes_nothing(path):
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    there = os.environ | plain | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", PROGRAM, str(path)], env=there, check=True)
    assert path.read_bytes() == '{"a": "é"}'.encode()
