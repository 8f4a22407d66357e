"""The container file, without an engine to build it: what can be told from its text."""

from __future__ import annotations

import importlib.metadata
import pathlib
import re

import pytest

from launch.jobset import USER

ROOT = pathlib.Path(__file__).parents[2]
FILE = ROOT / "launch" / "Containerfile"


@pytest.fixture(scope="module")
def steps():
    """Instructions with their arguments; comments left out, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", FILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]


def of(steps, kind):
    return [" ".join(rest.split()) for name, rest in steps if name == kind]


def test_the_base_image_is_pinned_to_a_python_that_the_package_supports(steps):
    (base,) = of(steps, "FROM")
    tag = re.fullmatch(r"[\w./-]+/python:(\d+)\.(\d+)\.\d+-[\w-]+", base)
    assert tag, f"{base}: name the whole version"
    assert (int(tag[1]), int(tag[2])) >= (3, 11)


def test_nothing_is_fetched_but_packages_and_these_are_pinned(steps):
    assert not of(steps, "ADD")
    ran = of(steps, "RUN")
    assert not [run for run in ran if re.search(r"\b(curl|wget|git|apt-get|https?:)", run)]
    installs = [part for run in ran for part in run.split("&&") if "pip install" in part]
    assert installs
    for install in installs:
        assert re.search(r"--(requirement|constraint) requirements\.txt|--no-deps", install)
    for name in ("requirements.txt", "launch/requirements-gcs.txt"):
        lines = [line for line in (ROOT / name).read_text().splitlines() if line[:1] != "#"]
        assert all(re.fullmatch(r"[\w.-]+==[\w.!+]+", line) for line in lines), name


def test_everything_that_is_copied_is_there_and_packages_come_before_code(steps):
    copied = [source for copy in of(steps, "COPY") for source in copy.split()[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    assert {"sleeplm", "launch", "experiments", "pyproject.toml"} <= set(copied)
    assert copied[0] == "requirements.txt"


def test_the_entry_point_is_the_worker_as_a_process_that_gets_signals(steps):
    assert of(steps, "ENTRYPOINT") == ['["python", "-m", "launch.worker"]']
    assert not of(steps, "CMD")


def test_the_worker_is_not_root(steps):
    names = [name for name, _ in steps]
    assert of(steps, "USER") and "root" not in of(steps, "USER")
    assert names.index("USER") < names.index("ENTRYPOINT")


def test_the_worker_is_the_user_whose_group_a_claim_is_given_to(steps):
    (name,) = of(steps, "USER")
    assert any(f"useradd --create-home --uid {USER} {name} " in run for run in of(steps, "RUN"))


def test_the_accelerators_are_extras_of_the_pinned_jax(steps):
    pinned = re.search(r"^jax==(.+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
    extras = importlib.metadata.metadata("jax").get_all("Provides-Extra")
    assert importlib.metadata.version("jax") == pinned
    assert {"tpu", "cuda13"} <= set(extras)
    assert of(steps, "ARG") == ["ACCELERATOR=tpu"]
