from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.preprocess.model_files import read_model_files


def write(folder: Path, name: str, content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text)


def test_an_empty_folder_knows_nothing(tmp_path: Path) -> None:
    files = read_model_files(tmp_path)
    assert (files.special_tokens, files.chat_template, files.eos_ids, files.vocab_size) == (
        {},
        None,
        (),
        None,
    )


def test_special_tokens_in_both_spellings(tmp_path: Path) -> None:
    write(
        tmp_path,
        "tokenizer_config.json",
        {
            "bos_token": {"content": "<s>", "lstrip": False},
            "eos_token": "</s>",
            "unk_token": None,
            "additional_special_tokens": ["<a>", {"content": "<b>"}],
        },
    )
    assert read_model_files(tmp_path).special_tokens == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "additional_special_tokens": ["<a>", "<b>"],
    }


def test_the_template_of_a_file_wins(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": "from config"})
    assert read_model_files(tmp_path).chat_template == "from config"
    write(tmp_path, "chat_template.json", {"chat_template": "from json"})
    assert read_model_files(tmp_path).chat_template == "from json"
    write(tmp_path, "chat_template.jinja", "from jinja")
    assert read_model_files(tmp_path).chat_template == "from jinja"


def test_the_default_of_several_named_templates(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": named})
    assert read_model_files(tmp_path).chat_template == "d"


def test_end_tokens_and_vocabulary_of_all_places(tmp_path: Path) -> None:
    write(
        tmp_path, "config.json", {"eos_token_id": 2, "text_config": {"vocab_size": 99, "eos_token_id": [3]}}
    )
    write(tmp_path, "generation_config.json", {"eos_token_id": [2, 7], "temperature": 0.6})
    files = read_model_files(tmp_path)
    assert set(files.eos_ids) == {2, 3, 7}
    assert files.vocab_size == 99


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "two"}'])
def test_a_file_that_is_there_must_be_readable(tmp_path: Path, content: str) -> None:
    write(tmp_path, "config.json", content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_model_files(tmp_path)
