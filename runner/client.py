"""AsyncOpenAI as this project uses it: it sends, authorises and raises; it neither retries nor parses.

The typed loop of the SDK costs 230–340 µs a chunk. Here the same client posts bytes that were encoded once and returns
the response unread, so that authorisation, headers and errors stay the SDK's and the stream is ours.
"""

from __future__ import annotations

from typing import Any, Final

import httpx2
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from runner.jobs import Api
from runner.transport import BODY, Body, Transport

_STREAM_HEADERS: Final = {
    "Accept": "text/event-stream",
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
}
_PLAIN_HEADERS: Final = _STREAM_HEADERS | {"Accept": "application/json"}


class Client:
    """One endpoint and one key."""

    def __init__(self, *, base_url: str, api_key: str, trust_env: bool = True) -> None:
        # A timeout of None: the attempt's deadlines count deltas, the SDK's would count bytes and keep-alive comments.
        http_client = DefaultAsyncHttpxClient(
            transport=Transport(trust_env=trust_env), follow_redirects=False, timeout=None, trust_env=False
        )
        self._openai = AsyncOpenAI(
            api_key=api_key, base_url=base_url, max_retries=0, timeout=None, http_client=http_client
        )

    async def post(self, api: Api, content: bytes, *, stream: bool) -> tuple[httpx2.Response, Body]:
        """Posts one request; returns when the headers of a good answer have arrived.

        Raises:
            openai.APIStatusError: the status isn't 2xx; its (bounded) body has been read.
            openai.APIConnectionError: no answer came.
        """
        options: Any = {"headers": _STREAM_HEADERS if stream else _PLAIN_HEADERS}
        response = await self._openai.post(
            api.value, content=content, cast_to=httpx2.Response, stream=True, stream_cls=None, options=options
        )
        return response, response.extensions[BODY]

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._openai.close()
