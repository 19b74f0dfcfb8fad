"""What holds for every test: the CPU, a clean environment, programs that are compiled once, Kafka on demand, no skips
in CI.

Tests run in random order, each with its seeds set anew (pytest-randomly). `FORECASTER_TEST_KAFKA=host:port`
points the broker tests at a broker that is already there; `CI` or `FORECASTER_NO_SKIP` turns every skip into
a failure.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import TypeVar

import pytest

TEST_KAFKA = os.environ.get("FORECASTER_TEST_KAFKA")
NO_SKIP = bool(os.environ.get("CI") or os.environ.get("FORECASTER_NO_SKIP"))

for name in [name for name in os.environ if name.startswith("FORECASTER_")]:
    del os.environ[name]  # the developer's own settings are none of the tests' business
os.environ["JAX_PLATFORMS"] = "cpu"

COMPILED = "JAX_COMPILATION_CACHE_DIR"
"""Programs of the session, and of the processes that it starts: what one compiles, the next one reads."""

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_configure(config: pytest.Config) -> None:
    """Where compiled programs are kept while the session lasts, unless there is a place for them already."""
    if COMPILED not in os.environ:
        kept = TemporaryDirectory(prefix="forecaster-tests-")
        config.add_cleanup(kept.cleanup)
        os.environ[COMPILED] = kept.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the fault suite can be told (see tests/faults)."""
    group = parser.getgroup("faults")
    group.addoption("--catalogue", action="store_true", help="run all fault tests, not CI's selection alone")
    group.addoption(
        "--fault-seed", type=int, action="append", help="a seed of the fault tests; may be repeated"
    )
    group.addoption("--kills", type=int, default=2, help="kills in the tests that kill at random moments")
    group.addoption(
        "--storms", type=int, default=2, help="joins and leaves of a worker, of which each is a rebalance"
    )


@pytest.fixture(scope="session")
def kafka_jars() -> None:
    """For tests that start a `Cluster` of their own: skips them where Kafka cannot be run."""
    from tests.apache_kafka import KafkaMissingError, find_classpath

    try:
        find_classpath()
    except KafkaMissingError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[str]:
    """Bootstrap servers of an Apache Kafka that the whole session shares; use topic names of your own."""
    if TEST_KAFKA:
        yield TEST_KAFKA
        return
    request.getfixturevalue("kafka_jars")
    from tests.apache_kafka import Cluster

    with Cluster() as cluster:
        yield cluster.bootstrap_servers


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch Kafka before the first test that wants it: a download is no part of a test's time limit."""
    wanting = {"kafka_jars"} if TEST_KAFKA else {"kafka_jars", "kafka"}
    if any(wanting.intersection(getattr(item, "fixturenames", ())) for item in session.items):
        from tests.apache_kafka import KafkaMissingError, find_classpath

        with suppress(KafkaMissingError):  # the fixture says so
            find_classpath()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge the skips of tests and fixtures."""
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Judge the skips of whole modules."""
    return _judged((yield))


def _judged(report: Report) -> Report:
    """A skip where none is allowed becomes a failure; expected failures (xfail) are none of it."""
    if NO_SKIP and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which is a failure here: {report.longrepr}"
    return report
