"""The ``sleeplm`` command."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import pathlib
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from sleeplm.core.errors import ConfigError, SleepError

DESCRIPTION = """\
sleeplm: language models that keep learning after they ship.

Awake, a model absorbs a stream into fast memory levels; asleep, it moves what they hold into
fresh experts of slower levels. `run` carries out an experiment file, `report` shows what came out.
"""

EXAMPLES = """\
examples:
  sleeplm run experiments/retention.py
  sleeplm run experiments/retention.py --config.world=biographies --config.days=6
  sleeplm run experiments/retention.py --workdir runs/mine --resume
  sleeplm report runs/mine
  sleeplm report runs/mine runs/other --out runs/both

An experiment file is Python with a function get_config() that returns the settings; every one of
them can be changed with --config.FIELD=VALUE, also nested: --config.sleep.updates=320 or
'--config.model.levels[0].width=128'. Ctrl-C saves and leaves; --resume goes on from there.
"""


FLAGS = ("--workdir", "--resume", "--quiet", "--debug", "--out", "--help")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main_parser = _Parser(
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
    report.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return main_parser


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
        if options.command == "report":
            return _report(options)
        return _run(options, overrides)
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
        if command != "run" or not (setting or (after_flag and not text.startswith("--"))):
            raise ConfigError("argument", text, _remedy(text, command))
        after_flag = setting and "=" not in text
    return list(rest)


def _remedy(text: str, command: str) -> str:
    close = difflib.get_close_matches(text.partition("=")[0], FLAGS, n=1)
    if close:
        return f"unknown; did you mean {close[0]}?"
    if command != "run":
        return f"unknown; see sleeplm {command} --help"
    if text.startswith("--") and "=" in text:
        return f"unknown; did you mean --config.{text.lstrip('-').removeprefix('config')}?"
    return "unknown; settings are --config.FIELD=VALUE"


def _run(options: argparse.Namespace, overrides: list[str]) -> int:
    # Imported here: `sleeplm --help` should not wait for jax.
    from sleeplm.runtime.config import check, load_config
    from sleeplm.runtime.lifecycle import Stopped, StopRequest
    from sleeplm.runtime.run import Run

    config = load_config(options.config, overrides)
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
            words = ["sleeplm", "run", options.config, *overrides, "--workdir", str(directory)]
            again = f"{shlex.join(words)} --resume"
            return _complain(
                f"stopped by {stopped}; saved. Go on with: {again}", 128 + stopped.signum
            )
    print(_summary(directory))
    return 0


def _report(options: argparse.Namespace) -> int:
    from sleeplm.bench.report import report_runs

    several = f"runs/report-{time.strftime('%Y%m%d-%H%M%S')}"
    out = options.out or (options.runs[0] if len(options.runs) == 1 else several)
    directory = pathlib.Path(out).expanduser()
    report_runs([pathlib.Path(run).expanduser() for run in options.runs], directory)
    print(_summary(directory))
    return 0


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
