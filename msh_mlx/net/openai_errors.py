"""Errors in the form of OpenAI's interfaces."""

from __future__ import annotations

from collections.abc import Mapping

from ..conversation.places import BusyError
from ..errors import InputError, MshError, ProtocolError
from .exchange import Answer
from .forms import TooLargeError

INVALID = "invalid_request_error"


class RefusedError(ProtocolError):
    """A request is refused: with an HTTP status, the name of the parameter that was wrong, and a code for programs."""

    def __init__(
        self,
        what: str,
        advice: str = "",
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        kind: str = INVALID,
    ) -> None:
        super().__init__(what, advice)
        self.param, self.code, self.status, self.kind = param, code, status, kind


def error_body(error: MshError) -> dict[str, object]:
    """Return an error as the JSON object that is sent."""
    refusal = as_refusal(error)
    body = {"message": str(error), "type": refusal.kind, "param": refusal.param, "code": refusal.code}
    return {"error": body}


def error_answer(error: MshError, headers: Mapping[str, str] | None = None) -> Answer:
    """Return the answer that tells an error."""
    refusal = as_refusal(error)
    more = {"Retry-After": "2"} if refusal.code == "busy" else {}
    return Answer.of_json(error_body(error), refusal.status, {**more, **(headers or {})})


def as_refusal(error: MshError) -> RefusedError:
    """Say what an error is for OpenAI's clients."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, TooLargeError):
        return RefusedError(error.what, error.advice, status=413, code="request_too_large")
    if isinstance(error, BusyError):
        return RefusedError(error.what, error.advice, status=503, kind="server_error", code="busy")
    if isinstance(error, InputError | ProtocolError):
        return RefusedError(error.what, error.advice)
    return RefusedError(error.what, error.advice, status=500, kind="server_error")
