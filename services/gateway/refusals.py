"""Why a request is not answered, as data, and what it looks like to a client of OpenAI's interface."""

from dataclasses import dataclass
from typing import Any

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP status with OpenAI's fields: ``Refusal(429, "rate_limit_exceeded", "…", retry_after_s=12)``."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """How long to wait, or that waiting does not help, which OpenAI's client asks for by this name."""
        if self.retry_after_s is not None:
            return {"Retry-After": str(self.retry_after_s)}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {"x-should-retry": "false"}
