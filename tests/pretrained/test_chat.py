"""Conversations are rendered as the model's template says, with Jinja or without."""

from __future__ import annotations

import importlib.util

import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.pretrained import chat
from sleeplm.pretrained.chat import render

NAMES = {"bos": "<s>", "eos": "</s>", "pad": "</s>"}
LOOP = (
    "{% for message in messages %}",
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
)
DEFAULT = (
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You help.<|im_end|>\n' }}{% endif %}"
)
TEMPLATES = {
    "plain": "".join(LOOP),
    "with a default": DEFAULT.join(LOOP),
    "escaped": DEFAULT.join(LOOP).replace("\n", "\\n"),
}
CONVERSATIONS = [
    [],
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " a\n"}],
    [
        {"role": "user", "content": "{{ 1 }}"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "é"},
    ],
]


@pytest.fixture
def no_jinja(monkeypatch):
    find = importlib.util.find_spec
    without = lambda name: None if name == "jinja2" else find(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("prompt", [True, False])
def test_chatml_in_plain_python_is_what_jinja_renders(template, messages, prompt, needs):
    needs("jinja2")
    assert chat.CHATML.fullmatch(template.replace("\\n", "\n"))
    tokens = {f"{name}_token": token for name, token in NAMES.items()}
    expected = chat._jinja(template, messages, prompt, tokens)
    assert render(template, messages, prompt, NAMES) == expected


def test_chatml_needs_no_jinja(no_jinja):
    assert render(TEMPLATES["plain"], CONVERSATIONS[1], True, NAMES) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_another_template_without_jinja_is_one_clear_line(no_jinja):
    with pytest.raises(ConfigError, match="pip install jinja2"):
        render("{{ bos_token }}", [], True, NAMES)


def test_another_template_is_rendered_with_the_models_tokens(needs):
    needs("jinja2")
    template = "{{ bos_token }}{% for m in messages %}\n[{{ m.role }}]{{ m.content }}{% endfor %}\n"
    assert render(template, CONVERSATIONS[1], True, NAMES) == "<s>[user]Hi"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{% for %}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
    ],
)
def test_a_template_that_refuses_is_broken_or_reaches_out_is_an_error(template, needs):
    needs("jinja2")
    with pytest.raises(ConfigError, match="cannot render"):
        render(template, [], True, NAMES)
