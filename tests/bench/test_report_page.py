from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleeplm.bench.blocks import Heading, Picture, Table, Text, picked, render_page
from sleeplm.bench.figure import draw_retention
from sleeplm.bench.html import render_html
from sleeplm.bench.panels import _apart, _power, _style
from sleeplm.bench.report import write_report

ARMS = ("sleep", "wake_only", "sleep_rollouts", "one_teacher", "static_replay", "adapters")


def make_seed(days: int, half: float, seed: int, full: bool = True) -> dict:
    """Recall that halves in ``half`` nights; with every optional entry if ``full``."""
    rng = np.random.default_rng(seed)
    night, day = np.mgrid[:days, :days]
    recall = (0.95 * 2.0 ** (-np.maximum(night - day, 0) / half)).clip(0, 1)
    recall *= rng.uniform(0.95, 1)
    rows = np.where(day <= night, recall, None).tolist()
    required = {
        "matrix": rows,
        "awake": [0.96] * days,
        "pretrain": np.linspace(0.9, 0.8, days).tolist(),
        "pretrain_start": 0.95,
        "seed": seed,
    }
    if not full:
        return required
    return required | {
        "forward": [0.1] * days,
        "floor": [0.0] * days,
        "logp": (-10 * (1 - recall)).tolist(),
        "logp_start": [-12.0] * days,
        "kl": [0.01] * days,
        "cluster": [0.05] * days,
        "dusk": rows,
        "routing": {
            "traffic": (np.eye(days) + 0.1).tolist(),
            "born": list(range(days)),
            "learned": recall[-1].tolist(),
            "oracle": [0.9] * days,
        },
        "bits": {"held": 1234.5, "parameters": 10000, "per_parameter": 0.12345},
        "cues": {"entries": 90, "bytes": 12345, "longest": 8, "written_by": "subjects"},
        "tokens": {"wake": 1000, "sampled": 2500},
        "flops": {"wake": 1e12 * half, "sampled": 2e12},
        "seconds": {"total": 3.5},
        "raw_text": False,
        "log": {"nights": days, "rolled_back": 1},
    }


def make_results(names=("sleep", "wake_only"), days=3, seeds=2, full=True, **entries) -> dict:
    arms = {
        name: [make_seed(days, 20 / (1 + number), seed, full) for seed in range(seeds)]
        for number, name in enumerate(names)
    }
    return {"experiment": "retention", "arms": arms} | entries


