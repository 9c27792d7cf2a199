"""Settings shared by gateway, controller and worker, and their Redis clients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import hiredis
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError
from redis import Redis, SSLConnection
from redis import asyncio as redis_asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff
from redis.connection import Connection, parse_url
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, RedisError
from redis.retry import Retry

from serinette.container import AllowedImage, Ceilings, Image
from serinette.credentials import TenantName
from serinette.errors import ConfigurationError
from serinette.names import Keys, Lane
from serinette.sentinels import Sentinels
from serinette.spec import PublishedName


class SharedSettings(BaseSettings):
    """Where the queue and the store are. Read from the environment, once, in `main()`."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="SERINETTE_", extra="ignore", populate_by_name=True)

    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="redis://, rediss:// or unix:// URL of Valkey or Redis >= 7.2.",
    )
    redis_username: str | None = Field(None, description="User, where the URL names none.")
    redis_password: SecretStr | None = Field(
        None, description="Password, where the URL has none. Any characters: in a URL some must be escaped."
    )
    redis_sentinels: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.-]+:[0-9]{1,5}(,[A-Za-z0-9_.-]+:[0-9]{1,5})*$",
        description="Sentinels that know where the primary is, host:port with commas between. Of the URL only scheme, "
        "database, credentials and options are then used.",
    )
    redis_primary: str = Field("mymaster", min_length=1, description="Name under which sentinels know the primary.")
    redis_sentinel_username: str | None = Field(None, description="User of the sentinels themselves.")
    redis_sentinel_password: SecretStr | None = Field(None, description="Password of the sentinels themselves.")
    redis_prefix: str = Field(
        "rq",
        validation_alias="RQ_KEY_PREFIX",
        pattern=r"^[A-Za-z0-9_.-]{1,40}$",
        description="First part of every Redis key, RQ's too. Give each release on one Redis its own.",
    )
    redis_timeout_s: float = Field(5.0, gt=0, le=60, description="Longest wait for one answer of Redis.")
    store_url: str = Field(
        default_factory=lambda: Path("serinette-data/store").absolute().as_uri(),
        description="file:///dir (# ? % in it as %23 %3F %25), s3://bucket/prefix, gs://bucket/prefix or "
        "az://container/prefix. When left out: `serinette-data/store` below the directory the process starts in.",
    )
    store_endpoint: str | None = Field(
        None, description="Endpoint of an S3-compatible store, e.g. http://seaweedfs:8333."
    )
    store_public_endpoint: str | None = Field(
        None, description="Endpoint that clients reach; presigned redirects are made for it. None: the gateway proxies."
    )
    heartbeat_s: float = Field(5.0, gt=0, le=30, description="Pause between two heartbeats of a slot that holds a job.")
    heartbeat_ttl_s: int = Field(
        20, ge=2, le=300, description="A slot without a heartbeat for this long loses its job. At least 3 heartbeats."
    )
    loras: dict[PublishedName, str] = Field(
        default_factory=dict,
        description="LoRAs that jobs may ask for (JSON): each one's name, and its directory or object-store URL. "
        "Gateway and workers need the same.",
    )
    retention_s: int = Field(7 * 86_400, ge=60, description="How long ended jobs, their songs and uploads are kept.")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least severe log line written.")
    log_format: Literal["text", "json"] = Field(
        "text", description="Log lines for people (text) or, in containers, for a log store (json: an object a line)."
    )
    metrics_host: str = Field("127.0.0.1", description="Address of `metrics_port`; 0.0.0.0 in a container.")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="Port of this process's /metrics. None: off, but for a gateway bound to loopback, which has it on "
        "its own port.",
    )
    otlp_endpoint: str | None = Field(
        None,
        validation_alias=AliasChoices("SERINETTE_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        pattern=r"^https?://",
        description="Where traces go by OTLP over HTTP, e.g. http://otel-collector:4318. None: no traces, at no cost.",
    )
    otlp_sample_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of requests traced; for a request with a traceparent its sender has decided.",
    )

    @field_validator("redis_url")
    @classmethod
    def _redis_can_be_found(cls, url: SecretStr) -> SecretStr:
        try:
            options = parse_url(url.get_secret_value())  # type: ignore[no-untyped-call]  # redis-py's
        except ValueError:  # not chained, because it contains the URL with its password
            raise ValueError(
                "must be a redis://, rediss:// or unix:// URL, its password's special letters escaped"
            ) from None
        try:
            options.pop("connection_class", Connection)(**options)  # connects to nothing yet
        except (TypeError, ValueError, RedisError) as error:  # its words are of the options, which are no secrets
            raise ValueError(f"has options that are not of its kind ({error}); ssl_... are for rediss://") from None
        return url

    @model_validator(mode="after")
    def _ttl_spans_three_heartbeats(self) -> Self:
        if self.heartbeat_ttl_s < 3 * self.heartbeat_s:
            raise ValueError(
                f"SERINETTE_HEARTBEAT_TTL_S: must be at least 3 * SERINETTE_HEARTBEAT_S ({3 * self.heartbeat_s:g})"
            )
        return self

    @property
    def keys(self) -> Keys:
        """Names of our Redis keys."""
        return Keys(self.redis_prefix)


