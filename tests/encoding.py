"""One example encoded by itself."""

from moesaic.data.batches import TokenizerLike, Tokens, encode_all
from moesaic.data.rows import Example


def encode(example: Example, tokenizer: TokenizerLike, length: int, prompt_tokens: int) -> Tokens:
    ((row,), _) = encode_all([example], tokenizer, length, prompt_tokens)
    return row
