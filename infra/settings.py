"""What the operator decides, from flags, `CONVO_*` variables and an optional `convo.toml`, in that
order of precedence; and where each value came from."""

from __future__ import annotations

import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic import model_validator as validates_together
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

PREFIX = "CONVO_"
TOML = Path("convo.toml")
"""Looked for in the working directory."""

Source = Literal["default", "environment", "convo.toml", "flag"]

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", re.ASCII)


class SettingsError(Exception):
    """A setting that cannot be used. The message has one line per setting and says where it was."""


def parse_duration(value: object) -> timedelta:
    """Reads "24h", "90s", "1h30m", "7d", or a bare number of seconds. `ValueError` when it is
    anything else, or not above zero."""
    duration = value if isinstance(value, timedelta) else None
    text = str(value).strip().lower()
    if duration is None and (found := _DURATION.fullmatch(text)):
        days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
        duration = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if duration is None or duration <= timedelta(0):
        msg = "write a duration above zero, such as 24h, 30m, 90s or 7d"
        raise ValueError(msg)
    return duration


def _existing_file(path: Path) -> Path:
    if not path.expanduser().is_file():
        msg = f"there is no file {path}"
        raise ValueError(msg)
    return path.expanduser()


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]


class InForce(NamedTuple):
    """One setting as it holds now; `value` is ready to be shown (no password in it)."""

    name: str
    value: str
    source: Source


