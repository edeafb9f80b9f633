"""What is expected of other workers, against a naive model."""

from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.stores.expectations import Expectations

keys = st.lists(st.integers(0, 8), max_size=5, unique=True)
steps = st.one_of(
    st.tuples(st.just("add"), keys, st.sampled_from("ab")),
    st.tuples(st.just("remove"), keys, st.none()),
    st.tuples(st.just("forget"), st.none(), st.sampled_from("ab")),
    st.tuples(st.just("wait"), st.integers(1, 8), st.none()),
)


@given(st.lists(steps, max_size=30), st.integers(1, 9))
def test_the_latest_word_holds_for_a_while(steps, max_keys):
    expectations, model, now_s = Expectations(max_keys, lifetime_s=10), {}, 0.0
    for verb, what, address in steps:
        if verb == "add":
            expectations.add(what, address, now_s)
            for key in what[:max_keys]:
                model.pop(key, None)
                model[key] = (address, now_s + 10)
            model = dict(list(model.items())[-max_keys:])
        elif verb == "remove":
            expectations.remove(what)
            model = {key: entry for key, entry in model.items() if key not in what}
        elif verb == "forget":
            expectations.remove_source(address)
            model = {key: entry for key, entry in model.items() if entry[0] != address}
        else:
            now_s += what
        assert len(expectations) == len(model) <= max_keys
        for key in range(9):
            source, until_s = model.get(key, (None, now_s))
            assert expectations.source(key, now_s) == (source if until_s > now_s else None)
