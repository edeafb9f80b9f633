"""What is remembered of a remote store, and how a sequence is searched, against naive models."""

from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.stores.presence import PrefixSearch, PresenceCache

from .conftest import key


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 6)), max_size=40),
    st.integers(1, 4),
)
def test_what_is_known_is_the_latest_answer_while_it_holds(answers, max_keys):
    cache = PresenceCache(max_keys=max_keys, present_s=10, absent_s=3)
    present, latest, now_s = set(), {}, 0.0
    for number, is_there, passed_s in answers:
        now_s += passed_s
        if is_there:
            is_new, dropped = cache.found(number, now_s)
            assert is_new == (number not in present)
            present.add(number)
            if dropped is not None:
                present.remove(dropped)
                latest.pop(dropped)
        else:
            assert cache.missed(number, now_s) == (number in present)
            present.discard(number)
        latest[number] = (is_there, now_s + (10 if is_there else 3))
        assert cache.num_present == len(present) <= max_keys
        for other in range(6):
            known = cache.look_up(other, now_s)
            answer, until_s = latest.get(other, (None, 0.0))
            assert known in (None, answer)
            if answer and until_s > now_s and other in present:
                assert known is True


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 20), st.data())
def test_a_prefix_is_found_exactly(num_keys, num_there, num_at_once, data):
    num_there = min(num_there, num_keys)
    keys = [key(number) for number in range(num_keys)]
    told = data.draw(st.sets(st.integers(0, max(0, num_keys - 1)), max_size=10))
    known = {keys[number]: number < num_there for number in told if number < num_keys}
    search, num_rounds = PrefixSearch(keys, known.get, num_at_once), 0
    while questions := search.questions():
        num_rounds += 1
        assert len(questions) <= num_at_once
        assert questions == sorted(set(questions))
        for position in questions:
            assert keys[position] not in known
            search.answered(position, position < num_there)
    assert search.count == num_there
    assert num_rounds <= (7 if num_at_once >= 8 else num_keys + 1)


def test_little_is_asked_where_little_is_there():
    search = PrefixSearch([key(n) for n in range(1000)], lambda _: None, 16)
    questions = search.questions()
    assert questions == [0, 3, 15, 63, 255]
    for position in questions:
        search.answered(position, False)
    assert (search.questions(), search.count) == ([], 0)


def test_holes_end_the_search_all_the_same():
    search = PrefixSearch([key(n) for n in range(50)], lambda _: None, 4)
    while questions := search.questions():
        for position in questions:
            search.answered(position, position % 7 != 3)
    assert 0 <= search.count <= 50
