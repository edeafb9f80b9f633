from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from dynamo_sdk.errors import ConfigError, ContextLengthExceeded, InvalidRequest
from dynamo_sdk.preprocess import ModelPipeline, Tokenizer, printable
from dynamo_sdk.types import ModelRecord

from . import tokenizers_for_tests as build

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"


@pytest.fixture
def pipeline(tmp_path: Path) -> ModelPipeline:
    folder = build.save(build.byte_level(), tmp_path, chat_template=TEMPLATE)
    return ModelPipeline.load(ModelRecord(name="m", path=str(folder), context_length=50))


def test_a_conversation_becomes_ids(pipeline: ModelPipeline) -> None:
    ids = asyncio.run(pipeline.encode_chat([{"role": "user", "content": "KV block"}]))
    assert pipeline.tokenizer.decode(ids, skip_special_tokens=False) == "<s>KV block</s>"
    assert pipeline.tokenizer.eos_ids == {ids[-1]}
    assert pipeline.tokenizer.special_ids >= {ids[0], ids[-1]}


def test_a_model_without_template_takes_no_messages(tmp_path: Path) -> None:
    folder = build.save(build.byte_level(), tmp_path)
    pipeline = ModelPipeline.load(ModelRecord(name="m", path=str(folder), context_length=50))
    with pytest.raises(InvalidRequest, match="no chat template"):
        asyncio.run(pipeline.encode_chat([{"role": "user", "content": "x"}]))


@pytest.mark.parametrize("is_long", [False, True])
def test_long_texts_are_tokenized_on_a_thread(
    tmp_path: Path, is_long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build.save(build.byte_level(), tmp_path)
    pipeline = ModelPipeline.load(ModelRecord(name="m", path=str(folder), context_length=10**6))
    seen: list[threading.Thread] = []
    encode = Tokenizer.encode

    def spy(self: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
        seen.append(threading.current_thread())
        return encode(self, text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(Tokenizer, "encode", spy)
    off_loop_chars = pipeline.tokenizer.off_loop_chars
    text = "a" * (off_loop_chars if is_long else off_loop_chars - 1)
    ids = asyncio.run(pipeline.encode_text(text, param="prompt"))
    assert pipeline.tokenizer.decode(ids) == text
    assert (seen[0] is not threading.main_thread()) is is_long


def test_a_text_that_cannot_fit_is_not_tokenized(
    pipeline: ModelPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "encode", lambda *_, **__: pytest.fail("tokenized"))
    with pytest.raises(ContextLengthExceeded, match="context of 50 tokens, but prompt has at least"):
        asyncio.run(pipeline.encode_text("x" * 10**6, param="prompt"))


def test_the_lower_bound_holds(pipeline: ModelPipeline) -> None:
    text = "What is a KV block? " * 40 + "🙂é" * 100
    assert pipeline.tokenizer.min_num_tokens(text) > 0
    assert pipeline.tokenizer.min_num_tokens(text) <= len(
        pipeline.tokenizer.encode(text, add_special_tokens=False)
    )


def test_room_for_output(pipeline: ModelPipeline) -> None:
    assert pipeline.output_room(10, None, param="prompt") == 40
    assert pipeline.output_room(10, 40, param="prompt") == 40
    with pytest.raises(ContextLengthExceeded, match="10 tokens and 41 of output"):
        pipeline.output_room(10, 41, param="prompt")
    with pytest.raises(ContextLengthExceeded, match="has 50 tokens"):
        pipeline.output_room(50, None, param="prompt")
    with pytest.raises(InvalidRequest, match="no tokens"):
        pipeline.output_room(0, None, param="prompt")


def test_a_folder_without_tokenizer_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="save_pretrained"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="no tokenizer"):
        Tokenizer.load(tmp_path)


def test_printable_escapes_what_is_no_character() -> None:
    assert printable("é".encode()) == "é"
    assert printable("é".encode()[:1]) == "\\xc3"
