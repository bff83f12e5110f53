"""A conversation as token ids, the same for training, scoring and writing.

The model's chat template where it has one. Else the plain format: `System: `, `User: ` and `Assistant: ` turns, each
followed by an empty line, after the BOS token if the tokenizer adds one by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from data.errors import BadInput
from data.records import Message

ADDED_PAD = "<|pad|>"
"""What a model without a pad token to spare is given. Text that spells it is text: the model has no weights for it."""

_SPEAKER = {"system": "System", "user": "User", "assistant": "Assistant"}


def encode_response(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], response: str) -> list[int]:
    """Token ids of prompt and response as one conversation, ending with exactly one EOS: the scored position."""
    messages = [*prompt, Message("assistant", response)]
    if tokenizer.chat_template is None:
        ids = _plain(tokenizer, _turns(messages))
    else:
        ids = _tokens(tokenizer, _render(tokenizer, messages, open_turn=False))
    return _end_once(tokenizer, ids)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> list[int]:
    """Token ids of the prompt up to where the response begins."""
    if tokenizer.chat_template is None:
        # No space at the end: most tokenizers join it to the word that follows.
        return _plain(tokenizer, _turns(prompt) + "\n\nAssistant:")
    return _tokens(tokenizer, _render(tokenizer, prompt, open_turn=True))


def opening_length(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], rows: Sequence[Sequence[int]]
) -> tuple[int, bool]:
    """How many leading tokens of `rows`, each the prompt with a response, are the prompt's; and whether these are not
    the tokens of the prompt when it stands alone.

    Some templates close a turn of thought in the generation prompt only, or write the system's turn elsewhere once a
    response follows; some tokenizers join the prompt's end with the response's start. Then it is what all rows share
    with the prompt alone, or with one more response, whose first character hardly any response has.
    """
    alone = encode_prompt(tokenizer, prompt)
    shared = shared_prefix([*rows, alone])
    if shared == len(alone):
        return shared, False
    return max(shared, shared_prefix([*rows, encode_response(tokenizer, prompt, "~")])), True


def shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all rows share."""
    first, last = min(map(list, rows)), max(map(list, rows))  # by dictionary order: what these two share, all share
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that stand for no text, and their ids."""
    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return {**added, **named}


def _turns(messages: Sequence[Message]) -> str:
    return "\n\n".join(f"{_SPEAKER[m.role]}: {m.content}" for m in messages)


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, open_turn: bool) -> str:
    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=open_turn))
    except TemplateError as error:
        start = messages[0].content[:40]
        raise BadInput(
            f"prompt '{start}': the model's chat template refuses it ({error}). Change the prompt or the model."
        ) from None


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    def encode(part: str) -> list[int]:
        # A template writes BOS and EOS itself; verbose=False: lengths are our concern.
        return list(tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"])

    if tokenizer.pad_token != ADDED_PAD or ADDED_PAD not in text:
        return encode(text)
    spelled = encode(ADDED_PAD[:1]) + encode(ADDED_PAD[1:])
    first, *others = map(encode, text.split(ADDED_PAD))
    return first + [i for part in others for i in (*spelled, *part)]


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    return ([bos] if adds_bos else []) + _tokens(tokenizer, text)


def _end_once(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Drop what a template writes after the last EOS (a newline, mostly), then let exactly one EOS end the ids."""
    eos = tokenizer.eos_token_id
    if eos in ids:
        after = len(ids) - ids[::-1].index(eos)
        if not str(tokenizer.decode(ids[after:])).strip():
            ids = ids[:after]
    while ids and ids[-1] == eos:
        ids = ids[:-1]
    return [*ids, eos]