class Settings(BaseSettings):
    """The settings in force. Keyword arguments are flags; a flag of None counts as not given.

    `SettingsError` when a value cannot be used, or when convo.toml cannot be read or holds a name
    that is no setting.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    nats_url: str | None = None
    nats_creds: Path | None = None
    nats_tls_ca: Path | None = None
    nats_tls_cert: Path | None = None
    nats_tls_key: Path | None = None
    data_dir: Path = Path("data")
    port: int = Field(default=4222, ge=0, le=65_535)
    """Of the embedded server, on loopback; 0 takes a free one."""
    sync: Literal["always"] | Duration = "always"
    """Of the embedded server: fsync before every acknowledgement, or only every so often."""
    staging: Literal["memory", "disk"] = "memory"
    """Where the embedded server keeps a batch until it is in its stream (`infra.staging`)."""
    replicas: int = Field(default=1, ge=1, le=5)
    partitions: int = Field(default=1, ge=1, le=256)
    window_size: int = Field(default=50, ge=1, le=1_000)
    max_content_bytes: ByteSize = Field(default=ByteSize(262_144), ge=1, le=900_000)
    messages_per_minute: int | None = Field(default=None, ge=1, le=1_000)
    inactive_after: Duration = timedelta(hours=24)
    reply_silence: Duration = timedelta(seconds=60)
    """The sweeper ends a reply that has not grown for so long."""
    checkpoint_events: int = Field(default=1_000, ge=1, le=1_000_000)
    """The notary signs a checkpoint with every so many events …"""
    checkpoint_every: Duration = timedelta(seconds=60)
    """… and, where any have come, after so long."""
    cache_bytes: ByteSize = Field(default=ByteSize(128 * 1024 * 1024), ge=0)
    analytics_memory: ByteSize = Field(default=ByteSize(1024 * 1024 * 1024), ge=64 * 1024 * 1024)
    """What DuckDB may take for the tables and all queries together."""
    quack_port: int | None = Field(default=None, ge=1, le=65_535)
    """Where any DuckDB client may attach the tables, to read; not served when unset."""
    quack_host: str = "127.0.0.1"
    quack_token: SecretStr | None = Field(default=None, min_length=8)
    model_url: str | None = None
    """Of an OpenAI-compatible API (up to and with /v1); without it the responder echoes."""
    model: str | None = None
    """Asked for where a conversation names none."""
    model_key: SecretStr | None = None
    model_messages: int = Field(default=20, ge=1, le=1_000)
    """How many of the last messages the model is told."""
    model_timeout: Duration = timedelta(seconds=45)
    """The responder ends an answer of which the model has said nothing for so long."""
    gateway_port: int = Field(default=8080, ge=0, le=65_535)
    """Of HTTP and WebSockets; 0 takes a free one."""
    gateway_host: str = "127.0.0.1"
    auth: Literal["none", "keys", "jwt"] = "none"
    """Who may ask the gateway: everybody on this machine, holders of a key, or of a token."""
    origins: str = ""
    """Further origins (scheme://host:port, with commas) whose pages may use the gateway."""
    keys_file: Path | None = None
    """Of the API keys; `keys.json` in the data directory when unset."""
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_jwks_url: str | None = None
    jwt_secret: SecretStr | None = Field(default=None, min_length=32)
    """The issuer's public keys, or the secret that it shares with us: one of the two."""
    jwt_tenant_claim: str = "tenant_id"
    jwt_user_claim: str = "sub"
    jwt_scope_claim: str | None = None
    """Holds what the token is good for (read, write, delete); everything when unset."""
    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    """That one key, or one user's tokens, may make; a key may have a figure of its own."""
    log: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    _sources: dict[str, Source] = PrivateAttr(default_factory=dict)

    def __init__(self, **flags: Any) -> None:
        given = {name: value for name, value in flags.items() if value is not None}
        from_file = _read_toml(TOML)
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise SettingsError(_explain(error, given, from_file)) from None
        environment = EnvSettingsSource(type(self))()
        self._sources = {
            name: _source(name, given, environment, from_file) for name in type(self).model_fields
        }

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, InitSettingsSource(settings_cls, _read_toml(TOML))

    @property
    def sources(self) -> dict[str, Source]:
        """Where each field's value came from, by field name."""
        return dict(self._sources)

    def in_force(self) -> list[InForce]:
        """Every setting with its value and source, in the order of this class."""
        return [
            InForce(name, _shown(getattr(self, name)), self._sources[name])
            for name in type(self).model_fields
        ]

    def environment(self) -> dict[str, str]:
        """The variables that give a child process these settings, whatever they came from here."""
        return {
            variable(name): _written(getattr(self, name))
            for name, source in self._sources.items()
            if source != "default"
        }

    @property
    def allowed_origins(self) -> frozenset[str]:
        """`origins`, one by one, as browsers write them."""
        listed = (each.strip().rstrip("/").lower() for each in self.origins.split(","))
        return frozenset(filter(None, listed))

    @property
    def api_keys(self) -> Path:
        """The file of the API keys."""
        return self.keys_file or self.data_dir / "keys.json"

    @field_validator("origins")
    @classmethod
    def _origins_are_usable(cls, origins: str) -> str:
        for each in filter(None, (part.strip() for part in origins.split(","))):
            parts = urlsplit(each)
            if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path.strip("/"):
                msg = "write each as http://HOST:PORT or https://HOST, several with commas"
                raise ValueError(msg)
        return origins

    @field_validator("nats_url")
    @classmethod
    def _url_is_usable(cls, url: str | None) -> str | None:
        for each in (url or "").split(",") if url else ():
            parts = urlsplit(each.strip())
            if parts.scheme not in {"nats", "tls", "ws", "wss"} or not parts.hostname:
                msg = "write it as nats://HOST:PORT (or tls://, ws://, wss://; several with commas)"
                raise ValueError(msg)
        return url

    @field_validator("model_url")
    @classmethod
    def _model_url_is_usable(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "")
        if url is not None and (parts.scheme not in {"http", "https"} or not parts.hostname):
            msg = "write it as http://HOST:PORT/v1 or https://HOST/v1"
            raise ValueError(msg)
        return url

    @field_validator("nats_creds", "nats_tls_ca", "nats_tls_cert", "nats_tls_key")
    @classmethod
    def _file_is_there(cls, path: Path | None) -> Path | None:
        return path and _existing_file(path)

    @field_validator("data_dir")
    @classmethod
    def _home_is_known(cls, path: Path) -> Path:
        return path.expanduser()

    @field_validator("log", "log_level", mode="before")
    @classmethod
    def _any_case(cls, word: object) -> object:
        return word.lower() if isinstance(word, str) else word

    @validates_together(mode="after")
    def _pairs_are_whole(self) -> Settings:
        if (self.nats_tls_cert is None) != (self.nats_tls_key is None):
            msg = "nats_tls_cert and nats_tls_key go together: set both or neither"
            raise ValueError(msg)
        if self.quack_port is not None and self.quack_token is None:
            msg = "quack_port needs quack_token, which every client has to know: set it too"
            raise ValueError(msg)
        if (self.model_url is None) != (self.model is None):
            msg = "model_url and model go together: set both, or neither for the echo"
            raise ValueError(msg)
        if self.auth == "jwt":
            self._tokens_can_be_checked()
        return self

    def _tokens_can_be_checked(self) -> None:
        if self.jwt_issuer is None or self.jwt_audience is None:
            msg = "auth=jwt needs jwt_issuer and jwt_audience: tokens of others must not pass"
            raise ValueError(msg)
        if (self.jwt_jwks_url is None) == (self.jwt_secret is None):
            msg = "auth=jwt needs jwt_jwks_url or jwt_secret, one of the two"
            raise ValueError(msg)


def variable(name: str) -> str:
    """The environment variable of a field: `nats_url` is CONVO_NATS_URL."""
    return PREFIX + name.upper()


def without_password(url: str) -> str:
    """The same URL (or URLs, with commas) fit to be shown: user, password and token are hidden."""
    return re.sub(r"//[^@/,]*@", "//***@", url)


def _read_toml(path: Path) -> dict[str, Any]:
    """The file's settings by field name; CONVO_PORT is taken for port. Empty without a file."""
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        msg = f"{path} cannot be read: {error}"
        raise SettingsError(msg) from None
    return {name.lower().removeprefix(PREFIX.lower()): value for name, value in content.items()}


def _source(
    name: str, flags: dict[str, Any], environment: dict[str, Any], from_file: dict[str, Any]
) -> Source:
    if name in flags:
        return "flag"
    if name in environment:
        return "environment"
    return "convo.toml" if name in from_file else "default"


def _explain(error: ValidationError, flags: dict[str, Any], from_file: dict[str, Any]) -> str:
    """One line per setting that was refused, naming it as the operator wrote it."""
    environment = EnvSettingsSource(Settings)()
    lines: dict[str, str] = {}
    for each in error.errors(include_url=False):
        problem = each["msg"].removeprefix("Value error, ")
        if not each["loc"]:
            lines[""] = problem
            continue
        name = str(each["loc"][0])
        if each["type"] == "extra_forbidden":
            known = ", ".join(Settings.model_fields)
            lines[name] = f"{name} (in {TOML}) is no setting; the settings are {known}"
            continue
        place = {
            "flag": f"--{name.replace('_', '-')}",
            "environment": variable(name),
            "convo.toml": f"{name} (in {TOML})",
            "default": name,
        }[_source(name, flags, environment, from_file)]
        value = {**from_file, **environment, **flags}.get(name)
        lines.setdefault(name, f"{place} = {without_password(str(value))}: {problem}")
    return "\n".join(lines.values())


def _written(value: object) -> str:
    """The value as a variable would hold it."""
    if isinstance(value, timedelta):
        return f"{value.total_seconds()}s"
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value.absolute() if isinstance(value, Path) else value)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, timedelta):
        return f"{value.total_seconds():g}s"
    return without_password(str(value))
