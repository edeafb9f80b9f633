"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.preprocess import MAX_MESSAGES, Message
from dynamo_sdk.types.plan import Json

from .answer import Extras, Finished, Format, UsageBody
from .choice import Delta
from .errors import NotSupportedYet
from .generation import Generation
from .logprobs import ChatLogprobs, chat_logprobs
from .protocol import ChatMessage, ChatRequest, TextPart
from .sse import encode_json

_TEMPLATE_NAMES = frozenset({"messages", "add_generation_prompt", "range", "raise_exception", "strftime_now"})


class AssistantMessage(msgspec.Struct, frozen=True):
    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    system_fingerprint: None = None
    choices: list[ChatChoice]
    usage: UsageBody
    prompt_token_ids: Sequence[int] | msgspec.UnsetType = msgspec.UNSET
    dynamo: Extras | msgspec.UnsetType = msgspec.UNSET


class ChatFormat(Format):
    def __init__(self, request: ChatRequest, generation: Generation, *, shows_usage: bool) -> None:
        super().__init__(
            generation,
            object="chat.completion.chunk",
            lead=b'"delta":{"content":',
            close=b"}",
            is_streamed=bool(request.stream),
            has_logprobs=bool(request.logprobs),
            has_token_ids=bool(request.return_token_ids),
            shows_usage=shows_usage,
        )
        self._shows_usage = shows_usage

    def opening(self) -> bytes:
        usage = b',"usage":null' if self._shows_usage else b""
        return b"".join(
            self._head + b'"choices":[{"index":%d,"delta":{"role":"assistant","content":"","refusal":null},'
            b'"logprobs":null,"finish_reason":null}]%b}\n\n' % (choice.index, usage)
            for choice in self._generation.choices
        )

    def whole(self, choices: Sequence[Finished], usage: UsageBody) -> bytes:
        generation = self._generation
        answer = ChatCompletion(
            id=generation.id,
            created=generation.created_s,
            model=generation.model,
            choices=[
                ChatChoice(
                    index=index,
                    message=AssistantMessage(choice.text),
                    logprobs=self.logprobs(choice, index) if self._has_logprobs else None,
                    finish_reason=choice.finish_reason,
                    token_ids=choice.token_ids if self._has_token_ids else msgspec.UNSET,
                )
                for index, choice in enumerate(choices)
            ],
            usage=usage,
            prompt_token_ids=generation.prompts[0] if self._has_token_ids else msgspec.UNSET,
            dynamo=self.extras(),
        )
        return encode_json(answer)

    def logprobs(self, part: Delta | Finished, index: int) -> ChatLogprobs:
        return ChatLogprobs(chat_logprobs(self._generation.pipeline.tokenizer, part.scored))


def template_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """What the chat template gets to see. Raises ``InvalidRequest``."""
    if not messages:
        raise InvalidRequest("messages is []; allowed is at least one message", param="messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequest(
            f"messages has {len(messages)} entries; allowed are at most {MAX_MESSAGES}", param="messages"
        )
    return [_template_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _template_message(message: ChatMessage, where: str) -> Message:
    if message.content is None and message.role != "assistant":
        raise InvalidRequest(
            f"{where}.content is null; allowed is a string or a list of text parts", param=f"{where}.content"
        )
    content: Json = message.content if not isinstance(message.content, list) else None
    if isinstance(message.content, list):
        content = [_text_part(part, f"{where}.content[{i}]") for i, part in enumerate(message.content)]
    given: dict[str, Json] = {"role": message.role, "content": content}
    if message.name is not None:
        given["name"] = message.name
    if message.reasoning_content is not None:
        given["reasoning_content"] = message.reasoning_content
    if message.tool_calls is not None:
        given["tool_calls"] = list(message.tool_calls)
    if message.tool_call_id is not None:
        given["tool_call_id"] = message.tool_call_id
    return given


def _text_part(part: TextPart, where: str) -> Json:
    text = {"text": part.text, "refusal": part.refusal}.get(part.type)
    if part.type not in ("text", "refusal"):
        shown = part.type if len(part.type) <= 60 else part.type[:59] + "…"
        raise NotSupportedYet(
            f"{where}.type is {shown!r}, which is not supported yet; allowed is 'text'", param=f"{where}.type"
        )
    if text is None:
        raise InvalidRequest(f"{where}.{part.type} is missing; it is required", param=f"{where}.{part.type}")
    return {"type": "text", "text": text}


def template_variables(request: ChatRequest) -> dict[str, Json]:
    """``chat_template_kwargs``, which must not stand in for what the request says elsewhere."""
    variables = request.chat_template_kwargs or {}
    for name in variables:
        if name in _TEMPLATE_NAMES:
            raise InvalidRequest(
                f"chat_template_kwargs has the key {name!r}, which is not allowed there",
                param="chat_template_kwargs",
            )
    return variables
