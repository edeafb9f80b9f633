"""A scheduler and a fake model, stepped by hand."""

from dynamo_sdk.scheduling import Scheduler, SchedulerConfig

from .fake_model import FakeModel, chain, make_request


class Worker:
    """A scheduler and a fake model, stepped by hand."""

    def __init__(self, **limits):
        defaults = {
            "block_size": 2,
            "num_blocks": 16,
            "max_num_seqs": 4,
            "max_num_batched_tokens": 16,
            "context_length": 32,
        }
        self.config = SchedulerConfig(**(defaults | limits))
        self.scheduler = Scheduler(self.config)
        self.model = FakeModel(self.config)

    def add(self, *args, **fields):
        request = make_request(*args, **fields)
        self.scheduler.add(request)
        return request

    def step(self):
        """One whole step: (the step, its updates)."""
        step = self.scheduler.schedule()
        updates = self.scheduler.complete(step, self.model.forward(step))
        self.scheduler.check_integrity()
        return step, updates

    def run(self, request_id):
        """Step until the request is done; its tokens."""
        tokens = []
        while True:
            step, updates = self.step()
            assert step.sequences
            for update in updates:
                if update.request_id == request_id:
                    tokens.append(update.token_id)
                    if update.finish_reason is not None:
                        return tokens

    def fill(self, request, reservation):
        """What a transfer does: write all KV that the reservation is for."""
        known = request.token_ids()
        for position, number in enumerate(chain(request, known[:-1] if request.generated else known)):
            if position >= reservation.num_cached_blocks * self.config.block_size:
                self.model.write(reservation.block_ids, position, number)


def names(step):
    return [part.request_id for part in step.sequences]


def sizes(step):
    return {part.request_id: len(part.token_ids) for part in step.sequences}
