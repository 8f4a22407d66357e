"""Where everything is installed, what is skipped without a known reason fails the session."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MAY_BE_SKIPPED = """
import pytest

@pytest.mark.skip(reason="needs two cores")
def test_cores(): ...

def test_files():
    pytest.skip("needs train.csv, test.csv in $SLEEPLM_TEST_DATA/banking77")

@pytest.mark.xfail
def test_known_to_fail():
    assert False

def test_of_what_is_there(needs):
    needs("sleeplm", "pytest")
"""
LOST = {
    "test_package.py": "def test_one(needs):\n    needs('pytest', 'no_such_package')\n",
    "test_module.py": "import pytest\npytest.skip('torch is old', allow_module_level=True)\n",
    "test_reason.py": "import pytest\n@pytest.mark.skip(reason='why not')\ndef test_two(): ...\n",
}
LINES = {
    f"{test}: must not be skipped where all is installed: {reason}"
    for test, reason in {
        "test_package.py::test_one": "needs no_such_package: it is not installed",
        "test_module.py": "torch is old",
        "test_reason.py::test_two": "why not",
    }.items()
}

pytestmark = pytest.mark.slow


@pytest.fixture
def suite(tmp_path):
    """Runs the given test files under this suite's own conftest.py: exit status, lines of it."""
    for name in ("conftest.py", "skips.py"):
        shutil.copy(HERE / name, tmp_path)

    def run(files, *options, **environment):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "SLEEPLM_"))}
        env |= {"PYTHONPATH": str(HERE.parent), **environment}
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
        out = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
        )
        lines = [line for line in out.stdout.splitlines() if "must not be skipped" in line]
        return out.returncode, lines, out.stdout + out.stderr

    return run


@pytest.mark.parametrize("options", [(), ("--numprocesses", "2", "--dist", "loadfile")])
def test_what_is_lost_is_named_with_its_reason_and_fails_the_session(suite, options):
    files = {**LOST, "test_other.py": MAY_BE_SKIPPED}
    status, lines, said = suite(files, *options, SLEEPLM_ALL_INSTALLED="1")
    assert status == pytest.ExitCode.TESTS_FAILED, said
    assert set(lines) == LINES and len(lines) == len(LINES)


def test_what_is_skipped_for_a_known_reason_is_not_lost(suite):
    status, lines, said = suite({"test_other.py": MAY_BE_SKIPPED}, SLEEPLM_ALL_INSTALLED="1")
    assert (status, lines) == (0, []), said
    assert "1 passed, 2 skipped, 1 xfailed" in said


def test_elsewhere_anything_may_be_missing(suite):
    status, lines, said = suite({**LOST, "test_other.py": MAY_BE_SKIPPED})
    assert (status, lines) == (0, []), said


def test_make_test_says_that_all_is_installed():
    makefile = (HERE.parent / "Makefile").read_text()
    assert re.search(r"^test:.*\n\tSLEEPLM_ALL_INSTALLED=1 .*-m pytest", makefile, re.MULTILINE)
