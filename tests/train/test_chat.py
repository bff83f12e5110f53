"""Prompt and response as token ids."""

from __future__ import annotations

import pytest

from data.errors import BadInput
from data.records import Message
from tests.train.made import byte_tokenizer
from train.chat import encode_prompt, encode_response

ASK = (Message("user", "Hi?"),)


def test_the_template_is_applied_to_prompt_and_response_as_a_whole(tokenizer) -> None:
    ids = encode_response(tokenizer, ASK, "Yes.")
    assert tokenizer.decode(ids) == "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>"


@pytest.mark.parametrize("answer", ["", "Yes.", "Yes.\n\n", "Yes.<|im_end|>", "<|im_end|><|im_end|>", "苹果🍎"])
def test_exactly_one_eos_ends_the_ids(tokenizer, answer: str) -> None:
    ids = encode_response(tokenizer, ASK, answer)
    assert ids[-1] == tokenizer.eos_token_id
    assert ids[-2] != tokenizer.eos_token_id


def test_the_prompt_alone_is_the_start_of_prompt_and_response(tokenizer) -> None:
    prompt, whole = encode_prompt(tokenizer, ASK), encode_response(tokenizer, ASK, "Yes.")
    assert whole[: len(prompt)] == prompt


def test_a_tokenizer_without_a_template_gets_the_plain_format() -> None:
    plain = byte_tokenizer(special=["<|end|>"], template=None)
    conversation = (Message("system", "Be brief."), *ASK)
    assert plain.decode(encode_response(plain, conversation, "Yes.")) == (
        "System: Be brief.\n\nUser: Hi?\n\nAssistant: Yes.<|end|>"
    )
    assert plain.decode(encode_prompt(plain, ASK)) == "User: Hi?\n\nAssistant:"


def test_bos_comes_once_where_the_tokenizer_adds_it_or_the_template_writes_it() -> None:
    plain = byte_tokenizer(special=["<s>", "</s>"], template=None)
    plain.bos_token = "<s>"
    from tokenizers.processors import TemplateProcessing

    plain.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    ids = encode_response(plain, ASK, "Yes.")
    assert ids[0] == 0
    assert ids.count(0) == 1
    plain.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    ids = encode_response(plain, ASK, "Yes.")
    assert (ids[0], ids.count(0)) == (0, 1)


def test_a_template_that_refuses_the_prompt_is_told_in_a_sentence() -> None:
    strict = byte_tokenizer(template="{{ raise_exception('no system turn') }}")
    with pytest.raises(BadInput, match=r"^prompt 'Hi\?': the model's chat template refuses it \(no system turn\)"):
        encode_prompt(strict, ASK)
