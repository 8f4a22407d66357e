"""The ``sleeplm`` command."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import logging
import os
import pathlib
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Any

from sleeplm.arguments import SETTABLE, command_of, parser, unknown
from sleeplm.core.errors import ConfigError, SleepError
from sleeplm.plan import command as planning

PREFIX = "--config."  # as in runtime/config.py, for whose libraries --help does not wait


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
      Exit status: 0 done; 2 a setting, an input or a run directory that has to be mended (one
      line says which); 128 + n after signal n, with everything saved; 42 another process of the
      job is lost: all of them have to be started again.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, rest = parser().parse_known_args(given)
    _quiet_libraries()
    with contextlib.ExitStack() as job:
        return _carry_out(options, given, rest, job)


def _carry_out(
    options: argparse.Namespace, given: list[str], rest: list[str], job: contextlib.ExitStack
) -> int:
    try:
        _refuse_swallowed(given, options)
        overrides = _overrides(rest, options.command)
        if options.command == "run":
            _join(options, job)
            return _run(options, overrides)
        if options.command == "plan":
            return planning.carry_out(options, overrides)
        return {"report": _report, "export": _export, "import-memories": _import}[options.command](
            options
        )
    except SleepError as error:
        if options.debug or (options.command == "run" and _is_loss(error)):
            raise
        return _failed(options, str(error))
    except OSError as error:
        # Full, read-only or forbidden: everything that is read or written is the caller's.
        if options.debug:
            raise
        return _failed(options, f"{error.filename or 'file'}: {error.strerror or error}")
    except KeyboardInterrupt:
        # Before the run listens to signals, or the second one.
        if options.debug:
            raise
        return _failed(options, "interrupted", 128 + signal.SIGINT, patience=0)


def _failed(options: argparse.Namespace, text: str, status: int = 2, **wait: int) -> int:
    """Says what is wrong, before the other processes of a job are waited for."""
    _complain(text, status)
    if options.command != "run":
        return status
    from sleeplm.runtime.hosts import leave

    return leave(status, **wait)


def _complain(text: str, status: int) -> int:
    print(f"sleeplm: {' '.join(text.split())}", file=sys.stderr)
    return status


def _overrides(rest: Sequence[str], command: str) -> list[str]:
    """The ``--config.…`` arguments; anything else is a mistake."""
    after_flag = False
    for text in rest:
        setting = text.startswith(PREFIX)
        if command not in SETTABLE or not (setting or (after_flag and not text.startswith("--"))):
            raise ConfigError("argument", text, _remedy(text, command))
        after_flag = setting and "=" not in text
    return list(rest)


def _remedy(text: str, command: str) -> str:
    otherwise = ""
    if command in SETTABLE:
        otherwise = "settings are --config.FIELD=VALUE"
        if text.startswith("--") and "=" in text:
            field = text.lstrip("-").removeprefix("config")
            otherwise = f"did you mean {PREFIX}{field}?"
    return unknown(text, command_of(parser(), command), otherwise)


def _refuse_swallowed(given: Sequence[str], options: argparse.Namespace) -> None:
    """Refuses a value in a word of its own before the experiment file, which it was taken for."""
    if options.command not in SETTABLE or options.config not in given:
        return
    value = options.config
    setting = given[given.index(value) - 1]
    if setting.startswith(PREFIX) and "=" not in setting:
        is_file = pathlib.Path(value.partition(":")[0]).suffix == ".py"
        remedy = f"write {setting}={'VALUE' if is_file else value}"
        raise ConfigError("argument", f"{setting} {value}", remedy)


def _join(options: argparse.Namespace, job: contextlib.ExitStack) -> None:
    """Makes this process one of several for as long as ``job`` is open, if that is asked for."""
    named = (options.coordinator, options.processes, options.process)
    if not options.distributed and named == (None, None, None):
        return
    from sleeplm.runtime.hosts import joined

    if options.distributed and named != (None, None, None):
        remedy = "the cluster says who is who: leave out --coordinator, --processes and --process"
        raise ConfigError("distributed", True, remedy)
    if not options.workdir:
        raise ConfigError("workdir", "", "say where, the same in every process: --workdir DIR")
    job.enter_context(joined(*named))


def _is_loss(error: BaseException) -> bool:
    from sleeplm.runtime.hosts import is_loss

    return is_loss(error)


def _run(options: argparse.Namespace, overrides: list[str]) -> int:
    # Imported here: `sleeplm --help` should not wait for jax.
    from sleeplm.runtime.config import check, load_config
    from sleeplm.runtime.hosts import fail_together
    from sleeplm.runtime.lifecycle import Stopped, StopRequest
    from sleeplm.runtime.run import Run

    with fail_together():
        config = load_config(options.config, overrides, options.quick)
        if not callable(getattr(config, "run", None)):
            raise ConfigError(
                "config", options.config, "get_config() must return a job: it has no run()"
            )
        check(config)
    if options.resume and not options.workdir:
        raise ConfigError("resume", "", "say which run: --workdir DIR")
    name = pathlib.Path(options.config.partition(":")[0]).stem
    workdir = options.workdir or f"runs/{name}-{_now()}"
    directory = pathlib.Path(workdir).expanduser()
    stop = StopRequest()
    with stop.listening():
        run = Run(
            directory,
            config,
            resume=options.resume,
            quiet=options.quiet,
            stop=stop,
            tensorboard=options.tensorboard,
        )
        try:
            config.run(run)
        except Stopped as stopped:
            if run.leads:
                again = _again(options, overrides, directory)
                _complain(f"stopped by {stopped}; saved. Go on with: {again}", 0)
            return 128 + stopped.signum
    if run.leads:
        print(_summary(directory))
    return 0


def _now() -> str:
    """Date and time, to the microsecond: runs are often started side by side."""
    return datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")


def _again(options: argparse.Namespace, overrides: list[str], directory: pathlib.Path) -> str:
    """The command that goes on with a run that was stopped."""
    words = ["sleeplm", "run", options.config, *(["--quick"] if options.quick else []), *overrides]
    words += ["--workdir", str(directory), *(["--tensorboard"] if options.tensorboard else [])]
    if options.distributed:
        words += ["--distributed"]
    if options.coordinator:
        words += ["--coordinator", options.coordinator, "--processes", str(options.processes)]
        words += ["--process", str(options.process)]
    return f"{shlex.join(words)} --resume"


def _report(options: argparse.Namespace) -> int:
    from sleeplm.bench.report import report_runs
    from sleeplm.bench.retention import RetentionConfig

    several = f"runs/report-{_now()}"
    out = options.out or (options.runs[0] if len(options.runs) == 1 else several)
    directory = _folder(out)
    runs = [pathlib.Path(run).expanduser() for run in options.runs]
    if len(runs) > 1:  # runs/* also means a report that was written among them
        reports = [run for run in runs if not _is_run(run) and (run / "report.json").exists()]
        for run in reports if len(reports) < len(runs) else ():
            _warn(f"{run} holds a report and no run: left out")
        runs = [run for run in runs if run not in reports] or runs
    defaults = dataclasses.asdict(RetentionConfig())
    report_runs(runs, directory, defaults=defaults, against=options.against)
    print(_summary(directory))
    return 0


def _is_run(folder: pathlib.Path) -> bool:
    return any((folder / name).exists() for name in ("config.json", "results.json"))


def _export(options: argparse.Namespace) -> int:
    from sleeplm.bench.handover import export

    memories = export(
        options.run,
        _folder(options.out),
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

    if options.base and not options.out:
        raise ConfigError("out", "", "say where the new folder is to be: --out DIR")
    folder, memories = import_memories(
        options.memories,
        base=options.base,
        into=options.into,
        out=_folder(options.out) if options.out else None,
        force=options.force,
        warn=_warn,
    )
    print(_about(memories, str(folder)))
    return 0


def _folder(out: str) -> pathlib.Path:
    """The folder that is to be written; that it can be is checked before the work."""
    from sleeplm.runtime.workdir import check_folder

    folder = pathlib.Path(out).expanduser()
    check_folder("out", folder)
    return folder


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
