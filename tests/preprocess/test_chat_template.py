from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dynamo_sdk.errors import ConfigError, InvalidRequest
from dynamo_sdk.preprocess import ChatTemplate, Message
from dynamo_sdk.types.plan import Json

SIMPLE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def template(source: str, **special: str) -> ChatTemplate:
    return ChatTemplate(source, special_tokens=special, now=lambda: datetime(2026, 3, 4))


def user(content: Json) -> list[Message]:
    return [{"role": "user", "content": content}]


def test_blocks_are_trimmed_as_templates_expect() -> None:
    source = "{{ bos_token }}\n  {% for m in messages %}\n  {{ m.content }}\n  {% endfor %}\nend"
    assert template(source, bos_token="<s>").render(user("hi")) == "<s>\n  hi\nend"


def test_names_that_templates_use() -> None:
    source = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{{ m.content | tojson }}{% endfor %}"
        "{{ strftime_now('%d %b %Y') }}{% generation %}[{{ eos_token }}]{% endgeneration %}"
        "{{ tools is none }}{{ enable_thinking }}"
    )
    rendered = template(source, eos_token="</s>").render(
        [*user("<é>"), *user("second")], variables={"enable_thinking": False}
    )
    assert rendered == '"<é>"04 Mar 2026[</s>]TrueFalse'


def test_the_templates_own_refusal_is_a_bad_request() -> None:
    source = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        template(source).render(user("hi"))
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[5].content }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{% for i in range(3000) %}{% for j in range(3000) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ messages[0].content * 100 }}{% endfor %}",
    ],
)
def test_whatever_goes_wrong_in_a_template_is_a_bad_request(source: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template"):
        template(source).render(user("some words"))


def test_a_broken_template_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(ConfigError, match="chat template is not valid"):
        template("{% for m in messages %}")


PARTS: Json = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]


def test_parts_are_joined_for_a_template_of_strings() -> None:
    assert template(SIMPLE).render(user(PARTS)) == "<user>one\ntwo<assistant>"


def test_parts_stay_parts_for_a_template_that_takes_them() -> None:
    source = "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}"
    assert template(source).render(user(PARTS)) == "[one][two]"
    assert template(source).render(user("text")) == "[text]", "a string is wrapped where only parts work"


def test_a_template_of_both_forms_gets_what_the_client_sent() -> None:
    source = (
        "{% for m in messages %}{% if m.content is string %}s{{ m.content }}"
        "{% else %}{% for p in m.content %}p{{ p.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    assert template(source).render(user(PARTS)) == "poneptwo"
    assert template(source).render(user("x")) == "sx"


@given(contents=st.lists(st.text(), max_size=5))
def test_contents_reach_the_prompt_unchanged(contents: list[str]) -> None:
    rendered = template(SIMPLE).render([message for text in contents for message in user(text)])
    assert rendered == "".join(f"<user>{text}" for text in contents) + "<assistant>"


OWN_NAMES = (
    "{%- macro turn(m) -%}<{{ m.role }}>{{ m.content }}{{ eos }}{%- endmacro -%}"
    "{%- set state = namespace(num=0, seen=dict(first=true)) -%}{%- set eos = '</s>' -%}"
    "{%- set colour = cycler('red', 'blue') -%}{%- set comma = joiner(', ') -%}"
    "{%- for m in messages -%}{{ comma() }}{{ colour.next() }}{{ turn(m) }}"
    "{%- set state.num = state.num + 1 -%}{%- endfor -%}"
    "{{ state.num }}{{ state.seen.first }}{% for i in range(state.num) %}{{ i }}{% endfor %}{{ nothing }}"
)


@given(contents=st.lists(st.text(), max_size=5), shadow=st.sampled_from(["eos", "turn", "state", "nothing"]))
def test_every_rendering_is_what_jinja_gives_a_new_template(contents: list[str], shadow: str) -> None:
    messages = [message for text in contents for message in user(text)]
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(OWN_NAMES)
    expected = plain.render(messages=messages, add_generation_prompt=True, **{shadow: "given"})
    ours = template(OWN_NAMES)
    for _ in range(2):
        assert ours.render(messages, variables={shadow: "given"}) == expected
    assert ours.render([]) == plain.render(messages=[]), "nothing stays from one rendering to the next"
