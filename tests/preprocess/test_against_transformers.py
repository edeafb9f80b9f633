"""Templates in the style of well-known models render as ``transformers`` renders them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import dynamo_sdk
from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.preprocess import ChatTemplate
from dynamo_sdk.preprocess.model_files import read_model_files

pytestmark = pytest.mark.slow

DEMO = Path(dynamo_sdk.__file__).parent / "demo_model"

HEADERS = """
{%- for message in messages %}
{%- set content = '<|start|>' + message['role'] + '<|stop|>\n\n' + message['content'] | trim + '<|eot|>' %}
{%- if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}"""

BACKWARDS = """
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == 'user' %}
        {%- set ns.last = index %}
        {%- set ns.searching = false %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if loop.index0 > ns.last %}{{- 'AFTER' }}{%- endif %}
    {{- '<' + message.role + '>' + message.content.split('</think>')[-1].lstrip('\n') }}
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think></think>' }}{%- endif %}"""

STRICT = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('must alternate') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% else %}{{ message['content'] + eos_token }}{% endif %}
{% endfor %}"""

AS_JSON = "{% for m in messages %}\n  {{ m | tojson(indent=2) }}\n{% endfor %}\n{{ {'a': ['é<>']} | tojson }}"

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": " Hi <b>é "}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>x</think>\nb"},
        {"role": "user", "content": "c"},
    ],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
]


@pytest.mark.parametrize("source", [None, HEADERS, BACKWARDS, STRICT, AS_JSON])
def test_renders_alike(source: str | None, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = json.loads((DEMO / "tokenizer_config.json").read_text())
    config["chat_template"] = source or config["chat_template"]
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    ours = ChatTemplate(config["chat_template"], special_tokens=read_model_files(tmp_path).special_tokens)

    for messages in CONVERSATIONS:
        for prompted in (True, False):
            for variables in ({}, {"enable_thinking": False}):
                options: dict[str, Any] = {"add_generation_prompt": prompted}
                try:
                    expected = theirs.apply_chat_template(messages, tokenize=False, **options, **variables)
                except Exception:
                    with pytest.raises(InvalidRequest):
                        ours.render(messages, **options, variables=variables)
                else:
                    assert ours.render(messages, **options, variables=variables) == expected
