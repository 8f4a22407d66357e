"""The ``sleeplm`` command."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import logging
import os
import pathlib
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from sleeplm.core.errors import ConfigError, SleepError
from sleeplm.plan import command as planning

DESCRIPTION = """\
sleeplm: language models that keep learning after they ship.

Awake, a model absorbs a stream into fast memory levels; asleep, it moves what they hold into
fresh experts of slower levels. `run` carries out an experiment file, `report` shows what came out,
`export` hands a learner on, `import-memories` puts memories onto the base they belong to, and
`plan` says what a TPU pod would have to have.
"""

EXAMPLES = """\
examples:
  sleeplm run experiments/retention.py
  sleeplm run experiments/retention.py --config.world=biographies --config.days=6
  sleeplm run experiments/retention.py --workdir runs/mine --resume
  sleeplm report runs/mine
  sleeplm report runs/mine runs/other --out runs/both
  sleeplm report runs/mine --against wake_only
  sleeplm export runs/mine --out shared/mine
  sleeplm export runs/mine --night 2 --out shared/night
  sleeplm import-memories shared/night --base shared/mine --out shared/other
  sleeplm plan experiments/plan_llama8b.py --topology v5e:4x4

An experiment file is Python with a function get_config() that returns the settings; every one of
them can be changed with --config.FIELD=VALUE, also nested: --config.sleep.updates=320 or
'--config.model.levels[0].width=128'. Ctrl-C saves and leaves; --resume goes on from there.
"""


SETTABLE = ("run", "plan")  # commands with an experiment file, whose settings can be changed
FLAGS = ("--workdir", "--resume", "--quick", "--quiet", "--debug", "--out", "--help")
HANDOVER = ("--out", "--force", "--debug", "--help")
#: What a misspelt flag of a command may have meant, where that is not among ``FLAGS``.
FLAGS_OF = {
    "export": (*HANDOVER, "--arm", "--learner", "--night", "--only", "--dtype", "--without-cues"),
    "import-memories": (*HANDOVER, "--base", "--into"),
    "plan": ("--topology", "--json", "--fit", "--fast", "--debug", "--help"),
}


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main_parser = OneLineParser(
        prog="sleeplm",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = main_parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run = commands.add_parser(
        "run",
        help="carry out an experiment file",
        description="Carries out an experiment and writes its report.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    run.add_argument(
        "config", help="Python file with get_config(); FILE:NAME calls get_config(NAME)"
    )
    run.add_argument(
        "--workdir", help="where results and checkpoints go (default: runs/NAME-DATE-TIME)"
    )
    run.add_argument(
        "--resume", action="store_true", help="go on where a run in --workdir stopped, or start it"
    )
    run.add_argument(
        "--quick",
        action="store_true",
        help="a short version of the experiment, where the file has one: get_quick_config()",
    )
    run.add_argument("--quiet", action="store_true", help="no progress")
    run.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    report = commands.add_parser(
        "report",
        help="write the report of finished runs and print it",
        description="Writes report.json, report.md, report.html and a picture of one run or of "
        "several together, and prints the report.",
        allow_abbrev=False,
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run directory")
    report.add_argument(
        "--out",
        metavar="DIR",
        help="where it goes (default: the run itself; of several, runs/report-DATE-TIME)",
    )
    report.add_argument(
        "--against",
        default="",
        metavar="ARM",
        help="the arm that others are compared with (default: sleep, or else the first)",
    )
    report.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    _add_export(commands)
    _add_import(commands)
    planning.add_to(commands)
    return main_parser


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write a learner of a finished run into a folder",
        description="Writes the backbone as a Hugging Face folder, and the memories that go onto "
        "it as safetensors with a card in JSON. See docs/export.md.",
        allow_abbrev=False,
    )
    export.add_argument("run", metavar="RUN", help="a run directory")
    export.add_argument("--out", metavar="DIR", required=True, help="a new folder")
    export.add_argument("--arm", help="which life (default: the first that has nights)")
    export.add_argument(
        "--learner", metavar="I", type=int, default=0, help="which of those side by side, from 0"
    )
    export.add_argument(
        "--night",
        metavar="N",
        type=int,
        action="append",
        help="only the expert of this night, from 0; may be repeated",
    )
    export.add_argument("--only", choices=("base", "memories"), help="leave the other out")
    export.add_argument("--dtype", help="round the base to float32 or bfloat16 (with --only base)")
    export.add_argument(
        "--without-cues", action="store_true", help="leave out the beginnings that nights tell from"
    )
    export.add_argument("--force", action="store_true", help="replace earlier memories in --out")
    export.add_argument("--debug", action="store_true", help="show tracebacks of errors")


def _add_import(commands: Any) -> None:
    take_in = commands.add_parser(
        "import-memories",
        help="put exported memories onto their base, or a night into another learner",
        description="Makes a folder with a learner out of exported memories and the base that "
        "they belong to; any other base is refused. See docs/export.md.",
        allow_abbrev=False,
    )
    take_in.add_argument("memories", metavar="DIR", help="exported memories, or single nights")
    onto = take_in.add_mutually_exclusive_group(required=True)
    onto.add_argument("--base", metavar="FOLDER", help="the Hugging Face folder they go onto")
    onto.add_argument("--into", metavar="FOLDER", help="a learner that gets single nights as well")
    take_in.add_argument(
        "--out", metavar="DIR", help="a new folder (default with --into: that one, in place)"
    )
    take_in.add_argument("--force", action="store_true", help="replace a learner in --out")
    take_in.add_argument("--debug", action="store_true", help="show tracebacks of errors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
      Exit status: 0 done; 2 a setting, an input or a run directory that has to be mended (one
      line says which); 128 + n after signal n, with everything saved.
    """
    options, rest = parser().parse_known_args(arguments)
    _quiet_libraries()
    try:
        overrides = _overrides(rest, options.command)
        if options.command == "run":
            return _run(options, overrides)
        if options.command == "plan":
            return planning.carry_out(options, overrides)
        return {"report": _report, "export": _export, "import-memories": _import}[options.command](
            options
        )
    except SleepError as error:
        if options.debug:
            raise
        return _complain(str(error), 2)
    except OSError as error:
        # Full, read-only or forbidden: everything that is read or written is the caller's.
        if options.debug:
            raise
        return _complain(f"{error.filename or 'file'}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        # Before the run listens to signals, or the second one.
        if options.debug:
            raise
        return _complain("interrupted", 128 + signal.SIGINT)


def _complain(text: str, status: int) -> int:
    print(f"sleeplm: {' '.join(text.split())}", file=sys.stderr)
    return status


def _overrides(rest: Sequence[str], command: str) -> list[str]:
    """The ``--config.…`` arguments; anything else is a mistake."""
    after_flag = False
    for text in rest:
        setting = text.startswith("--config.")
        if command not in SETTABLE or not (setting or (after_flag and not text.startswith("--"))):
            raise ConfigError("argument", text, _remedy(text, command))
        after_flag = setting and "=" not in text
    return list(rest)


def _remedy(text: str, command: str) -> str:
    close = difflib.get_close_matches(text.partition("=")[0], FLAGS_OF.get(command, FLAGS), n=1)
    if close:
        return f"unknown; did you mean {close[0]}?"
    if command not in SETTABLE:
        return f"unknown; see sleeplm {command} --help"
    if text.startswith("--") and "=" in text:
        return f"unknown; did you mean --config.{text.lstrip('-').removeprefix('config')}?"
    return "unknown; settings are --config.FIELD=VALUE"


def _run(options: argparse.Namespace, overrides: list[str]) -> int:
    # Imported here: `sleeplm --help` should not wait for jax.
    from sleeplm.runtime.config import check, load_config
    from sleeplm.runtime.lifecycle import Stopped, StopRequest
    from sleeplm.runtime.run import Run

    config = load_config(options.config, overrides, options.quick)
    if not callable(getattr(config, "run", None)):
        raise ConfigError(
            "config", options.config, "get_config() must return a job: it has no run()"
        )
    check(config)
    if options.resume and not options.workdir:
        raise ConfigError("resume", "", "say which run: --workdir DIR")
    name = pathlib.Path(options.config.partition(":")[0]).stem
    workdir = options.workdir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    directory = pathlib.Path(workdir).expanduser()
    stop = StopRequest()
    with stop.listening():
        try:
            run = Run(
                directory,
                config,
                resume=options.resume,
                quiet=options.quiet,
                stop=stop,
            )
            config.run(run)
        except Stopped as stopped:
            quick = ["--quick"] if options.quick else []
            words = ["sleeplm", "run", options.config, *quick, *overrides]
            words += ["--workdir", str(directory)]
            again = f"{shlex.join(words)} --resume"
            return _complain(
                f"stopped by {stopped}; saved. Go on with: {again}", 128 + stopped.signum
            )
    print(_summary(directory))
    return 0


def _report(options: argparse.Namespace) -> int:
    from sleeplm.bench.report import report_runs
    from sleeplm.bench.retention import RetentionConfig

    several = f"runs/report-{time.strftime('%Y%m%d-%H%M%S')}"
    out = options.out or (options.runs[0] if len(options.runs) == 1 else several)
    directory = pathlib.Path(out).expanduser()
    runs = [pathlib.Path(run).expanduser() for run in options.runs]
    defaults = dataclasses.asdict(RetentionConfig())
    report_runs(runs, directory, defaults=defaults, against=options.against)
    print(_summary(directory))
    return 0


def _export(options: argparse.Namespace) -> int:
    from sleeplm.bench.handover import export

    memories = export(
        options.run,
        options.out,
        arm=options.arm,
        learner=options.learner,
        nights=options.night,
        parts=(options.only,) if options.only else ("base", "memories"),
        cues=not options.without_cues,
        dtype=options.dtype,
        force=options.force,
        warn=_warn,
    )
    if options.only == "base":
        print(f"base {memories.base[:12]}: {options.out}")
    else:
        print(_about(memories, options.out))
    return 0


def _import(options: argparse.Namespace) -> int:
    from sleeplm.pretrained.learner_folder import import_memories

    folder, memories = import_memories(
        options.memories,
        base=options.base,
        into=options.into,
        out=options.out,
        force=options.force,
        warn=_warn,
    )
    print(_about(memories, str(folder)))
    return 0


def _warn(text: str) -> None:
    print(f"sleeplm: warning: {' '.join(text.split())}", file=sys.stderr)


def _about(memories: Any, folder: str) -> str:
    lines = [
        f"  night {one.night}: {one.level}, slot {one.slot}"
        + (f", days {', '.join(str(day) for day in one.days)}" if one.days else "")
        for one in memories.nights
    ]
    what = "a learner's memories" if memories.whole else "single nights"
    return "\n".join([f"{what} on base {memories.base[:12]}: {folder}", *lines])


def _summary(directory: pathlib.Path) -> str:
    from sleeplm.bench.report import PAGE

    page = (directory / PAGE).read_text()
    return f"{page}\nReport, figures and picture: {directory}"


def _quiet_libraries() -> None:
    """What libraries say about machines without accelerators, or about a damaged file that is
    then told in one line, helps nobody here."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("jax").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
