"""Which of several answers stands for all of them."""

from dataclasses import replace

from example_records import result

from ptq_exp.results.records import LEARNED, SearchRecord, Trial, TrialResult
from ptq_exp.results.search import most_cautious


def search(seed: int, size_bytes: int, act_bits: int | None, limit: float) -> SearchRecord:
    network = result(2, 90.0, size_bytes=size_bytes, act_bits=act_bits)
    found = TrialResult(Trial("weights", 2, act_bits, LEARNED, None), 1.0, limit, network)
    return SearchRecord("", "net", f"seed={seed}", 1.0, 95.0, 98.3, ("weights",), 36, 10_000, "CPU", (found,), 0)


def test_the_most_cautious_seed_is_the_largest_then_the_one_that_may_lose_most() -> None:
    alike = [search(0, 100, None, 0.5), search(1, 100, None, 0.9), search(2, 100, None, 0.3)]
    assert list(most_cautious(alike).values()) == [alike[1]]
    larger = search(3, 101, 4, 0.1)
    assert list(most_cautious([*alike, larger]).values()) == [larger]
    narrow = [search(0, 100, 3, 0.9), search(1, 100, 4, 0.1)]
    assert list(most_cautious(narrow).values()) == [narrow[1]]
    nothing = replace(alike[0], chosen=None)
    assert list(most_cautious([*alike, nothing]).values()) == [nothing]
