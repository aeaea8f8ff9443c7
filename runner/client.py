"""AsyncOpenAI (or AsyncAzureOpenAI) as this project uses it: it authorises, builds and raises; no retries, no parsing.

The typed loop of the SDK costs 230–340 µs a chunk. Here the same client posts bytes that were encoded once and returns
the response unread, so that authorisation, headers and errors stay the SDK's and the stream is ours.
"""

from __future__ import annotations

import zlib
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import quote

import httpx2
from openai import APIConnectionError, APITimeoutError, AsyncAzureOpenAI, AsyncOpenAI, DefaultAsyncHttpxClient
from openai._models import FinalRequestOptions

from runner import deadlines
from runner.announced import announced
from runner.jobs import Api
from runner.limits import ERROR_BODY_TIMEOUT_S, MAX_ERROR_BODY_BYTES
from runner.settings import TransportKind
from runner.transport import ResponseBody, Transport, Wire, environment_proxy, response_of

_STREAM_HEADERS: Final = {
    "Accept": "text/event-stream",
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
}
_PLAIN_HEADERS: Final = _STREAM_HEADERS | {"Accept": "application/json"}


async def _refusal(body: ResponseBody, request: httpx2.Request) -> httpx2.Response:
    """A bad answer with as much of its body as came: the status counts, whatever becomes of the body.

    No deadline of the attempt may pass meanwhile: a bad key would be a timeout, and tried again by every job.
    """
    try:
        with deadlines.suspended():
            content = await body.read_some(MAX_ERROR_BODY_BYTES, ERROR_BODY_TIMEOUT_S)
    finally:
        await body.aclose()
    coded = (b"content-encoding", b"content-length", b"transfer-encoding")
    # As bytes: as text, a header that isn't ASCII could not be put into a Response again.
    headers = [(name, value) for name, value in body.headers if name.lower() not in coded]
    content = _decoded(content, announced(body.headers).encoding)
    return httpx2.Response(body.status, headers=headers, content=content, request=request)


def _decoded(content: bytes, coding: str) -> bytes:
    """As much of a compressed body as came and is readable: gateways compress refusals, whatever was asked for."""
    if coding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return content
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | _ANY_HEADER).decompress(content, MAX_ERROR_BODY_BYTES)
    except zlib.error:
        return content


_ANY_HEADER: Final = 32
"""zlib: whether it is gzip or deflate is seen from its first bytes."""


class _Kind(NamedTuple):
    """Requests that differ in their content alone."""

    options: FinalRequestOptions
    """What the SDK builds them from."""
    key: tuple[Any, ...] | None
    """What tells them from others; None: there is no second such request."""

    @classmethod
    def of(cls, options: Any) -> _Kind:
        """Those that are built from these options. A GET is of one response."""
        return cls(options, None if options.method == "get" else (options.url, *options.headers.items()))


