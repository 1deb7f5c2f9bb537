"""Text <-> token ids: tokenizers trained here or published, and the templates of conversations."""

from moesaic.tokenizer.comparing import Difference, compare
from moesaic.tokenizer.conversation import Conversation, Exchange, Message
from moesaic.tokenizer.published import FILES
from moesaic.tokenizer.special import Special
from moesaic.tokenizer.templates import Template
from moesaic.tokenizer.tokenizer import END, Tokenizer

__all__ = ["END", "FILES", "Conversation", "Difference", "Exchange", "Message", "Special", "Template", "Tokenizer"]
__all__ += ["compare"]
