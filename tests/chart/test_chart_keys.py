"""API keys: asked for unless switched off, declared by their digests, and one for `helm test`."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from serinette.credentials import Declared, id_of
from serinette.job import now
from tests.chart.rendering import Manifest, Render, find, of_kind


def secret(objects: tuple[Manifest, ...], name: str, key: str) -> str:
    return base64.b64decode(find(objects, "Secret", name)["data"][key]).decode()


def mounted(objects: tuple[Manifest, ...]) -> dict[str, Any]:
    pod = find(objects, "Deployment", "-gateway").pod or {}
    return {volume["name"]: volume for volume in pod["volumes"]}


def test_the_gateway_knows_the_key_that_the_test_uses(render: Render) -> None:
    objects = render("default")
    key = secret(objects, "-test", "key")
    (credential,) = Declared.model_validate_json(secret(objects, "-keys", "keys.json")).keys
    assert (credential.id, credential.tenant) == (id_of(key), "helm-test")
    assert credential.admits(key, now())
    gateway = find(objects, "Deployment", "-gateway")
    assert gateway.env["SERINETTE_AUTH"] == "true" and "SERINETTE_ALLOW_ANYONE" not in gateway.env
    mount = next(mount for mount in gateway.container["volumeMounts"] if mount["name"] == "keys")
    assert gateway.env["SERINETTE_KEYS_FILE"] == f"{mount['mountPath']}/keys.json" and mount["readOnly"]
    assert mounted(objects)["keys"]["secret"] == {"secretName": find(objects, "Secret", "-keys").name}
    reference = find(objects, "Pod", "-test").env["SERINETTE_API_KEY"]["secretKeyRef"]
    assert reference == {"name": find(objects, "Secret", "-test").name, "key": "key"}


def test_two_installs_have_two_keys(render: Render) -> None:
    first, second = (
        secret(render("default", f'settings.logLevel="{level}"'), "-test", "key") for level in ("INFO", "DEBUG")
    )
    assert first != second


def test_declared_keys_and_tenants_stand_beside_the_tests(render: Render) -> None:
    declared = Declared.model_validate_json(secret(render("monitoring"), "-keys", "keys.json"))
    assert [key.tenant for key in declared.keys] == ["acme", "helm-test"]
    assert declared.tenants["acme"].queued_jobs == 40
    assert declared.tenants["acme"].gpu_seconds_per_day == 7200
    assert declared.tenants["helm-test"].jobs_in_flight is not None


def test_an_existing_secret_replaces_them(render: Render) -> None:
    objects = render("sentinel")
    assert mounted(objects)["keys"]["secret"] == {"secretName": "keys-of-tenants"}
    env = find(objects, "Deployment", "-gateway").env
    assert env["SERINETTE_KEYS_FILE"] == "/etc/serinette/keys/tenants.json"
    assert env["SERINETTE_KEY_IN_PATH"] == "true"
    reference = find(objects, "Pod", "-test").env["SERINETTE_API_KEY"]["secretKeyRef"]
    assert reference == {"name": "key-of-the-test", "key": "api-key"}
    assert not [item.name for item in of_kind(objects, "Secret") if item.name.endswith(("-keys", "-test"))]


def test_plain_manifests_declare_nothing_and_still_ask_for_keys(render: Render) -> None:
    objects = render("k8s")
    env = find(objects, "Deployment", "-gateway").env
    assert env["SERINETTE_AUTH"] == "true" and "SERINETTE_KEYS_FILE" not in env
    assert "keys" not in mounted(objects)


@pytest.mark.parametrize("setting", ["auth.enabled=false"])
def test_switched_off_it_is_said_that_anyone_may_come(render: Render, setting: str) -> None:
    objects = render("default", setting)
    env = find(objects, "Deployment", "-gateway").env
    assert env["SERINETTE_ALLOW_ANYONE"] == "true" and "SERINETTE_AUTH" not in env
    assert "SERINETTE_API_KEY" not in find(objects, "Pod", "-test").env
    assert {item.name for item in of_kind(objects, "Secret")} == {"serinette-valkey", "serinette-seaweedfs"}
