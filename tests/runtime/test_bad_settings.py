"""Whatever is wrong is said in one line, before anything is written or compiled."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time

import jax
import pytest
from jax._src import compiler

from sleeplm import cli
from sleeplm.core.errors import ConfigError
from sleeplm.runtime.config import load_config, to_dict

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT = str(ROOT / "experiments" / "retention.py")
DREAMS = str(ROOT / "experiments" / "retention_dreams.py")

#: Overrides of the retention experiment, and words that the line must hold: the field, the value,
#: and what would be right.
SETTINGS = [
    # levels and nights
    (["model.levels[0].period=7"], ["model.levels[0].night", "90", "multiple", "period (7)"]),
    (
        ["model.levels[0].period=3", "model.levels[1].period=5"],
        ["model.levels[1].period", "5", "multiple of fast's period (3)"],
    ),
    (["model.levels[1].period=5", "model.levels[0].period=0"], ["levels[1].period", "faster"]),
    (["model.levels[0].night=45"], ["model.levels[0].night", "45", "multiple of day.chunk (30)"]),
    (["model.levels[0].night=-30"], ["model.levels[0].night", "-30", "at least 0"]),
    (["model.levels[0].night=0"], ["model.levels", "give one level a night"]),
    (["model.levels[1].night=90"], ["model.levels[1].night", "90", "no receiver"]),
    (["model.levels[1].top_k=9"], ["model.levels[1].top_k", "9", "slots (6)"]),
    (["model.levels[1].slots=0"], ["model.levels[1].slots", "0", "at least 1 slot"]),
    (["model.levels[0].offset=1"], ["model.levels[0].offset", "1", "period (1)"]),
    (["model.levels[0].name=slow"], ["model.levels", "own name"]),
    (["model.levels[1].kind=graft"], ["model.levels", "kind 'replace'"]),
    (["model.levels[0].optimizer=adam"], ["levels[0].optimizer", "'adam'", "adamw"]),
    (["model.wiring=nested"], ["model.wiring", "nested", "same kind and width"]),
    (["days=9"], ["model.levels[1].slots", "6", "9 nights", "merge_balanced"]),
    (
        ["sleep.pool=merge_oldest", "model.levels[1].slots=1", "model.levels[1].top_k=1"],
        ["model.levels[1].slots", "1", "at least 2"],
    ),
    # the model
    (["model.n_heads=3", "model.n_kv_heads=1"], ["model.n_heads", "3", "d_model (128)"]),
    (["model.n_kv_heads=3"], ["model.n_kv_heads", "3", "n_heads (4)"]),
    (["model.max_len=32"], ["model.max_len", "32", "at least 64"]),
    (["sleep.length=65", "sleep.pack=0"], ["model.max_len", "64", "at least 65"]),
    (["model.vocab_size=258"], ["model.vocab_size", "258", "at least 259"]),
    (["model.dtype=float16"], ["model.dtype", "'float16'", "bfloat16"]),
    # the night
    (["sleep.lam=1.5"], ["sleep.lam", "1.5", "between 0 and 1"]),
    (["sleep.lam=-0.1"], ["sleep.lam", "-0.1", "between 0 and 1"]),
    (["sleep.alpha=2"], ["sleep.alpha", "2", "between 0 and 1"]),
    (["sleep.gamma=-1"], ["sleep.gamma", "-1", "between 0 and 1"]),
    (["sleep.z0=-1"], ["sleep.z0", "-1", "at least 0"]),
    (["sleep.alpha=0.9", "sleep.pack=0", "sleep.group=3"], ["sleep.group", "3", "rows = 8"]),
    (["sleep.alpha=0.9", "sleep.pack=0", "sleep.group=1"], ["sleep.group", "1", "at least 2"]),
    (["sleep.alpha=0.9"], ["sleep.pack", "36", "without imitation"]),
    (["sleep.pack=31"], ["sleep.pack", "31", "at least length (32)"]),
    (["sleep.updates=100"], ["sleep.updates", "100", "inner * epochs (24)"]),
    (["sleep.merge_updates=100"], ["sleep.merge_updates", "100", "inner * epochs (24)"]),
    (["sleep.merge_updates=-24"], ["sleep.merge_updates", "-24", "at least 0"]),
    (["sleep.merge_updates=2.5"], ["sleep.merge_updates", "2.5", "integer"]),
    (["sleep.inner=0"], ["sleep.inner", "0", "at least 1"]),
    (["sleep.cue_tokens=32"], ["sleep.length", "32", "cue_tokens = 32"]),
    (["sleep.divergence=forward"], ["sleep.divergence", "'forward'", "did you mean 'forward_kl'"]),
    (["sleep.judge=exactly"], ["sleep.judge", "'exactly'", "did you mean 'exact'"]),
    (["sleep.pool=merge"], ["sleep.pool", "'merge'", "merge_oldest"]),
    (["sleep.teachers[1].state=morning"], ["sleep.teachers[1].state", "'morning'", "dawn"]),
    (["sleep.teachers[0].source=now"], ["sleep.teachers[0].source", "'now'", "today"]),
    (["sleep.learning_rate=nan"], ["sleep.learning_rate", "nan", "above 0"]),
    (["sleep.learning_rate=inf"], ["sleep.learning_rate", "inf", "above 0"]),
    (["sleep.temperature=-1"], ["sleep.temperature", "-1", "at least 0"]),
    # the life
    (["world=atlass"], ["world", "'atlass'", "did you mean 'atlas'"]),
    (["days=0"], ["days", "0", "at least 1"]),
    (["days=40", "model.levels[1].slots=40"], ["days", "40", "at most 18 days of 60 facts"]),
    (["facts_per_day=100000"], ["days", "at most 0 days of 100000 facts"]),
    (["day.chunk=0"], ["day.chunk", "0", "at least 1"]),
    (["day.chunk=7"], ["day.chunk", "7", "day.steps = 90"]),
    (["pretrain.chunk=7"], ["pretrain.chunk", "7", "pretrain.steps = 1200"]),
    (["pretrain.warmup=1200"], ["pretrain.warmup", "1200", "between 0 and 1199"]),
    (["arms=['sleep','sleep']"], ["arms", "once"]),
    (["arms=['nap']"], ["arms", "'nap'", "wake_only"]),
    (["arms=sleep"], ["arms", "'sleep'", "a list such as ['a', 'b'], each element text"]),
    (["arms=[]"], ["arms", "[]", "name some of sleep,", "wake_only"]),
    (["arms=['wake_only','inca']"], ["arms", "'inca'", "labelled world", "'atlas'"]),
    (["seed=-1"], ["seed", "-1", "between 0 and"]),
    (["world_seed=-1"], ["world_seed", "-1", "between 0 and"]),
    (["save_seconds=-1"], ["save_seconds", "-1", "at least 0"]),
    (["keep=0"], ["keep", "0", "at least 1"]),
    (["day.length=20"], ["day.length", "20", "longest text"]),
    (["pretrain.length=20"], ["pretrain.length", "20", "longest text"]),
    (["general=none.txt"], ["general", "'none.txt'", "name a text file"]),
    # many learners, and when they sleep
    (["seeds=0"], ["seeds", "0", "at least 1"]),
    (["seed=2147483647", "seeds=2"], ["seed", "2147483647", "between 0 and 2147483646"]),
    (["day_sizes=[9,0]", "days=0"], ["day_sizes[1]", "0", "at least 1"]),
    (["day_sizes=[9,9]"], ["days", "4", "day_sizes names 2 days"]),
    (["schedule.when=noon"], ["schedule.when", "'noon'", "day_end"]),
    (["schedule.ratio=0"], ["schedule.ratio", "0", "above 0"]),
    (["schedule.longest=20"], ["schedule.longest", "20", "shortest (30)"]),
    (
        ["schedule.when=surprise", "schedule.nights=9"],
        ["model.levels[1].slots", "6", "9 nights", "merge_balanced"],
    ),
    (
        ["model.levels[0].night=180", "days=9"],
        ["model.levels[1].slots", "6", "9 nights", "merge_balanced"],
    ),
    (["baselines.lora_rank=0"], ["baselines.lora_rank", "0", "at least 1"]),
    (["baselines.ewc_strength=-1"], ["baselines.ewc_strength", "-1", "at least 0"]),
    # dreams, and what is false
    (["dream.keep=99"], ["dream.keep", "99", "between 1 and dreams (32)"]),
    (["dream.inner=7"], ["dream.inner", "7", "dream.updates = 48"]),
    (["dream.gate_cluster=2"], ["dream.gate_cluster", "2", "between 0 and 1"]),
    (["arms=['dream']", "schedule.when=clock"], ["schedule.when", "'clock'", "'day_end'"]),
    (["arms=['dream']", "sleep.into=pool"], ["sleep.into", "'pool'", "'expert'"]),
    (["arms=['dream']", "dream.new_tokens=60"], ["model.max_len", "64", "dream.new_tokens = 80"]),
    (
        ["arms=['dream']", "dream.into=new"],
        ["model.levels[1].slots", "6", "4 nights", "at least 8 slots"],
    ),
    (
        ["arms=['dream']", "dream.into=new", "sleep.pool=merge_balanced"],
        ["dream.into", "'new'", "'night'"],
    ),
    (["falsehoods=1.5"], ["falsehoods", "1.5", "between 0 and 1"]),
    (["world=clinc150", "falsehoods=0.1"], ["falsehoods", "0.1", "worlds of facts"]),
    (["world=clinc150", "exam_facts=2"], ["exam_facts", "2", "worlds of facts", "use 1"]),
    (["world=clinc150", "formats=['question']"], ["formats", "question", "worlds of facts"]),
    (["formats=['poem']"], ["formats", "'poem'", "question"]),
    (["exam_facts=3"], ["exam_facts", "3", "between 1 and 2"]),
    (["day_questions=-2"], ["day_questions", "-2", "at least -1"]),
    (["arms=['dream']", "dream.formats=['rewrite']"], ["dream.formats", "seen 'rewrite'"]),
    (["arms=['dream']", "dream.agree=some"], ["dream.agree", "'some'", "all, own"]),
    # types and names
    (["days=many"], ["days", "'many'", "integer"]),
    (["days=True"], ["days", "True", "integer"]),
    (["days=2.5"], ["days", "2.5", "integer"]),
    (["sleep.lam=half"], ["sleep.lam", "'half'", "number"]),
    (["model.tie_embeddings=7"], ["model.tie_embeddings", "7", "true or false"]),
    (["sleep.learning_rat=1"], ["sleep.learning_rat", "did you mean learning_rate?"]),
    (["model.levels[2].night=30"], ["model.levels[2]", "has [0, 1]"]),
    (["sleep=5"], ["sleep", "5"]),
    (["day_sizes=5"], ["day_sizes", "5", "a list such as [1, 2], each element an integer"]),
    (["model.levels=5"], ["model.levels", "5", "a list, each element a LevelConfig"]),
    (["days"], ["days", "has no value"]),
]


@pytest.fixture
def refuse(capsys, tmp_path, monkeypatch):
    """Runs the command line, which must refuse in one line and leave nothing behind."""

    def compiles(*args, **kwargs):
        raise AssertionError("something was compiled")  # at once: a whole run would follow

    monkeypatch.setattr(compiler, "compile_or_get_cached", compiles)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, leaves: int = 0) -> str:
        before = sorted(tmp_path.rglob("*"))
        began = time.monotonic()
        try:
            status = cli.main(arguments)
        except SystemExit as stop:  # argparse leaves this way
            status = stop.code
        shown = capsys.readouterr()
        assert status == 2, shown
        assert shown.out == ""
        lines = shown.err.splitlines()
        assert len(lines) == 1, shown.err
        assert lines[0].startswith("sleeplm")
        assert sorted(tmp_path.rglob("*")) == before
        assert time.monotonic() - began < 20
        return lines[0]

    return run


@pytest.mark.parametrize(("overrides", "words"), SETTINGS, ids=lambda x: " ".join(x)[:40])
def test_a_bad_setting_is_named_with_its_value_and_what_would_be_right(refuse, overrides, words):
    line = refuse("run", EXPERIMENT, "--workdir", "w", *(f"--config.{o}" for o in overrides))
    for word in words:
        assert word in line


def test_general_text_that_cannot_be_used_is_refused_before_a_backbone_is_pretrained(
    refuse, tmp_path
):
    for content, words in ((b"too short", "a row needs 63"), (b"\xff", "is not UTF-8")):
        (tmp_path / "short.txt").write_bytes(content)
        line = refuse("run", EXPERIMENT, "--workdir", "w", "--config.general=short.txt")
        assert "short.txt" in line and words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", EXPERIMENT, "--resum"], ["--resum", "did you mean --resume?"]),
        (["run", EXPERIMENT, "--work-dir=w"], ["--work-dir=w", "did you mean --workdir?"]),
        (["run", EXPERIMENT, "--days=6"], ["--days=6", "did you mean --config.days=6?"]),
        (["run", EXPERIMENT, "extra"], ["extra", "--config.FIELD=VALUE"]),
        (["run", EXPERIMENT, "--resume"], ["resume", "--workdir DIR"]),
        (["report", "w", "--config.days=6"], ["--config.days=6", "sleeplm report --help"]),
        (["export", "w", "--out=o", "--nigth=2"], ["--nigth=2", "did you mean --night?"]),
        (["export", "w"], ["--out", "sleeplm export --help"]),
        (["report", "w", "--agianst", "sleep"], ["--agianst", "did you mean --against?"]),
        (["report", "w", "--resum"], ["'--resum': unknown; see sleeplm report --help"]),
        (["run", EXPERIMENT, "--ou=w"], ["--ou=w", "did you mean --config.ou=w?"]),
        (["plan", "p.py", "--topology=v5e:4x4", "--jsn=f"], ["did you mean --json?"]),
        (["run", "--config.days", "2", EXPERIMENT], ["--config.days 2", "write --config.days=2"]),
        (["run", "--config.days", EXPERIMENT], ["--config.days", "write --config.days=VALUE"]),
        (["import-memories", "w", "--base=b"], ["out", "--out DIR"]),
        (["import-memories", "w", "--out=o"], ["--base", "--into"]),
        (["run", f"{DREAMS}:twofacts"], ["config = 'twofacts'", "two_facts or a world"]),
        (["run"], ["config", "sleeplm run --help"]),
        (["rnu", EXPERIMENT], ["rnu", "run", "report"]),
        ([], ["COMMAND"]),
    ],
)
def test_a_misspelt_command_line_is_put_right(refuse, arguments, words):
    line = refuse(*arguments)
    for word in words:
        assert word in line


@pytest.mark.parametrize("out", ["{}", "{}/below"])
@pytest.mark.parametrize(
    "command",
    [["report", "w"], ["export", "w"], ["import-memories", "w", "--base=b"]],
)
def test_a_folder_that_is_to_be_written_is_no_file(refuse, tmp_path, command, out):
    (tmp_path / "file").write_text("mine")
    line = refuse(*command, f"--out={out.format('file')}")
    assert f"out = '{out.format('file')}'" in line and "file is not a directory" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["must define get_config()"]),
        ("get_config = 5", ["must define get_config()"]),
        (
            "def get_config():\n  raise RuntimeError('no\\nluck')",
            ["get_config() failed", "no luck"],
        ),
        ("def get_config(): return 1 / 0", ["ZeroDivisionError"]),
        ("import nothing_of_that_name", ["cannot be run", "nothing_of_that_name"]),
        ("def get_config(:", ["SyntaxError"]),
        ("def get_config(): return {'days': 4}", ["must return a dataclass", "dict"]),
        (
            "from sleeplm.methods.config import SleepConfig as get_config",
            ["must return a job", "run()"],
        ),
    ],
)
def test_an_experiment_file_that_makes_no_job_is_refused(refuse, tmp_path, text, words):
    (tmp_path / "mine.py").write_text(text)
    line = refuse("run", "mine.py")
    for word in ["mine.py", *words]:
        assert word in line


def test_an_experiment_file_that_is_not_there_is_refused(refuse, tmp_path):
    assert "'none.py': no such file" in refuse("run", "none.py")
    (tmp_path / "folder.py").mkdir()
    assert "no such file" in refuse("run", "folder.py")
    (tmp_path / "mine.txt").write_text("hello")
    assert "*.py" in refuse("run", "mine.txt")


def test_a_workdir_that_cannot_be_one_is_refused(refuse, tmp_path):
    (tmp_path / "file").write_text("mine")
    line = refuse("run", EXPERIMENT, "--workdir", "file")
    assert "workdir" in line and "not a directory" in line
    line = refuse("run", EXPERIMENT, "--workdir", "file/below")
    assert "workdir" in line and "not a directory" in line
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere" / "there")
    assert "workdir" in refuse("run", EXPERIMENT, "--workdir", "lost")


def test_a_workdir_that_may_not_be_written_is_refused(refuse, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    line = refuse("run", EXPERIMENT, "--workdir", "forbidden")
    assert "workdir" in line and "may not write" in line


def test_tensorboard_is_asked_for_where_it_is_installed(refuse, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    line = refuse("run", EXPERIMENT, "--workdir", "w", "--tensorboard")
    assert "tensorboard" in line and "pip install 'sleeplm[tensorboard]'" in line


def test_a_file_system_that_fails_is_one_line_too(refuse, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "runs/w")

    monkeypatch.setattr("sleeplm.runtime.run.Run", full)
    assert refuse("run", EXPERIMENT) == "sleeplm: runs/w: No space left on device"


def test_a_directory_with_a_run_is_not_overwritten_and_not_resumed_with_other_settings(
    refuse, tmp_path
):
    saved, config = tmp_path / "w" / "config.json", to_dict(load_config(EXPERIMENT, []))
    saved.parent.mkdir()
    theirs = config | {"seed": 5, "cache": "elsewhere", "sleep": config["sleep"] | {"updates": 9}}
    saved.write_text(json.dumps({"digest": "of another", "config": theirs}))
    line = refuse("run", EXPERIMENT, "--workdir", "w")
    assert "holds a run" in line and "--resume" in line
    line = refuse("run", EXPERIMENT, "--workdir", "w", "--resume")
    assert "another configuration" in line and "--workdir" in line
    assert "seed is 5 there and 0 here" in line and "sleep.updates is 9 there and 240" in line
    assert "cache" not in line and "more" not in line  # where the cache is changes nothing
    saved.write_text(json.dumps({"digest": "of another", "config": {"seed": 0}}))
    line = refuse("run", EXPERIMENT, "--workdir", "w", "--resume")
    assert "world is absent there and 'atlas' here" in line and "more differ" in line
    for text in ("{", "[]", "5", '{"config": {}}', '{"digest": "d", "config": 5}', "\x00"):
        saved.write_text(text)
        line = refuse("run", EXPERIMENT, "--workdir", "w", "--resume")
        assert "config.json" in line and "--workdir" in line


@pytest.mark.parametrize("resume", [(), ("--resume",)])
@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "results.json", "report.md"])
def test_what_another_program_has_left_is_not_taken_for_a_run(refuse, tmp_path, name, resume):
    (tmp_path / "epoch-1.ckpt").write_text("weights")
    if name == "checkpoints":
        (tmp_path / name / "theirs").mkdir(parents=True)
        (tmp_path / name / "theirs" / "weights").write_text("theirs")
    else:
        (tmp_path / name).write_text("theirs")
    line = refuse("run", EXPERIMENT, "--workdir", ".", *resume)
    assert f"has no config.json of a run, which would replace its {name}: name another" in line
    kept = tmp_path / name / "theirs" / "weights" if name == "checkpoints" else tmp_path / name
    assert kept.read_text() == "theirs"


GOOD = {"matrix": [[1.0]], "awake": [1.0], "pretrain": [1.0], "pretrain_start": 1.0}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (None, "no such file; has the run finished?"),
        ("{", "cannot be read as JSON"),
        ("[1]", "entry arms"),
        ('{"arms": 5}', "entry arms"),
        ('{"arms": {}}', "at least one arm"),
        ('{"arms": {"sleep": 5}}', "arms.sleep"),
        ('{"arms": {"sleep": []}}', "at least one seed"),
        ('{"arms": {"sleep": {"matrix": [[1]]}}}', "lacks the entry"),
        (json.dumps({"arms": {"sleep": {**GOOD, "matrix": [[1, 2]]}}}), "arms.sleep.matrix"),
        (json.dumps({"arms": {"sleep": {**GOOD, "matrix": 5}}}), "arms.sleep.matrix"),
        (json.dumps({"arms": {"sleep": {**GOOD, "awake": "x"}}}), "arms.sleep.awake"),
        (json.dumps({"arms": {"sleep": {**GOOD, "tokens": 5}}}), "results"),
        (json.dumps({"arms": {"sleep": {**GOOD, "seconds": "x"}}}), "results"),
        (json.dumps({"arms": {"sleep": GOOD}, "world": 5}), "results"),
        (json.dumps({"arms": {"sleep": GOOD}, "seconds": "x"}), "results"),
    ],
)
def test_the_report_of_a_missing_or_garbled_run_is_refused(refuse, tmp_path, text, word):
    if text is not None:
        (tmp_path / "w").mkdir()
        (tmp_path / "w" / "results.json").write_text(text)
    assert word in refuse("report", "w")


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="sleep.lam"):
        cli.main(["run", EXPERIMENT, "--config.sleep.lam=7", "--debug"])
    with pytest.raises(ConfigError, match="no such file"):
        cli.main(["report", "w", "--debug"])


def test_an_interrupt_before_the_run_listens_is_one_line(capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert cli.main(["run", EXPERIMENT]) == 130
    assert capsys.readouterr().err == "sleeplm: interrupted\n"


def test_a_negative_value_may_stand_apart_from_its_setting(refuse):
    assert "sleep.z0 = -1" in refuse("run", EXPERIMENT, "--config.sleep.z0", "-1")


def test_the_check_of_settings_would_notice_a_compilation(refuse, monkeypatch):
    def compiles(*args):
        jax.jit(lambda x: x + 1)(1)
        raise ConfigError("field", 1, "remedy")

    monkeypatch.setattr(cli, "_run", compiles)
    with pytest.raises(AssertionError, match="something was compiled"):
        refuse("run", EXPERIMENT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", EXPERIMENT, "--config.sleep.lam=7"],
        ["run", "none.py"],
        ["report", "none"],
    ],
)
def test_the_installed_command_refuses_in_one_line(tmp_path, arguments):
    command = [sys.executable, "-m", "sleeplm", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_help_names_commands_flags_and_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("run", "report", "sleeplm run experiments/retention.py", "--config.FIELD=VALUE"):
        assert word in text
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("--workdir", "--resume", "--quiet", "--debug", "get_config()", "Ctrl-C"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100
