"""llama.cpp as a peer: what it is asked for, and that answers of another length do not count."""

import importlib.util

import numpy as np
import pytest

from sleeplm.bench.llama_cpp import decoder, llama_cpp
from sleeplm.core.errors import ConfigError

PROMPTS = np.array([[5, 6, 7], [8, 9, 10]])


class Server:
    """Tells ``tokens`` tokens, whatever it is asked for."""

    def __init__(self, tokens: int):
        self.tokens, self.asked = tokens, []

    def handle_completions(self, request):
        self.asked.append(request)
        return {"usage": {"completion_tokens": self.tokens}}


def test_every_prompt_is_continued_greedily_by_as_many_tokens_as_ours():
    server = Server(tokens=4)
    decoder(server, PROMPTS, new=4)()
    assert sorted(request["prompt"] for request in server.asked) == PROMPTS.tolist()
    settings = ("n_predict", "temperature", "ignore_eos", "cache_prompt")
    assert {tuple(request[name] for name in settings) for request in server.asked} == {
        (4, 0.0, True, False)
    }


def test_a_continuation_of_another_length_is_no_measurement():
    with pytest.raises(RuntimeError, match="'completion_tokens': 3} instead of 4 tokens"):
        decoder(Server(tokens=3), PROMPTS, new=4)()


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is not None, reason="xllamacpp is here")
def test_without_its_package_one_line_says_what_to_install():
    with pytest.raises(ConfigError, match="--llama-cpp = True: needs `pip install xllamacpp`"):
        llama_cpp(length=8, slots=1)
