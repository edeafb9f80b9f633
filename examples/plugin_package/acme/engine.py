"""An engine: the prompt's tokens, last one first, over and over."""

from anyio.lowlevel import checkpoint

from dynamo_sdk.errors import EngineFailed, InvalidRequest
from dynamo_sdk.interfaces import Engine, EngineFacts
from dynamo_sdk.plugins.config import PluginConfig
from dynamo_sdk.types import FinishReason, GenerateChunk, TokenLogprobs, Usage, unpack_tokens


class MirrorConfig(PluginConfig):
    context_length: int = 4096


class MirrorEngine(Engine):
    def __init__(self, setup, config):
        self._config = config
        self._is_open = False

    async def start(self):
        await checkpoint()
        self._is_open = True
        return EngineFacts(context_length=self._config.context_length)

    async def generate(self, request):
        prompt = unpack_tokens(request.prompt)
        position = request.num_generated_tokens
        if request.lora is not None:
            raise InvalidRequest(f"no adapter {request.lora!r}", param="lora")
        if not 0 < len(prompt) + position < self._config.context_length:
            raise InvalidRequest(f"{len(prompt)} tokens do not fit", param="prompt")
        reason = None
        while reason is None:
            await checkpoint()  # here a real engine waits for its next step
            if not self._is_open:
                raise EngineFailed("the engine is closed")
            token = prompt[-1 - position % len(prompt)]
            position += 1
            reason = self._finish_reason(request, token, position, len(prompt))
            usage = Usage(len(prompt), position - request.num_generated_tokens) if reason else None
            yield GenerateChunk((token,), self._logprobs(request, token), reason, usage)

    def _finish_reason(self, request, token, position, num_prompt_tokens):
        sampling = request.sampling
        is_end = token in sampling.stop_token_ids or (
            position == num_prompt_tokens and not sampling.ignore_eos
        )
        if is_end and position >= sampling.min_tokens:
            return FinishReason.STOP
        is_full = num_prompt_tokens + position >= self._config.context_length
        return FinishReason.LENGTH if is_full or position >= sampling.max_tokens else None

    def _logprobs(self, request, token):
        num_top = request.sampling.logprobs
        return None if num_top is None else (TokenLogprobs(0.0, ((token, 0.0),)[:num_top]),)

    async def close(self):
        self._is_open = False
