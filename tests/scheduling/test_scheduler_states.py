"""Random requests, steps, aborts and hand-overs in tiny pools; each output must be what it would be alone."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.scheduling import Scheduler, SchedulerConfig, SequenceState, findable_keys
from dynamo_sdk.types import FinishReason, Role

from .fake_model import EOS, FakeModel, chain, expected_output, make_request

# Long runs of few tokens: many requests share prefixes.
prompts = st.builds(
    lambda token, length, tail: [token] * length + tail,
    st.integers(0, 1),
    st.integers(1, 12),
    st.lists(st.integers(0, 6), max_size=2),
)
request_fields = st.fixed_dictionaries(
    {
        "prompt": prompts,
        "generated": st.lists(st.integers(0, 6), max_size=3),
        "max_tokens": st.integers(4, 12),
        "min_tokens": st.integers(0, 5),
        "priority": st.integers(0, 2),
        "ignore_eos": st.booleans(),
        "stop_token_ids": st.sampled_from([(), (3,)]),
        "cache_salt": st.sampled_from([None, None, "tenant"]),
    }
)
roles = st.sampled_from([Role.AGGREGATED, Role.AGGREGATED, Role.PREFILL])


class SchedulerAgainstModel(RuleBasedStateMachine):
    @initialize(
        block_size=st.integers(1, 3),
        num_blocks=st.integers(4, 14),
        max_num_seqs=st.integers(1, 4),
        more_tokens=st.integers(0, 6),
        context_length=st.integers(5, 30),
        enable_prefix_caching=st.booleans(),
        enable_growth_reserve=st.booleans(),
    )
    def start(self, more_tokens, max_num_seqs, **limits):
        self.config = SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + more_tokens,
            eos_token_ids=frozenset({EOS}),
            **limits,
        )
        self.scheduler = Scheduler(self.config)
        self.model = FakeModel(self.config)
        self.requests = {}  # alive ones
        self.reserved = {}
        self.loading = {}  # by request id, what its step said
        self.outputs = {}
        self.step = None
        self.num_made = 0

    def make(self, fields, role):
        self.num_made += 1
        return make_request(f"r{self.num_made}", role=role, **fields)

    # -- rules

    @rule(fields=request_fields, role=roles, is_onboarding=st.booleans())
    def add(self, fields, role, is_onboarding):
        request = self.make(fields, role)
        is_too_long = len(request.token_ids()) >= self.config.max_length
        try:
            self.scheduler.add(request, is_onboarding=is_onboarding)
        except InvalidRequest:
            assert is_too_long
        else:
            assert not is_too_long
            self.follow(request)

    @rule(fields=request_fields)
    def reserve(self, fields):
        request = self.make(fields, Role.DECODE)
        try:
            reservation = self.scheduler.reserve(request)
        except InvalidRequest:
            assert len(request.token_ids()) >= self.config.max_length
            return
        if reservation is None:
            assert self.scheduler.state_of(request.request_id) is None
            return
        filled = request.token_ids()[:-1] if request.generated else request.token_ids()
        numbers = chain(request, filled)
        size = self.config.block_size
        assert len(reservation.block_ids) == -(-len(numbers) // size)
        for position, number in enumerate(numbers):
            if position < reservation.num_cached_blocks * size:
                assert self.model.read(reservation.block_ids, position) == number
            else:
                self.model.write(reservation.block_ids, position, number)
        self.reserved[request.request_id] = request

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def take_over(self, data):
        request = self.reserved.pop(data.draw(st.sampled_from(sorted(self.reserved))))
        self.scheduler.add(request)
        self.follow(request)

    @precondition(lambda self: self.step is None)
    @rule()
    def schedule(self):
        step = self.scheduler.schedule()
        sizes = [len(part.token_ids) for part in step.sequences]
        assert all(sizes)
        assert sum(sizes) == step.num_tokens <= self.config.max_num_batched_tokens
        assert len(sizes) == step.num_prefill_requests + step.num_decode_requests <= self.config.max_num_seqs
        for part in step.sequences:
            known = self.scheduler.token_ids(part.request_id)
            end = part.start + len(part.token_ids)
            assert known[part.start : end] == part.token_ids
            assert part.is_sampling == (end == len(known))
            assert part.num_output_tokens == len(known) - part.request.num_prompt_tokens
        for onboarding in step.onboarding:
            self.check_onboarding(onboarding)
            self.loading[onboarding.request_id] = onboarding
        if step.sequences:
            self.step = step

    @rule(wants_load=st.sampled_from([None, lambda _: True, lambda _: False]))
    def start_loads(self, wants_load):
        """A step may be under way."""
        found = self.scheduler.start_loads(wants_load)
        assert not found or wants_load is None or wants_load(found[0])
        for onboarding in found:
            self.check_onboarding(onboarding)
            self.loading[onboarding.request_id] = onboarding

    @precondition(lambda self: self.step is not None)
    @rule()
    def complete(self):
        step, self.step = self.step, None
        sampled = self.model.forward(step)
        for update in self.scheduler.complete(step, sampled):
            request, output = self.requests[update.request_id], self.outputs[update.request_id]
            tokens, reason = expected_output(request, self.config)
            assert update.token_id == tokens[len(output)]
            output.append(update.token_id)
            assert update.num_output_tokens == request.num_generated_tokens + len(output)
            assert update.finish_reason == (reason if len(output) == len(tokens) else None)
            assert update.num_cached_tokens <= request.num_prompt_tokens
            if update.finish_reason is FinishReason.HANDOVER:
                self.check_held(request)
            elif update.finish_reason is not None:
                del self.requests[update.request_id]

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def end_onboarding(self, data):
        """Some tier had a part of it, or all, or nothing; a step may be under way."""
        onboarding = self.loading.pop(data.draw(st.sampled_from(sorted(self.loading))))
        num_missing = len(onboarding.keys) - onboarding.num_cached_blocks
        self.load(onboarding, data.draw(st.integers(0, num_missing)))

    def load(self, onboarding, num_blocks):
        request, size = onboarding.request, self.config.block_size
        numbers = chain(request, request.token_ids())
        first = onboarding.num_cached_blocks * size
        for position in range(first, first + num_blocks * size):
            self.model.write(onboarding.block_ids, position, numbers[position])
        self.scheduler.end_onboarding(request.request_id, num_blocks)
        assert self.scheduler.state_of(request.request_id) is SequenceState.RUNNING

    @precondition(lambda self: self.requests or self.reserved)
    @rule(data=st.data())
    def abort(self, data):
        request_id = data.draw(st.sampled_from(sorted({**self.requests, **self.reserved})))
        assert self.scheduler.abort(request_id)
        assert not self.scheduler.abort(request_id)
        self.requests.pop(request_id, None)
        self.reserved.pop(request_id, None)
        self.loading.pop(request_id, None)
        self.scheduler.end_onboarding(request_id, 1)  # too late: nothing happens

    @precondition(lambda self: self.requests or self.reserved)
    @rule(data=st.data())
    def release(self, data):
        """Takes effect on held and reserved requests only."""
        request_id = data.draw(st.sampled_from(sorted({**self.requests, **self.reserved})))
        before = self.scheduler.state_of(request_id)
        self.scheduler.release(request_id)
        if before in (SequenceState.HELD, SequenceState.RESERVED):
            self.requests.pop(request_id, None)
            self.reserved.pop(request_id, None)
            assert self.scheduler.state_of(request_id) is None
        else:
            assert self.scheduler.state_of(request_id) is before

    @rule()
    def reset_prefix_cache(self):
        self.scheduler.reset_prefix_cache()
        assert self.scheduler.pool.snapshot() == ()

    # -- what must hold

    def follow(self, request):
        self.requests[request.request_id] = request
        self.outputs[request.request_id] = []

    def check_onboarding(self, onboarding):
        request, size = onboarding.request, self.config.block_size
        assert self.scheduler.state_of(request.request_id) is SequenceState.LOADING
        assert list(onboarding.keys) == findable_keys(request, self.config)
        assert onboarding.num_tokens == len(request.token_ids())
        assert onboarding.num_cached_blocks < len(onboarding.keys) == len(onboarding.block_ids)
        numbers = chain(request, request.token_ids())
        for position in range(onboarding.num_cached_blocks * size):
            assert self.model.read(onboarding.block_ids, position) == numbers[position]

    def check_held(self, request):
        blocks = self.scheduler.held_blocks(request.request_id)
        numbers = chain(request, request.token_ids())
        assert len(blocks) == -(-len(numbers) // self.config.block_size)
        assert [self.model.read(blocks, position) for position in range(len(numbers))] == numbers

    def held(self):
        return [i for i in self.requests if self.scheduler.state_of(i) is SequenceState.HELD]

    @invariant()
    def books_add_up(self):
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()
            load = self.scheduler.load(0.0)
            num_unfinished = load.num_running + load.num_waiting + len(self.held())
            assert num_unfinished == len(self.requests)

    def teardown(self):
        """Everybody finishes, held and reserved blocks in the way or not, and every block comes back."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(5000):
            if self.step is None:
                self.schedule()
            if self.step is not None:
                self.complete()
                continue
            held = self.held()
            if self.loading:
                self.load(self.loading.pop(min(self.loading)), 0)
            elif self.reserved:  # an empty step: only others can bring memory back
                request = self.reserved.pop(min(self.reserved))
                self.scheduler.add(request)
                self.follow(request)
            elif held:
                self.check_held(self.requests[held[0]])
                self.scheduler.release(held[0])
                del self.requests[held[0]]
            else:
                break
            self.books_add_up()
        assert not self.scheduler.has_work
        assert not self.requests
        assert self.scheduler.pool.num_free_blocks == self.config.num_blocks


TestSchedulerAgainstModel = SchedulerAgainstModel.TestCase
TestSchedulerAgainstModel.settings = settings(max_examples=200, stateful_step_count=50)
