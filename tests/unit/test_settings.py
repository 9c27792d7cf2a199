"""Wrong settings are written by the variable that holds them, and secrets not at all."""

from __future__ import annotations

import sys

import pytest

import api.__main__
import controller.__main__
import gpu_worker.__main__
import gpu_worker.engine.__main__
import gpu_worker.slot.__main__
from api.settings import GatewaySettings
from gpu_worker.process_setup import CONFIGURATION_EXIT_CODE
from gpu_worker.settings import WorkerSettings
from serinette.errors import ConfigurationError
from serinette.names import unknown_variables
from serinette.settings import SharedSettings, read


@pytest.mark.parametrize(
    ("settings", "environment", "message"),
    [
        (WorkerSettings, {"SERINETTE_SLOTS": "-1"}, "SERINETTE_SLOTS: must be greater than or equal to 0; got '-1'"),
        (WorkerSettings, {"SERINETTE_DTYPE": "int4"}, "SERINETTE_DTYPE: must be 'auto', 'float32', 'bfloat16' or "),
        (SharedSettings, {"RQ_KEY_PREFIX": "a b"}, "RQ_KEY_PREFIX: String should match pattern"),
        (SharedSettings, {"SERINETTE_HEARTBEAT_S": "10"}, "SERINETTE_HEARTBEAT_TTL_S: must be at least 3 * "),
        (GatewaySettings, {"SERINETTE_CORS_ORIGINS": "[https://a"}, "SERINETTE_CORS_ORIGINS: must be like "),
        (GatewaySettings, {"SERINETTE_CORS_ORIGINS": "https://a/path"}, "SERINETTE_CORS_ORIGINS: "),
        (GatewaySettings, {"SERINETTE_CORS_ORIGINS": "a"}, "SERINETTE_CORS_ORIGINS: "),
        (GatewaySettings, {"SERINETTE_CORS_ORIGINS": "null"}, "null lets any page of the web call"),
        (GatewaySettings, {"SERINETTE_CORS_ORIGINS": "https://a,*"}, "lets any page of the web call"),
        (GatewaySettings, {"SERINETTE_PORT": "x", "SERINETTE_PRESIGN_S": "y"}, "; SERINETTE_PRESIGN_S: must be a "),
    ],
)
def test_a_wrong_setting_is_named(
    settings: type[SharedSettings], environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        read(settings)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("url", ["http://:hush@queue", "redis://:hu/sh@queue:6379", "redis://queue:hush"])
def test_a_wrong_url_of_redis_is_named_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="SERINETTE_REDIS_URL: must be a redis://") as caught:
        read(SharedSettings, redis_url=url)
    assert "hu" not in caught.value.message
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)


@pytest.mark.parametrize(
    ("value", "origins"),
    [
        ("", ()),
        ("https://a.example", ("https://a.example",)),
        ("https://a.example, https://b.example,", ("https://a.example", "https://b.example")),
        ('["https://a.example", "*"]', ("https://a.example", "*")),
    ],
)
def test_origins_are_a_list_in_either_way(
    value: str, origins: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERINETTE_CORS_ORIGINS", value)
    monkeypatch.setenv("SERINETTE_AUTH", "true")
    assert read(GatewaySettings).cors_origins == origins


@pytest.mark.parametrize(
    ("process", "status"),
    [
        (api.__main__, 2),
        (controller.__main__, 2),
        (gpu_worker.__main__, CONFIGURATION_EXIT_CODE),
        (gpu_worker.engine.__main__, CONFIGURATION_EXIT_CODE),
        (gpu_worker.slot.__main__, CONFIGURATION_EXIT_CODE),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_every_process_reports_it_in_one_line(
    process: object, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SERINETTE_RETENTION_S", "soon")
    monkeypatch.setattr(sys, "argv", ["process"])
    # The controller takes signals before anything else.
    monkeypatch.setattr("signal.signal", lambda *_: None)
    main = process.main  # type: ignore[attr-defined]  # a module
    assert main() == status
    written = capsys.readouterr().err
    assert written.startswith("SERINETTE_RETENTION_S: must be a valid integer")
    assert written.count("\n") == 1


def test_a_variable_that_is_no_setting_is_named_with_what_was_meant() -> None:
    kubernetes = {
        "SERINETTE_SERVICE_HOST": "10.0.0.1",
        "SERINETTE_GATEWAY_PORT": "tcp://10.0.0.1:8019",
        "SERINETTE_GATEWAY_PORT_8019_TCP_ADDR": "10.0.0.1",
        "SERINETTE_VALKEY_SERVICE_PORT_REDIS": "6379",
    }
    assert unknown_variables({"SERINETTE_SLOTS": "1", "SERINETTE_URL": "", "PATH": "", **kubernetes}) == []
    (port, slots, other) = unknown_variables(
        {"SERINETTE_METRIC_PORT": "9100", "SERINETTE_SLOTZ": "3", "SERINETTE_XYZZY": ""}
    )
    assert port == "SERINETTE_METRIC_PORT is no setting, and has no effect; did you mean SERINETTE_METRICS_PORT?"
    assert slots == "SERINETTE_SLOTZ is no setting, and has no effect; did you mean SERINETTE_SLOTS?"
    assert other == "SERINETTE_XYZZY is no setting, and has no effect"
