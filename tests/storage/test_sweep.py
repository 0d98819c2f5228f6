"""No reader takes a file that is not as it was written for one that is."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import local_client
from sweep import Output, sweep

READERS = ("open_results", "status", "report", "verify", "process")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Output]:
    with local_client(1, processes=False) as client, pytest.MonkeyPatch.context() as patch:
        yield Output(Path(tmp_path_factory.mktemp("sweep")), client, patch)


def assert_nothing_silent(counts: Counter[tuple[str, str]]) -> None:
    assert {what: count for what, count in counts.items() if what[1] in ("silent difference", "traceback")} == {}


@pytest.mark.filterwarnings("ignore")
def test_no_reader_is_silent_about_a_spoilt_file(output: Output) -> None:
    counts = sweep(output, READERS, flips=1, every=7)
    assert_nothing_silent(counts)
    assert min(counts["open_results", "error"], counts["status", "error"], counts["verify", "told"]) > 2


@pytest.mark.thorough
@pytest.mark.timeout(0)
@pytest.mark.filterwarnings("ignore")
def test_no_reader_is_silent_about_any_file_spoilt_in_any_way(output: Output) -> None:
    counts = sweep(output, READERS, flips=20)
    print("\n".join(f"{reader}: {verdict} {count}" for (reader, verdict), count in sorted(counts.items())))
    assert_nothing_silent(counts)