class Reader(HTMLParser):
    """Tables as lists of rows of cells, and every tag with its attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.tables, self.tags, self.open, self.text = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes what it did not open"

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def markdown_tables(page: str) -> list[list[list[str]]]:
    tables = re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE)
    rows = [[re.split(r"(?<!\\)\|", line)[1:-1] for line in t.splitlines()] for t in tables]
    plain = [[[c.strip().replace("**", "") for c in row] for row in table] for table in rows]
    return [[row for row in table if set(row) != {"---"}] for table in plain]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    place = tmp_path_factory.mktemp("report")
    write_report(place, make_results())
    return place


def test_the_page_opens_without_a_network(written):
    reader = Reader((written / "report.html").read_text())
    assert not reader.open, "every element is closed"
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in reader.tags}
    fetched = [a[k] for _, a in reader.tags for k in ("src", "href", "srcset") if k in a]
    (source,) = fetched
    head, _, data = source.partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == (written / "retention.png").read_bytes()
    style = re.search(r"<style>(.*?)</style>", (written / "report.html").read_text(), re.DOTALL)
    assert "url(" not in style[1] and "@import" not in style[1]


def test_both_pages_have_the_same_tables_and_the_same_headings(written):
    page, reader = (
        (written / "report.md").read_text(),
        Reader((written / "report.html").read_text()),
    )
    assert len(reader.tables) > 8
    assert reader.tables == markdown_tables(page)
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    assert [tag for tag, _ in reader.tags if tag in ("h1", "h2")] == ["h1"] + ["h2"] * (
        len(headings) - 1
    )
    assert all(heading in reader.text for heading in headings)


def test_the_page_shows_costs_beside_scores_and_what_else_was_measured(written):
    page = (written / "report.md").read_text()
    tables = {tuple(table[0]): table[1:] for table in markdown_tables(page)}
    cost = tables["arm", "recall at the end", "total tokens", "total FLOPs", "total seconds"]
    assert cost[0][0] == "sleep" and cost[0][2:] == ["3,500", "2.2e+13", "3.5"]
    ((_, bits, parameters, per_parameter), _) = tables[
        "arm", "bits held", "parameters", "bits per parameter"
    ]
    assert bits.startswith("1,234 (") and parameters == "10,000"
    assert per_parameter.startswith("0.123 (")
    assert ["sleep", "90", "12,345", "8", "subjects", "no", "3", "1"] in [
        row for table in tables.values() for row in table
    ]
    for title in ("Log-probability", "Routing", "KL to the original", "Largest cluster", "Dusk"):
        assert f"## {title}" in page


def test_the_world_is_told_in_one_line(tmp_path):
    sizes = {"questions_per_day": [60, 60, 60], "texts_per_day": [180, 90, 120]}
    world = {"name": "atlas", "digests": ["0123", "4567"]} | sizes
    write_report(tmp_path, make_results(full=False, world=world, digest="0123456789abcdef"))
    line = (tmp_path / "report.md").read_text().splitlines()[2]
    assert line == (
        "name atlas; questions per day 60; texts per day 90 to 180; configuration 0123456789ab"
    )


def test_sections_without_anything_to_show_are_left_out(tmp_path):
    write_report(tmp_path, make_results(full=False))
    page = (tmp_path / "report.md").read_text()
    for title in ("Log-probability", "Routing", "KL to", "Largest", "Knowledge"):
        assert f"## {title}" not in page
    assert [] not in markdown_tables(page)


@pytest.mark.parametrize(
    ("half", "text"), [(4.0, "4"), (12.345, "12.3"), (1e5, ">1000"), (np.inf, "no decay")]
)
def test_half_lives_are_told_up_to_a_thousand_nights(tmp_path, half, text):
    write_report(tmp_path, {"arms": {"sleep": make_seed(4, half, 0, full=False)}})
    head, row = markdown_tables((tmp_path / "report.md").read_text())[0]
    assert row[head.index("half-life (nights)")] == text


def test_names_from_outside_cannot_break_the_pages(tmp_path):
    name, world = "<script>alert(1)</script>", {"name": "a|b <b>&amp;</b>"}
    write_report(tmp_path, make_results((name, "a|b"), full=False, world=world))
    reader = Reader((tmp_path / "report.html").read_text())
    assert not {"script"} & {tag for tag, _ in reader.tags}
    assert name in {row[0] for row in reader.tables[0]}
    assert "name a|b <b>&amp;</b>" in reader.text
    page = (tmp_path / "report.md").read_text()
    assert {row[0] for row in markdown_tables(page)[0]} == {"arm", name, r"a\|b"}
    assert len({len(row) for row in markdown_tables(page)[0]}) == 1


def test_blocks_are_written_in_both_languages():
    content = [Heading("A & B", 1), Text("one **two**"), Picture("alt", "p.png"), Table(["h"], [])]
    assert render_page(content).splitlines()[0] == "# A & B"
    assert "![alt](p.png)" in render_page(content)
    page = render_html(content, {"p.png": b"bytes"})
    assert "<h1>A &amp; B</h1>" in page and "<p>one <b>two</b></p>" in page
    with pytest.raises(KeyError, match=r"p\.png"):
        render_html(content, {})


def test_of_many_nights_ten_are_picked_with_the_first_and_the_last():
    assert picked(4) == [0, 1, 2, 3]
    for count in (11, 12, 40, 365):
        places = picked(count)
        assert len(set(places)) == 10 and places == sorted(places)
        assert places[0] == 0 and places[-1] == count - 1


@pytest.mark.parametrize(
    ("arms", "days", "full"), [(2, 4, True), (5, 3, True), (7, 3, False), (16, 8, True)]
)
def test_the_picture_is_full_and_nothing_is_cut_off(tmp_path, arms, days, full):
    names = [*ARMS, *(f"a_control_arm_with_a_long_name_{n}" for n in range(12))][:arms]
    write_report(tmp_path, make_results(names, days=days, full=full))
    picture = matplotlib.image.imread(tmp_path / "retention.png")[..., :3]
    assert picture.std() > 0.05
    # A sixth of the height is nowhere empty, and nothing reaches the border.
    filled = (picture < 1).any(axis=(1, 2))
    gaps = np.diff(np.flatnonzero(filled), prepend=0, append=len(filled))
    assert gaps.max() < len(filled) / 6
    for border in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (border == 1).all()


def test_forty_nights_and_eighteen_arms_can_be_drawn(tmp_path):
    names = [f"arm_{number}" for number in range(18)]
    night, day = np.mgrid[:40, :40]
    recall = np.where(day <= night, 0.9, None).tolist()
    arms = {
        name: {
            "matrix": recall,
            "age": [0.9] * 40,
            "mean_recall_last": {"mean": 0.9},
            "figures": {"flops": {"mean": 1e12}},
        }
        for name in names
    }
    draw_retention(arms, tmp_path / "p.png")
    picture = matplotlib.image.imread(tmp_path / "p.png")
    assert picture.shape[1] == pytest.approx(1980, abs=2)


def test_no_two_of_many_lines_look_alike():
    styles = {tuple(_style(number).values()) for number in range(49)}
    assert len(styles) == 49
    assert len({(s["color"], s["marker"]) for s in map(_style, range(18))}) == 18


@given(st.lists(st.floats(0, 100), min_size=1, max_size=18).map(sorted))
def test_names_keep_their_order_and_their_distance_and_stay_in_the_panel(places):
    moved = _apart(places, 5.5)
    assert np.diff(moved).min(initial=9) >= 5.5 - 1e-6
    assert moved[0] >= -1e-6 and moved[-1] <= 100 + 1e-6
    if np.diff(places).min(initial=9) >= 5.5:
        assert moved == pytest.approx(places)


@pytest.mark.parametrize(("value", "text"), [(1e14, "1e14"), (1.5e9, "1.5e9"), (2e3, "2e3")])
def test_compute_is_written_short(value, text):
    assert _power(value) == text