class _Prepared(AsyncOpenAI):
    """An AsyncOpenAI that builds the request of an endpoint once, and not once a request.

    AsyncOpenAI.request spends 0.42 ms CPU beside the transport, nearly all of it on building the same URL and headers
    again and on options that aren't used here (scripts/bench). Here the SDK builds them when an endpoint is first used,
    and again when its credential has changed; a test holds them against what AsyncOpenAI sends. Its errors are the
    SDK's own. Retries, redirects and cookies there are none.
    """

    def __init__(self, *, transport: Wire, **kwargs: Any) -> None:
        self._wire = transport
        self._templates: dict[tuple[Any, ...], Any] = {}
        super().__init__(**kwargs)
        plain_key = type(self) is PreparedOpenAI and self._api_key_provider is None and self._provider_runtime is None
        self._prepares = not plain_key
        """Whether the SDK has something to do before each request. With a plain key it has not, in 30 µs."""

    @property
    def user_agent(self) -> str:
        """The SDK's: it would name this class, and a server may go by it."""
        return f"{type(self).__mro__[2].__name__}/Python {self._version}"

    async def request(self, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
        """Sends `options.content`; returns when the headers of a good answer have arrived, its body unread.

        Raises:
            openai.APIStatusError: the status isn't 2xx; its (bounded) body has been read.
            openai.APIConnectionError: no answer came.
        """
        return response_of(*await self.dispatch(_Kind.of(options), options.content))

    async def dispatch(self, kind: _Kind, content: bytes) -> tuple[ResponseBody, httpx2.Request]:
        """The same with options that serve many requests: building them takes the SDK 30 to 100 µs.

        The request is the one that this one was made like.
        """
        if self._prepares:  # the credential that it gets is written into the options' headers
            kind = _Kind.of(await self._prepare_options(kind.options.model_copy()))
        template = self._template(kind)
        try:
            body = await self._wire.send(template, content)
        except httpx2.TimeoutException as error:
            raise APITimeoutError(request=template.request) from error
        except httpx2.TransportError as error:
            raise APIConnectionError(request=template.request) from error
        if 200 <= body.status < 300:
            return body, template.request
        raise self._make_status_error_from_response(await _refusal(body, template.request))

    def _template(self, kind: _Kind) -> Any:
        if kind.key is None:
            return self._build(kind.options)
        key = (self.api_key, kind.key)
        template = self._templates.get(key)
        if template is None:
            # A key that changes with every request must not gather templates.
            self._templates = {**dict(list(self._templates.items())[-_TEMPLATES:]), key: self._build(kind.options)}
            template = self._templates[key]
        return template

    def _build(self, options: Any) -> Any:
        return self._wire.template(self._build_request(options))


_TEMPLATES: Final = 15
"""Templates kept: four paths (or some deployments), streamed or not, and those of a credential that just changed."""


class PreparedOpenAI(_Prepared, AsyncOpenAI):
    """See `_Prepared`."""


class PreparedAzure(_Prepared, AsyncAzureOpenAI):
    """See `_Prepared`."""


def _options(path: str, stream: bool) -> FinalRequestOptions:
    """What AsyncOpenAI.post hands to `request`; the content stands for any."""
    headers = _STREAM_HEADERS if stream else _PLAIN_HEADERS
    return FinalRequestOptions.construct(method="post", url=path, content=b"{}", headers=headers)


def _open_transport(kind: TransportKind, *, trust_env: bool, proxy: str | None) -> Any:
    if kind == "aiohttp":
        return Transport(trust_env=trust_env, proxy=proxy)
    from runner.native import Transport as NativeTransport  # only where it is used: its parser is C

    return NativeTransport(trust_env=trust_env, proxy=proxy)


class Poster(Protocol):
    """What an attempt needs of a client."""

    async def post(self, api: Api, content: bytes, *, stream: bool) -> ResponseBody:
        """Posts one request; returns when the headers of a good answer have arrived.

        Raises:
            openai.APIStatusError: the status isn't 2xx; its (bounded) body has been read.
            openai.APIConnectionError: no answer came.
        """


class Client:
    """One endpoint and one key. `api_version`: of Azure's dated API, whose `base_url` is the resource's endpoint.

    Raises:
        UsageError: the environment names a proxy for it that can't be used.
    """

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str,
        trust_env: bool = True,
        api_version: str | None = None,
        transport: TransportKind = "native",
    ) -> None:
        proxy = environment_proxy(base_url) if trust_env else None
        wire = _open_transport(transport, trust_env=trust_env, proxy=proxy)
        # A timeout of None: the attempt's deadlines count deltas, the SDK's would count bytes and keep-alive comments.
        http_client = DefaultAsyncHttpxClient(transport=wire, follow_redirects=False, timeout=None, trust_env=False)
        common: dict[str, Any] = {
            "transport": wire,
            "api_key": api_key,
            "max_retries": 0,
            "timeout": None,
            "http_client": http_client,
        }
        self._kinds: dict[tuple[str, bool], _Kind] = {}
        self._openai: _Prepared = (
            PreparedOpenAI(base_url=base_url, **common)
            if api_version is None
            else PreparedAzure(azure_endpoint=base_url, api_version=api_version, **common)
        )

    def serving(self, model: str | None) -> Poster:
        """What to post requests for a model with: Azure's dated API has a path for each deployment."""
        if isinstance(self._openai, PreparedAzure) and model is not None:
            return _Deployment(self, f"/deployments/{quote(model, safe='')}")
        return self

    async def post(self, api: Api, content: bytes, *, stream: bool, prefix: str = "") -> ResponseBody:
        """See `Poster`. `prefix` comes before the path."""
        key = (prefix + api.path, stream)
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = _Kind.of(_options(*key))
        body, _ = await self._openai.dispatch(kind, content)
        return body

    async def get(self, response_id: str, *, stream: bool, after: int | None = None) -> ResponseBody:
        """Asks for a background response: its state, or its events (behind the one numbered `after`). As `post`."""
        params: dict[str, object] = {"stream": "true"} if stream else {}
        if after is not None:
            params["starting_after"] = after
        options = _options(f"{Api.RESPONSES.value}/{quote(response_id, safe='')}", stream)
        options.method, options.params = "get", params
        body, _ = await self._openai.dispatch(_Kind.of(options), b"")
        return body

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._openai.close()


class _Deployment(NamedTuple):
    """One deployment behind Azure's dated API."""

    client: Client
    prefix: str

    async def post(self, api: Api, content: bytes, *, stream: bool) -> ResponseBody:
        """See `Poster`. The Responses API names the model in the body alone."""
        return await self.client.post(api, content, stream=stream, prefix="" if api is Api.RESPONSES else self.prefix)
