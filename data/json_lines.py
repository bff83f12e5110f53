"""JSON as we write it: readable characters, no NaN, and one row a line for every reader."""

from __future__ import annotations

import json

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
# Ordinary characters to JSON, line ends to some readers (str.splitlines): escaped, the text read back is the same.
_LINE_ENDS_TO_SOME = (("\u2028", "\\u2028"), ("\u2029", "\\u2029"), ("\x85", "\\u0085"))


def encode_json(value: object) -> str:
    """A JSON value in one line, whatever the reader takes for a line end. Raises ValueError for NaN."""
    text = _encode(value)
    for character, escaped in _LINE_ENDS_TO_SOME:
        text = text.replace(character, escaped)
    return text