_NAME = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
ObjectName = Annotated[str, StringConstraints(pattern=rf"^{_NAME}$")]
# As in Kubernetes: a key with an optional domain, a value of at most 63 characters.
LabelKey = Annotated[str, StringConstraints(pattern=rf"^({_NAME}/)?[A-Za-z0-9]([A-Za-z0-9._-]{{0,61}}[A-Za-z0-9])?$")]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$")]


class SecretKey(BaseModel):
    """One key of a Kubernetes Secret in the containers' namespace."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret: ObjectName
    key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,253}$")]


class Machines(BaseModel):
    """Nodes that containers of a pool run on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node_selector: dict[LabelKey, LabelValue] = {}
    tolerations: tuple[dict[str, Any], ...] = ()
    gpu_resource: str = Field("nvidia.com/gpu", pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")
    runtime_class: ObjectName | None = None


class ContainerSettings(SharedSettings):
    """Of containers as jobs, for gateway and controller."""

    containers: bool = Field(False, description="Take containers as jobs (POST /v1/containers). Needs a cluster.")
    containers_images: tuple[AllowedImage, ...] = Field(
        (),
        description="Images that may run (JSON): a registry, `registry/path/` for all below it, a repository, or one "
        "with its tag or digest. None by default.",
    )
    containers_writable_images: tuple[AllowedImage, ...] = Field(
        (), description="Those of them that may request a writable root file system (JSON)."
    )
    containers_secrets: dict[PublishedName, SecretKey] = Field(
        {}, description='What containers may name under `secrets` (JSON): `{"hub": {"secret": "hub", "key": "token"}}`.'
    )
    containers_machines: dict[PublishedName, Machines] = Field(
        {}, description="What containers may name as their `pool` (JSON); `default` is where the others run."
    )
    containers_ceilings: Ceilings = Field(Ceilings(), description="Most resources of one container (JSON).")
    containers_tenants: dict[TenantName, Ceilings] = Field({}, description="The same for single tenants (JSON).")
    containers_max_gpus: int = Field(0, ge=0, description="GPUs that all containers together may hold at once.")
    containers_max_jobs: int = Field(50, ge=1, description="Containers that may run at once.")
    containers_namespace: ObjectName | None = Field(None, description="Kubernetes namespace that containers run in.")
    containers_instance: LabelValue = Field(
        "serinette",
        min_length=1,
        description="Label `app.kubernetes.io/instance` of its Jobs: one for each deployment in a namespace.",
    )
    containers_service_account: ObjectName | None = Field(
        None,
        description="Service account of their pods, in that namespace; its token is not mounted. Its image pull "
        "secrets are used, and Jobs are deleted with it. None: the namespace's `default`, and Jobs stay.",
    )
    containers_steps_image: Image | None = Field(
        None, description="Image of the steps that fetch inputs and upload outputs: the gateway's."
    )
    containers_store_endpoint: str | None = Field(
        None, description="Endpoint of the store as the containers' pods reach it. None: `store_endpoint`."
    )
    containers_labels: dict[LabelKey, LabelValue] = Field(
        {}, description="Labels of every container's Job and pod (JSON), for example Kueue's queue."
    )
    containers_priority_classes: dict[Lane, ObjectName] = Field({}, description="Priority class of each lane (JSON).")
    containers_start_s: int = Field(900, ge=30, description="How long a pod may wait for a node and its image.")
    containers_grace_s: int = Field(
        120, ge=10, le=3600, description="Time for a container to end and its outputs to be uploaded."
    )
    containers_log_bytes: int = Field(
        4 * 1024 * 1024,
        ge=1024,
        le=64 * 1024 * 1024,
        description="Longest log kept; in Redis while the container runs.",
    )
    containers_output_files: int = Field(64, ge=1, le=150, description="Most files one container may leave.")
    containers_output_bytes: int = Field(10 * 1024**3, ge=1024, description="Most bytes one container may leave.")

    @model_validator(mode="after")
    def _complete_if_enabled(self) -> Self:
        wanted = {
            "containers_namespace": self.containers_namespace,
            "containers_steps_image": self.containers_steps_image,
        }
        missing = [name for name, value in wanted.items() if value is None]
        if self.containers and missing:
            raise ValueError(f"SERINETTE_{missing[0].upper()}: must be set where SERINETTE_CONTAINERS is true")
        return self

    def ceilings_of(self, tenant: str) -> Ceilings:
        """Most resources of one container of a tenant."""
        return self.containers_tenants.get(tenant, self.containers_ceilings)


Settings = TypeVar("Settings", bound=SharedSettings)


def read(settings: type[Settings], **given: object) -> Settings:
    """Settings of this process from its environment; `given` overrides it.

    Raises:
        ConfigurationError: some are wrong; the message names their variables, and no secret.
    """
    try:
        return settings(**given)  # type: ignore[arg-type]  # validated; pydantic-settings' own options are typed
    except ValidationError as error:
        message = "; ".join(_message_of(settings, dict(each)) for each in error.errors())
        raise ConfigurationError(message) from None  # not chained, because it may contain secrets
    except SettingsError as error:
        raise ConfigurationError(str(error)) from error


def variable(name: str, field: FieldInfo) -> str:
    """The environment variable that a field of a settings class is read from."""
    return field.validation_alias if isinstance(field.validation_alias, str) else f"SERINETTE_{name.upper()}"


def _message_of(settings: type[SharedSettings], error: dict[str, Any]) -> str:
    what = error["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
    if not error["loc"]:  # two settings contradict each other; the message names them
        return str(what)
    by_place = {
        place: (name, field) for name, field in settings.model_fields.items() for place in (name, variable(name, field))
    }
    name, field = by_place[error["loc"][0]]
    secret = SecretStr in (field.annotation, *get_args(field.annotation))
    return f"{variable(name, field)}: {what}" + ("" if secret else f"; got {str(error['input'])[:100]!r}")


# Timeouts are not retried: redis-py retries both the command and its connection, which would multiply the wait.
_RETRIED = (RedisConnectionError,)
_ASYNC_CONNECTIONS = 16
# Commands below this fit into a socket's buffer and are written at once.
_SMALL_BYTES = 32_768
_BACKOFF = ExponentialBackoff(cap=0.5, base=0.05)


def connect_redis(settings: SharedSettings) -> Redis:
    """A blocking client: short timeouts, two quick retries of a lost connection, responses as bytes, which RQ needs."""
    options = {**_timeouts(settings), "retry": Retry(_BACKOFF, 2, _RETRIED)}
    if sentinels := _sentinels(settings):
        return sentinels.client(**_of_primary(settings), **options)
    return Redis.from_url(settings.redis_url.get_secret_value(), **_credentials(settings), **options)


class BriskConnection:
    """An asyncio connection that packs commands in C, as redis-py's blocking one does, and writes small ones without
    `asyncio.wait_for`, which makes a task for each command and took a quarter of a poll.
    """

    _writer: Any
    is_connected: bool

    def pack_command(self, *args: Any) -> list[bytes]:  # noqa: ANN401  # redis-py's own signature
        """Encode a command."""
        try:
            return [hiredis.pack_command((*args[0].split(), *args[1:]))]
        except TypeError as error:
            raise DataError(f"an argument of {args[0]} cannot be sent: {error}") from error

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: ANN401  # likewise
        """Write a command; a large one, or one behind unsent data, is written by redis-py."""
        small = isinstance(command, list) and sum(map(len, command)) < _SMALL_BYTES
        if not small or not self.is_connected or self._writer.transport.get_write_buffer_size():
            await super().send_packed_command(command, check_health)  # type: ignore[misc]  # mixed in
            return
        if check_health:
            await self.check_health()  # type: ignore[attr-defined]  # likewise
        try:
            self._writer.writelines(command)
            await self._writer.drain()
        except OSError as error:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]  # likewise
            raise RedisConnectionError(f"writing to the server failed: {error}") from error


class _BriskTcp(BriskConnection, redis_asyncio.Connection): ...


class _BriskTls(BriskConnection, redis_asyncio.SSLConnection): ...


class _BriskUnix(BriskConnection, redis_asyncio.UnixDomainSocketConnection): ...


_BRISK = {"unix": _BriskUnix, "rediss": _BriskTls}


def connect_redis_async(settings: SharedSettings, connections: int = _ASYNC_CONNECTIONS) -> redis_asyncio.Redis:
    """An asyncio client with decoded responses. Callers wait for a connection when all are in use."""
    options = {
        **_timeouts(settings),
        "max_connections": connections,
        "timeout": settings.redis_timeout_s,
        "retry": AsyncRetry(_BACKOFF, 2, _RETRIED),
        "decode_responses": True,
    }
    if sentinels := _sentinels(settings):
        return sentinels.client_async(**_of_primary(settings), **options)
    url = settings.redis_url.get_secret_value()
    pool = redis_asyncio.BlockingConnectionPool.from_url(url, **_credentials(settings), **options)
    pool.connection_class = _BRISK.get(url.partition(":")[0], _BriskTcp)
    return redis_asyncio.Redis.from_pool(pool)


def _timeouts(settings: SharedSettings) -> dict[str, Any]:
    wait_s = settings.redis_timeout_s
    return {"socket_timeout": wait_s, "socket_connect_timeout": wait_s, "health_check_interval": 30}


def _credentials(settings: SharedSettings) -> dict[str, Any]:
    """Credentials for redis-py; those in the URL override them."""
    password = settings.redis_password.get_secret_value() if settings.redis_password else None
    return {"username": settings.redis_username, "password": password}


def _of_primary(settings: SharedSettings) -> dict[str, Any]:
    """Options in the URL without the address, which the sentinels report."""
    options: dict[str, Any] = parse_url(settings.redis_url.get_secret_value())  # type: ignore[no-untyped-call]  # redis-py's
    where = ("host", "port", "path", "connection_class")
    tls = {"ssl": True} if options.get("connection_class") is SSLConnection else {}
    return {**_credentials(settings), **tls, **{name: value for name, value in options.items() if name not in where}}


def _sentinels(settings: SharedSettings) -> Sentinels | None:
    """Sentinels use TLS if the primary does, as KEDA assumes, too; they have their own credentials."""
    if settings.redis_sentinels is None:
        return None
    pairs = (address.rpartition(":") for address in settings.redis_sentinels.split(","))
    tls = {name: value for name, value in _of_primary(settings).items() if name.startswith("ssl")}
    password = settings.redis_sentinel_password.get_secret_value() if settings.redis_sentinel_password else None
    options = {**_timeouts(settings), **tls, "username": settings.redis_sentinel_username, "password": password}
    return Sentinels([(host, int(port)) for host, _, port in pairs], settings.redis_primary, options)
