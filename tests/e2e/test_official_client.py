"""The quickstart as an application sees it: through the official ``openai`` client."""

from __future__ import annotations

import math
from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from .serving import Served

QUESTIONS = {
    "What is a KV block?": "tokens",
    "What is prefill?": "prompt",
    "What is decode?": "token",
    "What does a router do?": "worker",
    "What is TTFT?": "first token",
}


@pytest.fixture(scope="module")
def client(disaggregated: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{disaggregated.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def user(question: str) -> list[ChatCompletionUserMessageParam]:
    return [{"role": "user", "content": question}]


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_are_answered_streamed_and_not(client: openai.OpenAI, question: str) -> None:
    whole = client.chat.completions.create(model="demo", messages=user(question), temperature=0)
    (choice,) = whole.choices
    assert choice.finish_reason == "stop"
    answer = choice.message.content
    assert answer is not None
    assert QUESTIONS[question] in answer.lower()
    assert answer.rstrip().endswith(".")

    stream = client.chat.completions.create(
        model="demo",
        messages=user(question),
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert len(chunks) > 5
    usage = chunks[-1].usage
    assert usage is not None
    assert whole.usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )


def test_several_choices_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    def texts() -> list[str]:
        answer = client.completions.create(
            model="demo", prompt=[700, 40, 1200], n=3, seed=5, temperature=1.5, max_tokens=12
        )
        return [choice.text for choice in answer.choices]

    assert texts() == texts()
    assert len(set(texts())) == 3


def test_embeddings_tell_near_from_far(client: openai.OpenAI) -> None:
    texts = ["What is a KV block?", "What is a KV cache block?", "Hello!"]
    answer = client.embeddings.create(model="demo", input=texts)
    one, near, far = (item.embedding for item in answer.data)
    assert math.hypot(*one) == pytest.approx(1, abs=1e-5)
    assert _cosine(one, near) > _cosine(one, far)
    assert answer.usage.prompt_tokens > 0
    again = client.embeddings.create(model="demo", input=texts[0])
    assert again.data[0].embedding == pytest.approx(one, abs=1e-5)


def _cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"


def test_errors_are_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"'gpt-9' does not exist; there is 'demo'"):
        client.chat.completions.create(model="gpt-9", messages=user("Hello"))
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.models.retrieve("gpt-9")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="demo", prompt=[20] * 3000)
    assert caught.value.param == "prompt"
    assert "3000" in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="demo", prompt="The router", temperature=-1)
    assert caught.value.param == "temperature"
