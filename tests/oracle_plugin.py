"""What pytest adds to oracle tests: a case must be compared whole, may not be skipped, and is counted per system.

Registered by the root conftest.py. The counts travel with the reports, so that workers of pytest-xdist are counted too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator
from typing import Any

import pytest

from tests.oracle_cases import Case, MissingCase, unclaimed_cases

PROPERTY = "oracle"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a test that was given no case, or that left a recorded result of its case uncompared."""
    for case in taken(item):
        if isinstance(case, MissingCase):
            pytest.fail(case.problem, pytrace=False)
    cases = [case for case in taken(item) if isinstance(case, Case)]
    for case in cases:
        case.start()
    try:
        result = yield
        for case in cases:
            if left := case.left_over():
                pytest.fail(f"{case}: nothing compared {', '.join(left)} ({len(left)} of its results)", pytrace=False)
        return result
    finally:
        for case in cases:
            counted = {"arrays": len(case.compared_arrays), "values": len(case.compared_values)}
            item.user_properties.append((PROPERTY, {"system": case.system, **counted}))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped or expectedly failing oracle test into a failed one: its numbers were not compared."""
    report = yield
    if report.skipped and taken(item):
        report.outcome, report.longrepr = "failed", f"{item.nodeid}: a recorded case may be neither skipped nor xfailed"
        if hasattr(report, "wasxfail"):
            del report.wasxfail
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test that takes cases without the marker, since `-m oracle` would miss it."""
    for item in items:
        if taken(item) and not item.get_closest_marker("oracle"):
            raise pytest.UsageError(f"{item.nodeid} takes recorded cases and must be marked `@pytest.mark.oracle`")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Cases and numbers compared per system, and what waits for an issue that claims it."""
    counts: dict[str, Counter] = defaultdict(Counter)
    reports = [report for group in terminalreporter.stats.values() for report in group]
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name == PROPERTY and report.when == "call":
                numbers = {"arrays": value["arrays"], "values": value["values"]}
                counts[value["system"]].update({"cases": 1, "passed": int(report.passed), **numbers})
    if not counts:
        return
    terminalreporter.section("oracles compared")
    for system, count in sorted(counts.items()):
        terminalreporter.write_line(
            f"{system}: {count['passed']} of {count['cases']} cases passed, "
            f"{count['arrays']} arrays and {count['values']} recorded values compared"
        )
    if unclaimed := unclaimed_cases():
        terminalreporter.write_line(f"in the folder, but of no claimed kind: {', '.join(unclaimed)}")


def taken(item: pytest.Item) -> list[Case | MissingCase]:
    """The recorded cases among the parameters of a test."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return [value for value in values if isinstance(value, (Case, MissingCase))]
