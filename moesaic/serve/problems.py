"""Errors in the shape of OpenAI's API: {"error": {"message", "type", "param", "code"}}, with their status.

Knows nothing about routes. Messages of this machine's faults stay on this machine.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from moesaic.errors import DataError, MemoryLimitError, MoesaicError, RecipeError, clipped, printable

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
"""The type of an error by its status; of others below 500 `invalid_request_error`, else `server_error`."""

CALLERS = (RecipeError, DataError, MemoryLimitError)
"""Errors about a request; all others are faults of the server."""


class Problem(Exception):
    """An error for the caller. `param`: the field of the request that it is about. `headers`: of the response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        type = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": printable(self.message), "type": type, "param": self.param, "code": self.code}}

    def with_headers(self, headers: Mapping[str, str]) -> "Problem":
        self.headers |= headers
        return self


def problem_of(error: BaseException, params: Mapping[str, str]) -> Problem:
    """The problem of any error; `params`: the package's names of fields -> the request's, "" being the prompt."""
    if not isinstance(error, CALLERS):
        return Problem(500, "the server could not answer; its log says why", code="internal_error")
    field = re.sub(r"^prompts\[0\]\.?", "", error.field or "")
    param = params.get(field, field)
    code = "context_length_exceeded" if "exceed" in error.what else "invalid_value"
    return Problem(400, told(error), code=code, param=param)


def told(error: MoesaicError) -> str:
    """An error's message without its field, and without any path of this machine."""
    detail = "" if error.expected is None else f"; expected {error.expected}"
    detail += "" if error.got is None else f"; got {clipped(error.got)}"
    return f"{clipped(error.what, 500)}{detail}{f'; {error.hint}' if error.hint else ''}"


def invalid(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """The problem of a body that does not fit its schema, from the errors of pydantic: the first field's innermost."""
    first = max((one for one in errors if one["loc"][:2] == errors[0]["loc"][:2]), key=lambda one: len(one["loc"]))
    kind, where = first["type"], [part for part in first["loc"] if part not in ("body", "query", "path")]
    param = path_of(where)
    if kind == "value_error":  # about several fields, of which the message names the first
        message = first["msg"].removeprefix("Value error, ")
        return Problem(400, message, code="invalid_value", param=message.split()[0])
    if kind == "json_invalid" or not where:
        return Problem(400, f"the body is not a JSON object: {first['msg']}", code="invalid_json")
    if kind == "extra_forbidden":
        message = f"{param}: this server does not support the field, and ignores none"
        return Problem(400, message, code="unsupported_parameter", param=param)
    if kind == "missing":
        return Problem(400, f"{param}: is missing", code="missing_required_parameter", param=param)
    return Problem(400, f"{param}: {first['msg']}", code="invalid_value", param=param)


def path_of(where: Sequence[str | int]) -> str:
    """The place of a field as in messages[0].content; branches of unions, which only the schema names, are left out."""
    text = ""
    for part in where:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[\w.-]+", part) and part not in BRANCHES:
            text += f".{part}" if text else part
    return text


BRANCHES = {"str", "list", "int", "constrained-str", "constrained-int"}
"""Names that pydantic gives the branches of a union in the place of an error."""
