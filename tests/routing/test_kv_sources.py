"""Who is said to have what remotely, and whom the chosen worker is told to ask."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.interfaces import Overlap, Routed
from dynamo_sdk.routing import CandidateBook
from dynamo_sdk.routing.kv_sources import MIN_GAIN_BLOCKS
from dynamo_sdk.types import Role, WorkerId

from .test_book import Holders

KEYS = [1]


def fleet(**overlaps: Overlap | None) -> CandidateBook:
    """Workers that read each other's tiers. A capital first letter: of another pool; with x: of nobody."""
    index = Holders()
    book = CandidateBook(index)
    for name, overlap in overlaps.items():
        [seat] = book.join(
            WorkerId(name), pool=name[0].isupper(), sharing=None if name.startswith("x") else "model"
        )
        if overlap is not None:
            index.held.setdefault(1, {})[seat] = overlap
    return book


def look_up(book: CandidateBook) -> dict[str, tuple[int, tuple[str, int] | None]]:
    """For each worker its remote blocks, and whom it is told to ask."""
    book.look_up(KEYS)
    return {
        candidate.worker_id: (candidate.overlap.remote_blocks, book.kv_source(candidate))
        for candidate in book.candidates(list(book.workers))
    }


def host(num_blocks: int, *, device: int = 0) -> Overlap:
    """So many in host memory, the first of them on the device too."""
    return Overlap(device_blocks=device, host_blocks=num_blocks - device, readable_blocks=num_blocks)


def test_the_others_may_read_from_the_one_that_has_most():
    book = fleet(a=host(40, device=20), b=host(30), c=Overlap(device_blocks=10), d=None)
    assert look_up(book) == {
        "a": (0, None),
        "b": (10, ("a", 40)),
        "c": (30, ("a", 40)),
        "d": (40, ("a", 40)),
    }
    assert look_up(book)["d"] == (40, ("a", 40)), "the last look-up leaves nothing behind"
    book.look_up([2])
    [candidate] = book.candidates([WorkerId("d")])
    assert candidate.overlap == Overlap()
    assert book.kv_source(candidate) is None


def test_what_lies_on_a_device_alone_cannot_be_read():
    assert look_up(fleet(a=Overlap(device_blocks=40), b=None)) == {"a": (0, None), "b": (0, None)}


def test_a_little_more_is_not_worth_a_question():
    few = MIN_GAIN_BLOCKS - 1
    assert look_up(fleet(a=host(10 + few), b=host(10))) == {"a": (0, None), "b": (0, None)}
    assert look_up(fleet(a=host(few), b=None)) == {"a": (0, None), "b": (0, None)}


def test_only_workers_that_read_and_are_read():
    book = fleet(a=host(40), B=None, xc=None, xd=host(80), e=None)
    assert look_up(book) == {
        "a": (0, None),
        "B": (40, ("a", 40)),
        "xc": (0, None),
        "xd": (0, None),
        "e": (40, ("a", 40)),
    }


def test_of_equals_the_less_busy_one_is_asked():
    book = fleet(a=host(40), b=host(40), c=None)
    book.observe(
        Routed(request_id="r", worker_id=WorkerId("a"), role=Role.AGGREGATED, num_tokens=10), now_s=0.0
    )
    assert look_up(book)["c"] == (40, ("b", 40))


overlaps = st.builds(
    lambda device, host, disk, readable: Overlap(
        device_blocks=device,
        host_blocks=host,
        disk_blocks=disk,
        readable_blocks=min(readable, device + host + disk),
    ),
    *[st.integers(0, 20)] * 4,
)


@given(st.dictionaries(st.sampled_from("abcde"), overlaps, min_size=1))
def test_whoever_is_named_has_clearly_more_than_anybody_else(held):
    for name, (remote, source) in look_up(fleet(**held)).items():
        own = held[name].num_blocks
        most = max([held[other].readable_blocks for other in held if other != name], default=0)
        if source is None:
            assert remote == 0
            assert most < max(own, 0) + MIN_GAIN_BLOCKS
        else:
            assert source[0] != name
            assert source[1] == most == held[source[0]].readable_blocks
            assert remote == most - own >= MIN_GAIN_BLOCKS
