"""SQuAD's validation split through TFDS, from a file that people put down or that is downloaded."""

from __future__ import annotations

import json
import os
import sys
import zlib

import pytest
import tensorflow_datasets as tfds

from sleeplm.core.errors import ConfigError
from sleeplm.data.passages import read_passages
from sleeplm.data.squad import URL, load_squad


def article(title: str, *contexts: str) -> dict:
    """Three questions about each text; identifiers are in no order of their own."""
    return {
        "title": title,
        "paragraphs": [
            {
                "context": context,
                "qas": [
                    {
                        "id": f"{zlib.crc32(f'{k}{context}'.encode()):x}",
                        "question": f"Question  {k} about {context}?",
                        "answers": [{"text": t, "answer_start": 0} for t in (f"a{k}", "a", "a")],
                    }
                    for k in range(3)
                ],
            }
            for context in contexts
        ],
    }


ARTICLES = [article(f"The_title_{i}", f" Text {i}.\nMore.", f"Text of {i}") for i in range(8)]


@pytest.fixture
def put_down(tmp_path):
    """Writes ``dev-v1.1.json`` into a folder."""

    def write(folder, articles=ARTICLES):
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "dev-v1.1.json"
        file.write_text(json.dumps({"version": "1.1", "data": articles}))
        return file

    return write


@pytest.mark.parametrize("folder", ["squad", ""])
def test_passages_are_those_of_the_file_in_its_order(put_down, tmp_path, folder):
    file = put_down(tmp_path / "manual" / folder)
    found = load_squad(str(tmp_path / "tfds"), str(tmp_path / "manual"))
    assert len(found) == 16
    assert found == read_passages(str(file))
    assert found[0].title == "The title 0"
    assert found[0].questions[2].question == "Question 2 about Text 0. More.?"
    assert found[0].questions[2].answers == ("a2", "a")


def test_the_file_is_looked_for_where_tfds_does_and_prepared_once(put_down, tmp_path):
    file = put_down(tmp_path / "downloads" / "manual" / "squad")
    first = load_squad(str(tmp_path))
    file.unlink()
    assert load_squad(str(tmp_path)) == first


def test_without_a_file_it_is_downloaded(put_down, tmp_path, monkeypatch):
    file, asked = put_down(tmp_path / "internet"), []

    def download(self, url):
        asked.append(url)
        return file

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    assert load_squad(str(tmp_path / "tfds")) == read_passages(os.fspath(file))
    assert asked == [URL]


def test_what_cannot_be_downloaded_is_one_line_with_a_way_out(tmp_path, monkeypatch):
    def download(self, url):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    with pytest.raises(ConfigError) as caught:
        load_squad(str(tmp_path / "tfds"), str(tmp_path))
    message = str(caught.value)
    assert message.startswith("world = 'squad': cannot be prepared (")
    assert "no network" in message and "\n" not in message
    assert message.endswith(f"put dev-v1.1.json into {tmp_path}/squad")


def test_a_file_that_is_something_else_is_refused_until_it_is_mended(put_down, tmp_path):
    put_down(tmp_path, [{"title": "x", "paragraphs": [{"context": "", "qas": []}]}])
    with pytest.raises(ConfigError, match=r"dev-v1.1.json: data\[0\].paragraphs\[0\].context = ''"):
        load_squad(str(tmp_path / "tfds"), str(tmp_path))
    put_down(tmp_path)
    assert len(load_squad(str(tmp_path / "tfds"), str(tmp_path))) == 16


def test_tensorflow_is_not_needed(put_down, tmp_path):
    put_down(tmp_path)
    load_squad(str(tmp_path / "tfds"), str(tmp_path))
    assert "tensorflow" not in sys.modules
