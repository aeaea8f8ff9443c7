"""Every setting, its default and its bounds: flags, then RUNNER_* variables, then a TOML file, then these defaults.

The defaults are those of configs/default.toml; a test holds the two together. An unknown key is an error wherever it
stands: a misspelt limit that is silently ignored costs money.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from runner.errors import UsageError
from runner.limits import MAX_CONCURRENCY

ENV_PREFIX: Final = "RUNNER_"
DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"

# GitHub's hosted CI sets these in every job; they are no misspelt settings of ours.
_FOREIGN_ENV: Final = frozenset(
    f"RUNNER_{name}"
    for name in ("OS", "ARCH", "NAME", "TEMP", "TOOL_CACHE", "DEBUG", "ENVIRONMENT", "WORKSPACE", "TRACKING_ID", "USER")
)

_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")


def parse_duration(value: Any) -> Any:
    """`90`, `"90s"`, `"2h30m"` → seconds; what isn't text or a number is left for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower().replace(" ", "")
    if not _DURATION.fullmatch(text):
        return _number_of(text)
    return sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text))


def _number_of(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be seconds, or text such as 250ms, 90s, 5m or 2h30m") from None


def problem_with_url(url: str) -> str | None:
    """Why a URL can't be the base of requests, or None."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        if parts.scheme.lower() not in ("http", "https") or not host or re.search(r"\s", url):
            return "must begin with http:// or https:// and name a host"
        if parts.username is not None or parts.password is not None:
            return "must hold no user and password: a key comes from the environment (--api-key-env)"
        if parts.query or parts.fragment:
            return "must hold no query: paths of the API are put behind it"
        return None if parts.port != 0 else "names port 0"
    except (ValueError, UnicodeError) as error:
        return f"can't be read as a URL ({error})"


def _usable(url: str) -> str:
    if problem := problem_with_url(url):
        raise ValueError(problem)
    return url


Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
Money = Annotated[float, Field(ge=0, allow_inf_nan=False)]
TransportKind = Literal["aiohttp", "native"]
StreamOptions = Literal["openai", "usage", "none"]
BaseUrl = Annotated[str, AfterValidator(_usable)]


class TierPrice(BaseModel):
    """What a model costs in one service tier, in one currency per million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Money
    output: Money
    cached_input: Money | None = None
    """None: cached tokens cost what other input does."""


class Price(TierPrice):
    """What a model costs, and what in other service tiers than the default one."""

    flex: TierPrice | None = None
    """None: as the default tier."""
    priority: TierPrice | None = None
    """None: unknown, since it is dearer."""


class ModelLimits(BaseModel):
    """What an endpoint allows one model, or family of models. None: no limit that is known beforehand."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rpm: Rate | None = None
    """Requests a minute."""
    tpm: Rate | None = None
    """Tokens a minute, input and output together."""
    input_tpm: Rate | None = None
    """Input tokens a minute, where they are limited apart."""
    output_tpm: Rate | None = None
    """Output tokens a minute, likewise."""
    rpd: Rate | None = None
    """Requests in 24 hours."""
    tpd: Rate | None = None
    """Tokens in 24 hours."""
    concurrency: int | None = Field(default=None, ge=1, le=MAX_CONCURRENCY)
    """Streams at once."""


class EndpointSettings(BaseModel):
    """One of several servers, or keys of one server, that share a run's jobs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """What records and summaries call it."""
    base_url: BaseUrl = DEFAULT_BASE_URL
    """For kind "azure" the resource's endpoint, e.g. https://RESOURCE.openai.azure.com."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds its key."""
    kind: Literal["openai", "azure"] = "openai"
    """"azure": Azure's dated API, with deployments in its paths; its v1 API is "openai"."""
    api_version: str | None = Field(default=None, min_length=1)
    """Of kind "azure"."""
    models: dict[str, str] = Field(default_factory=dict)
    """The models it serves, each with its name there (a deployment, a vendor's prefix). A list: under their own names.
    Empty: all of them."""
    stream_options: StreamOptions | None = None
    """What to ask of a stream there; None: what the run asks."""
    rpm: Rate | None = None
    """Requests a minute, of all models."""
    tpm: Rate | None = None
    """Tokens a minute, of all models."""
    concurrency: int | None = Field(default=None, ge=1, le=MAX_CONCURRENCY)
    """Streams at once; None: the run's own rule, for this endpoint apart where it is "auto"."""
    limits: dict[str, ModelLimits] | None = None
    """By model, as above; None: the run's."""

    @field_validator("models", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return {name: name for name in value} if isinstance(value, list) else value

    def serves(self, model: str | None) -> bool:
        """Whether jobs for this model can go there."""
        return not self.models or model in self.models

    @model_validator(mode="after")
    def _dated(self) -> EndpointSettings:
        if (self.kind == "azure") != (self.api_version is not None):
            raise ValueError('kind "azure" needs an api_version, and no other kind has one')
        return self


ANY_MODEL: Final = "*"
"""The name of the limits of models that have none of their own."""


def limits_of(model: str | None, limits: Mapping[str, ModelLimits]) -> tuple[str, ModelLimits]:
    """The entry with the longest name that the model's begins with, and its limits; else the model itself."""
    model = model or ""
    names = [name for name in limits if name != ANY_MODEL and model.startswith(name)]
    if names:
        name = max(names, key=len)
        return name, limits[name]
    return model, limits.get(ANY_MODEL, ModelLimits())


class Settings(BaseSettings):
    """The settings of a run. Durations are seconds, or text such as "2h30m"."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        enable_decoding=False,  # a list in a variable is words, not JSON
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,  # it may be a key that was put in a wrong place
    )

    base_url: BaseUrl | None = None
    """Where to send; None: OPENAI_BASE_URL, else OpenAI."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key. The key itself is never an option."""
    model: str | None = Field(default=None, min_length=1)
    """For lines that name none."""
    transport: TransportKind = "native"
    """What sends the requests, under AsyncOpenAI: our own protocols on llhttp, or aiohttp, which takes more CPU."""
    concurrency: int | Literal["auto"] = "auto"
    """Streams at once."""
    rpm: Rate | None = None
    """Requests a minute; None: no limit of ours."""
    tpm: Rate | None = None
    """Tokens a minute, input and reserved output together; None: no limit of ours."""
    reserve_output_tokens: int | None = Field(default=None, ge=0)
    """Reserved under `tpm` for a line that names no maximum; None: what such answers of its model used lately."""
    max_attempts: int = Field(default=5, ge=1, le=100)
    """Tries of one job, the first included. 429s have a bound of their own, ten times as high."""
    first_token_timeout: Duration = 300.0
    """From sending to the first content."""
    idle_timeout: Duration = 60.0
    """Between two deltas; keep-alive comments don't count."""
    total_timeout: Duration = 1800.0
    """One attempt, from sending to its end."""
    stream_options: StreamOptions = "openai"
    """What to ask of a stream: "openai": usage, and no padding of deltas; "usage": usage alone; "none": for servers
    that refuse the field."""
    fail_on: frozenset[str] = frozenset()
    """Finish reasons that count as failure, e.g. length, content_filter, incomplete."""
    strict: bool = False
    """Stop before anything is sent when a line can't be a job."""
    deltas: bool = True
    """Write deltas.jsonl."""
    durability: Literal["batch", "each", "none"] = "batch"
    """When a record counts as finished: fsynced in groups, one by one, or when handed to the system."""
    limit: int | None = Field(default=None, ge=1)
    """Run at most this many jobs, then stop as if the file ended there."""
    deadline: Duration | None = None
    """Stop the run after this long."""
    max_cost: Money | None = None
    """Stop the run when this much has been spent; needs `prices`."""
    max_failures: int | None = Field(default=None, ge=1)
    """Stop the run at this many failed jobs."""
    grace: Duration = 30.0
    """How long jobs in flight may go on after the run was told to stop."""
    progress: Literal["auto", "rich", "plain", "json", "none"] = "auto"
    """The live view, on stderr."""
    echo: bool = False
    """Print tokens to stdout as they arrive."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Of run.log."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Seed of the jitter in backoff; None: a fresh one, which the manifest names."""
    flex_fallback: bool = False
    """Send a job whose service_tier is flex again in the default tier, once flex has no room for it."""
    primer_first: bool = False
    """Of the jobs with one prompt_cache_key send one first, and the rest when its answer begins."""
    endpoints: tuple[EndpointSettings, ...] = ()
    """Several servers or keys to share the jobs among, instead of `base_url` and `api_key_env`."""
    limits: dict[str, ModelLimits] = Field(default_factory=dict)
    """By model name; the longest name that the model asked for begins with counts, "*" is for all others."""
    prices: dict[str, Price] = Field(default_factory=dict)
    """By model name; the longest name that the answer's model begins with counts."""

    @field_validator("concurrency")
    @classmethod
    def _bounded(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 1 <= value <= MAX_CONCURRENCY:
            raise ValueError(f"must be auto or between 1 and {MAX_CONCURRENCY}")
        return value

    def limits_at(self, endpoint: EndpointSettings) -> Mapping[str, ModelLimits]:
        """By model, at one of the endpoints: its own, else the run's."""
        return self.limits if endpoint.limits is None else endpoint.limits

    @field_validator("endpoints")
    @classmethod
    def _named_apart(cls, value: tuple[EndpointSettings, ...]) -> tuple[EndpointSettings, ...]:
        names = [endpoint.name for endpoint in value]
        if len(set(names)) < len(names):
            raise ValueError("two endpoints have the same name")
        return value

    @field_validator("fail_on", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return value.replace(",", " ").split() if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_capitals(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The order of precedence. The constructor's `config_file` names the TOML file; .env files aren't read."""
        assert isinstance(init_settings, InitSettingsSource)
        path = init_settings.init_kwargs.pop("config_file", None)
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=path)


def load(*, flags: Mapping[str, Any], config: str | None = None, env: Mapping[str, str] = os.environ) -> Settings:
    """The settings in force.

    `flags` holds only what the user said. `config` is a name in configs/ or a path of a TOML file.

    Raises:
        UsageError: an unknown key, a bad value, or a file that can't be read; it names the source and the key.
    """
    path = None if config is None else find_config(config)
    _refuse_unknown(env)
    values: dict[str, Any] = {"config_file": path, **flags}
    try:
        return Settings(**values)
    except ValidationError as error:
        raise UsageError(_explain(error, flags, env, path)) from None
    except (OSError, ValueError) as error:  # not TOML, or not readable
        raise UsageError(f"{path}: {error}") from None


def find_config(name: str) -> Path:
    """A path as given, else NAME.toml in ./configs, in the checkout's configs, or in the installed package's."""
    package = Path(__file__).parent
    folders = (Path("configs"), package.parent / "configs", package / "configs")
    candidates = [Path(name)] if name.endswith(".toml") or "/" in name else []
    candidates += [folder / f"{name}.toml" for folder in folders]
    for path in [*candidates, Path(name)]:
        if path.is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("*.toml")})
    raise UsageError(f"--config {name}: no such file, and no such name in configs/ (there are: {', '.join(known)})")


def _refuse_unknown(env: Mapping[str, str]) -> None:
    """pydantic-settings looks up the names it knows; a misspelt one would be silently without effect."""
    for name in env:
        key = name.removeprefix(ENV_PREFIX).lower()
        if name.startswith(ENV_PREFIX) and name not in _FOREIGN_ENV and key not in Settings.model_fields:
            hint = _meant(name, (f"{ENV_PREFIX}{field.upper()}" for field in Settings.model_fields))
            raise UsageError(f"environment variable {name}: there is no such setting{hint}")


def _explain(error: ValidationError, flags: Mapping[str, Any], env: Mapping[str, str], path: Path | None) -> str:
    """The first problem, as one line that names where the value came from."""
    problem = error.errors(include_url=False, include_context=False)[0]
    key = str(problem["loc"][0]) if problem["loc"] else ""
    dotted = ".".join(str(part) for part in problem["loc"])
    variable = f"{ENV_PREFIX}{key.upper()}"
    if key in flags:
        where = f"--{key.replace('_', '-')}"
    elif env.get(variable):
        where = f"environment variable {variable}"
    else:
        where = str(path or "settings")
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key {dotted!r}{_meant(str(problem['loc'][-1]), _FIELDS)}"
    if problem["type"] in ("dict_type", "model_type"):
        return f"{where}: {dotted} must be a table, as in configs/default.toml"
    return f"{where}: {dotted} = {problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}"


_FIELDS: Final = frozenset(
    field for model in (Settings, EndpointSettings, ModelLimits, Price) for field in model.model_fields
)


def _meant(name: str, known: Iterable[str]) -> str:
    """What was probably meant by a misspelt name, for the end of a message."""
    near = get_close_matches(name, sorted(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
