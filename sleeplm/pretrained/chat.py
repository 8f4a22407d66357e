"""Conversations as text: ChatML in plain Python, any other template through Jinja's sandbox."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError

START, END = "<|im_start|>", "<|im_end|>"
_SYSTEM = (
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n",
    "<|im_end|>\n' }}{% endif %}",
)
_LOOP = (
    "{% for message in messages %}",
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
)
#: ChatML as models ship it, with or without (SmolLM2 has one) words for who sets no system message.
CHATML = re.compile(
    rf"{re.escape(_LOOP[0])}(?:{re.escape(_SYSTEM[0])}(?P<system>[^'{{}}\\]*)"
    rf"{re.escape(_SYSTEM[1])})?{re.escape(_LOOP[1])}"
)


def check_messages(messages: Sequence[Mapping[str, str]]) -> None:
    """Every message must have a role and a content, both texts.

    Raises:
      ConfigError: one has not.
    """
    for i, message in enumerate(messages):
        checks.require(isinstance(message, Mapping), f"messages[{i}]", message, "must be a mapping")
        for key in {"role": "", "content": ""} | dict(message):
            value = message.get(key)
            remedy = "must be a string"
            checks.require(isinstance(value, str), f"messages[{i}].{key}", value, remedy)


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool,
    names: Mapping[str, str],
) -> str:
    """The conversation as one text.

    Args:
      template: Jinja source. ChatML is recognised and needs no Jinja.
      messages: see :func:`check_messages`.
      names: what a template knows as ``bos_token`` is here under ``bos``, and so on.

    Raises:
      ConfigError: Jinja is needed and not installed, or the template refuses these messages.
    """
    match = CHATML.fullmatch(template.replace("\\n", "\n").strip())
    if match:
        return chatml(messages, add_generation_prompt, match["system"])
    if importlib.util.find_spec("jinja2") is None:
        remedy = "is no ChatML and needs Jinja: pip install jinja2"
        raise ConfigError("chat_template", template[:40], remedy)
    tokens = {f"{name}_token": token for name, token in names.items()}
    return _jinja(template, messages, add_generation_prompt, tokens)


def chatml(
    messages: Sequence[Mapping[str, str]], add_generation_prompt: bool, system: str | None = None
) -> str:
    """ChatML; ``system`` stands in front if the first message is not from the system."""
    turns = [(message["role"], message["content"]) for message in messages]
    if system is not None and turns and turns[0][0] != "system":
        turns = [("system", system), *turns]
    text = "".join(f"{START}{role}\n{content}{END}\n" for role, content in turns)
    return text + (f"{START}assistant\n" if add_generation_prompt else "")


def _jinja(template: str, messages: Any, add_generation_prompt: bool, tokens: Any) -> str:
    import jinja2.exceptions
    import jinja2.sandbox

    def refuse(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    # Templates are programs of other people's, written for these settings.
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    try:
        return sandbox.from_string(template, {"raise_exception": refuse}).render(
            messages=messages, add_generation_prompt=add_generation_prompt, **tokens
        )
    except Exception as error:  # a template is a program: it may fail in any way
        remedy = f"cannot render these messages: {error}"
        raise ConfigError("chat_template", template[:40], remedy) from None
