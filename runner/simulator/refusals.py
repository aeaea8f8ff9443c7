"""Answers that refuse a request, worded as the API words them. Pure.

Sources: the API's error-code page, and bodies seen from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """Raised when a request is answered with an error body and this status."""

    def __init__(self, status: int, error: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.error = error
        """The value of `error` in the body."""
        self.headers = dict(headers or {})


def error_object(
    message: str, type_: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The API's error object."""
    return {"message": message, "type": type_, "param": param, "code": code}


def bad_request(message: str, param: str | None = None, code: str | None = None, status: int = 400) -> ApiError:
    """A request that can't be served as it is."""
    return ApiError(status, error_object(message, param=param, code=code))


def missing(name: str) -> ApiError:
    """A body without a required key."""
    if name == "model":  # the one key whose absence the API words differently
        return bad_request("you must provide a model parameter")
    return bad_request(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")


def wrong_type(name: str, expected: str, value: Any) -> ApiError:
    """A key whose value has another type than the API takes."""
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a decimal",
    }
    got = names.get(type(value), "null")
    message = f"Invalid type for '{name}': expected {expected}, but got {got} instead."
    return bad_request(message, name, "invalid_type")


def invalid_json() -> ApiError:
    """A body that is no JSON object."""
    return bad_request(
        "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP library "
        "correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)"
    )


def wrong_key(key: str | None) -> ApiError:
    """A missing or wrong API key. A wrong one is shown masked."""
    if not key:
        return bad_request(
            "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer "
            "auth (i.e. Authorization: Bearer YOUR_KEY).",
            status=401,
        )
    masked = f"{key[:3]}***{key[-4:]}" if len(key) > 12 else "***"
    return bad_request(f"Incorrect API key provided: {masked}.", code="invalid_api_key", status=401)


def not_found(method: str, path: str) -> ApiError:
    """A URL that isn't served."""
    return bad_request(f"Invalid URL ({method} {path})", status=404)


def overloaded() -> ApiError:
    """More requests at once than the server takes."""
    message = "The server is currently overloaded with other requests. Please try again later."
    error = error_object(message, "server_error", code="server_is_overloaded")
    return ApiError(503, error, {"retry-after": "1"})
