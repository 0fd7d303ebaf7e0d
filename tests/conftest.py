"""For all tests: one thread each, and in CI no test may be skipped."""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before torch is imported: tests run side by side


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """Name what was skipped; a gap must be seen."""
    for report in terminalreporter.stats.get("skipped", []):
        terminalreporter.write_line(f"SKIPPED {report.nodeid}: {report.longrepr[-1]}")


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if skipped and os.environ.get("ASSAY_NO_SKIPS") and exitstatus == 0:
        session.exitstatus = 1
