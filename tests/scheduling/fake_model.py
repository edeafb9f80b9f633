"""A model whose KV can be checked: one number per token, chained through block memory.

The number of a position is a function of the one before it, *read from the block table*, and the token.
A sampled token is a function of the last number. So a wrong block, a missing copy or memory that two
requests write shows up as a wrong token.
"""

from dynamo_sdk.scheduling import SchedulerConfig, Step
from dynamo_sdk.types import FinishReason, GenerateRequest, Role, SamplingParams, pack_tokens

NUM_TOKENS = 8
EOS = 7


def link(previous, token):
    return hash((previous, token, 12345)) & 0xFFFFFFFF


def root_of(request):
    """Requests that must not share KV start from different numbers."""
    return link(len(request.cache_salt or ""), len(request.lora or ""))


def chain(request, token_ids):
    numbers, number = [], root_of(request)
    for token in token_ids:
        number = link(number, token)
        numbers.append(number)
    return numbers


def sample(number):
    return number % NUM_TOKENS


def make_request(
    request_id, prompt, *, generated=(), max_tokens=4, priority=0, role=Role.AGGREGATED, **fields
):
    sampling = {
        name: fields.pop(name) for name in ("min_tokens", "ignore_eos", "stop_token_ids") if name in fields
    }
    return GenerateRequest(
        request_id=request_id,
        model="fake",
        prompt=pack_tokens(prompt),
        generated=pack_tokens(generated),
        role=role,
        priority=priority,
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0, **sampling),
        **fields,
    )


def expected_output(request: GenerateRequest, config: SchedulerConfig):
    """What the request must yield, alone and without any cache: (new tokens, finish reason)."""
    tokens, new, sampling = request.token_ids(), [], request.sampling
    stops = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else config.eos_token_ids)
    while True:
        token = sample(chain(request, tokens)[-1])
        tokens.append(token)
        new.append(token)
        num_output = len(tokens) - request.num_prompt_tokens
        if token in stops and num_output >= sampling.min_tokens:
            return new, FinishReason.STOP
        if num_output == sampling.max_tokens or len(tokens) == config.max_length:
            return new, FinishReason.LENGTH
        if request.role is Role.PREFILL:
            return new, FinishReason.HANDOVER


class FakeModel:
    """Block memory and a forward pass."""

    def __init__(self, config: SchedulerConfig):
        self.block_size = config.block_size
        self.memory = [[None] * config.block_size for _ in range(config.num_blocks)]

    def forward(self, step: Step):
        """Compute the step, also for requests that were aborted meanwhile. Returns the sampled tokens."""
        sampled = {}
        for part in step.sequences:
            number = self.read(part.block_ids, part.start - 1) if part.start else root_of(part.request)
            for position, token in enumerate(part.token_ids, part.start):
                number = link(number, token)
                self.write(part.block_ids, position, number)
            if part.is_sampling:
                sampled[part.request_id] = sample(number)
        return sampled

    def read(self, block_ids, position):
        return self.memory[block_ids[position // self.block_size]][position % self.block_size]

    def write(self, block_ids, position, number):
        self.memory[block_ids[position // self.block_size]][position % self.block_size] = number
