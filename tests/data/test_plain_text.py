"""Plain text to pretrain on: from files of any kind, in pieces."""

from __future__ import annotations

import gzip

import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.data.plain import TEXT, read_pieces


def test_plain_text_is_cut_into_pieces_of_a_few_words(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("one two three four five\n\n  six   seven\n")
    pieces = read_pieces(str(file), limit=10, words=3, seed=0)
    assert [piece.text for piece in pieces] == ["one two", "three four five", "six seven"]
    assert {(piece.prompt, piece.answer, piece.fact.relation) for piece in pieces} == {
        ("", "", TEXT)
    }


@pytest.mark.parametrize("name", ["book.jsonl", "book.jsonl.gz"])
def test_json_lines_have_their_text_in_a_field(tmp_path, name):
    raw = b'{"text": "one two\\nthree", "title": "x"}\n{"text": "four"}\n'
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    pieces = read_pieces(str(tmp_path / name), limit=10, words=9, seed=0)
    assert [piece.text for piece in pieces] == ["one two", "three", "four"]


def test_a_limit_takes_a_seeded_choice_in_the_order_of_the_file(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("".join(f"{i}\n" for i in range(100)))
    one, same, other = (
        [int(p.text) for p in read_pieces(str(file), 20, 5, seed)] for seed in (1, 1, 2)
    )
    assert one == same == sorted(one)
    assert len(one) == 20 and one != other


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("none.txt", None, "text = 'none.txt': cannot be read (No such file or directory)"),
        ("book.txt", b"\n \n", "text = 'book.txt': has no text"),
        ("book.txt.gz", b"plain", "text = 'book.txt.gz': cannot be read (Not a gzipped file"),
        (
            "book.txt.gz",
            gzip.compress(bytes(range(200)))[:30] + b"xxxxxxxx",
            "text = 'book.txt.gz': cannot be read",
        ),
        ("book.txt", b"a\nb\xf6\n", "book.txt:2 = 'byte 0xf6': is not UTF-8"),
        (
            "book.jsonl",
            b'{"text": "a"}\n{"body": 1}\n',
            "book.jsonl:2: text = '{\"body\": 1}': each",
        ),
        ("book.jsonl", b'{"text": 3}\n', "book.jsonl:1: text = 3: must be text"),
        ("book.jsonl", b"plain\n", "book.jsonl:1: text = 'plain': each line needs a text"),
    ],
)
def test_a_text_that_cannot_be_used_is_named(tmp_path, monkeypatch, name, raw, message):
    monkeypatch.chdir(tmp_path)
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        read_pieces(name, limit=10, words=9, seed=0)
    assert str(caught.value).startswith(message)
