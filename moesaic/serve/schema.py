"""The bodies of requests as strict values: an unknown field is an error, and so is a value of another type.

Knows nothing about models or answers. The names and limits of the fields are those of OpenAI's API; `top_k`,
`session_id` and `routing` are this server's own.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(min_length=1, max_length=256)]
Zero = Annotated[float, Field(ge=0, le=0)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class Body(BaseModel):
    """A body, or a part of one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(Body):
    """A part of a message; only texts are read."""

    type: Literal["text"]
    text: str


class Turn(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    tool_call_id: Name | None = Field(
        default=None, description="Of a tool's result; the model reads the content alone."
    )


class Among(Body):
    """The experts, or `base`, among which the router chooses."""

    allow: Annotated[list[Name], Field(min_length=1)] | None = Field(
        default=None, description="Only these (default: all)."
    )
    exclude: list[Name] | None = Field(default=None, description="None of these.")


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool = Field(default=False, description="Count the tokens in a last chunk.")


class ResponseFormat(Body):
    """The form of an answer: plain text."""

    type: Literal["text"]


class Routable(Body):
    """The fields of everything that is routed."""

    model: Name = Field(description="The mixture, or `mixture:expert` for one expert.")
    routing: Among | None = None
    session_id: Name | None = Field(default=None, description="The conversation whose expert is held.")


class Sampled(Routable):
    """The fields of everything that writes text."""

    max_tokens: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Of the answer.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(default=None, description="0 is greedy; default 1.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, description="Default 1.")
    top_k: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="0, the default, draws from all tokens."
    )
    n: Annotated[int, Field(ge=1, le=128)] | None = Field(default=None, description="Answers to write; default 1.")
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = Field(
        None, description="Texts that end an answer."
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        default=None, description="Equal seeds draw equal texts."
    )
    stream: bool | None = Field(default=None, description="Send the answer as server-sent events.")
    stream_options: StreamOptions | None = Field(default=None, description="With `stream` alone.")
    frequency_penalty: Zero | None = Field(default=None, description="Only 0: there is no such penalty.")
    presence_penalty: Zero | None = Field(default=None, description="Only 0: there is no such penalty.")

    @model_validator(mode="after")
    def options_need_a_stream(self) -> "Sampled":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options means nothing without stream: true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(Sampled):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="The newer `max_tokens`."
    )
    logprobs: bool | None = Field(default=None, description="Report the log-probability of each token.")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(default=None, description="With `logprobs` alone.")
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def fields_fit(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs means nothing without logprobs: true")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
        return self


class CompletionRequest(Sampled):
    """The body of `/v1/completions`."""

    prompt: Annotated[str, Field(min_length=1)] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = (
        Field(description="A text, continued as it is, or token ids; one prompt a request.")
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = Field(
        default=None, description="Most probable tokens to report."
    )


class RouteRequest(Routable):
    """The body of `/v1/route`: either of `messages` and `prompt`."""

    messages: Annotated[list[Turn], Field(min_length=1)] | None = None
    prompt: Annotated[str, Field(min_length=1)] | None = Field(default=None, description="A text, read as it is.")

    @model_validator(mode="after")
    def one_of_both(self) -> "RouteRequest":
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give messages or prompt, one of the two")
        return self


class Option(Body):
    """An expert, or `base`, as an answer to a question."""

    value: Name
    description: str | None = None


class Question(Body):
    """A question that the router answers: which of these experts?"""

    type: Literal["choice"]
    name: Name | None = None
    instructions: str | None = None
    choices: Annotated[list[Option], Field(min_length=2, max_length=255)]


class UserTurn(Body):
    """The one message of an `input`."""

    role: Literal["user"]
    content: str


class DecisionsRequest(Body):
    """The body of `/v1/decisions`: questions whose choices are names of experts."""

    model: Name
    input: Annotated[str, Field(min_length=1)] | Annotated[list[UserTurn], Field(min_length=1, max_length=1)]
    questions: Annotated[list[Question], Field(min_length=1, max_length=200)]


class CorrectionRequest(Body):
    """The body of a correction."""

    expert: Name | None = Field(description="The expert, or `base`, that should have answered; null revokes.")


class ErrorFacts(Body):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Body):
    """The body of every error."""

    error: ErrorFacts
