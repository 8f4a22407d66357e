"""What is known before the first day is asked once, however often a run is stopped."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sleeplm.bench.start import FILE, KEPT, asked_once
from sleeplm.runtime.run import Run

FOUND = {
    "recall": np.asarray([[0.1, 0.7]], np.float32),
    "logp": np.asarray([[-3.3, -0.1]], np.float32),
    "em": np.asarray([[1 / 3]]),
    "said": [["something"]],
}


class Asked:
    """An exam that counts how often it was held."""

    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1
        return FOUND


@pytest.fixture
def run_in(brief, tmp_path):
    def run(**changes) -> Run:
        config = dataclasses.replace(brief.config(), **changes)
        again = (tmp_path / "run").exists()
        made = Run(tmp_path / "run", config, quiet=True, resume=again)
        made.claim()
        return made

    return run


def assert_found(found):
    assert found.keys() == FOUND.keys() & set(KEPT) == {"recall", "logp", "em"}
    for name, value in found.items():
        assert value.dtype == FOUND[name].dtype and value.tobytes() == FOUND[name].tobytes()


def test_a_run_that_goes_on_has_the_same_bits_and_asks_nothing(run_in):
    ask = Asked()
    assert_found(asked_once(run_in(), ask))
    assert_found(asked_once(run_in(), ask))
    assert ask.times == 1
    assert not list(run_in().directory.glob("*.partial"))


@pytest.mark.parametrize("left", [0, 10, 300])
def test_what_was_cut_off_is_asked_again_and_mended(run_in, left):
    ask, run = Asked(), run_in()
    asked_once(run, ask)
    whole = (run.directory / FILE).read_bytes()
    (run.directory / FILE).write_bytes(whole[:left])
    assert_found(asked_once(run_in(), ask))
    assert ask.times == 2
    assert (run.directory / FILE).read_bytes() == whole


def test_what_another_run_has_found_is_not_believed(run_in, tmp_path, brief):
    ask, run = Asked(), run_in()
    asked_once(run, ask)
    other = Run(tmp_path / "other", dataclasses.replace(brief.config(), seed=5), quiet=True)
    other.claim()
    (other.directory / FILE).write_bytes((run.directory / FILE).read_bytes())
    assert_found(asked_once(other, ask))
    assert ask.times == 2
