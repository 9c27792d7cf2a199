"""What the chart refuses, with its messages; `make chart` checks what the schema alone refuses."""

from __future__ import annotations

import pytest

from scripts.chart_tools import CommandFailed
from tests.chart.rendering import Render

POOL = '{"name": "default"}'


@pytest.mark.parametrize(
    ("values", "setting", "words"),
    [
        ("default", 'global.imageRegistry=""', "make release REGISTRY=registry.example.com/you"),
        ("external", 'redis.topology="cluster"', "Redis Cluster spreads keys over nodes"),
        ("default", 'redis.topology="sentinel"', "set valkey.enabled=false"),
        ("sentinel", "redis.sentinel.addresses=[]", "name the sentinels in redis.sentinel.addresses"),
        ("sentinel", 'redis.host="redis.example.com"', "leave redis.host empty"),
        ("sentinel", 'redis.topology="standalone"', "redis.topology is not sentinel"),
        ("sentinel", 'test.existingSecret=""', "Put one of its keys into a Secret"),
        ("monitoring", 'auth.existingSecret="keys"', "leave auth.keys and auth.tenants empty"),
        ("monitoring", "metrics.enabled=false", "there are no metrics without metrics.enabled=true"),
        ("monitoring", "metrics.port=8019", "the gateway itself listens on 8019"),
        ("monitoring", 'webhooks.existingSecret=""', "there are no webhooks without webhooks.existingSecret"),
        ("default", 'redis.host="redis.example.com"', "set valkey.enabled=false"),
        ("default", "valkey.enabled=false", "There is no Redis"),
        ("default", "redis.tls.enabled=true", "are for your own Redis"),
        ("external", "redis.tls.enabled=false", "enable TLS"),
        ("default", 'store.url="s3://songs"', "set seaweedfs.enabled=false"),
        ("default", "seaweedfs.enabled=false", "There is no store"),
        ("default", 'store.publicEndpoint="https://songs.example.com"', "go through the gateway"),
        ("default", f"pools=[{POOL}, {POOL}]", "two have the name default"),
        ("default", 'pools=[{"name": "containers"}]', "the name containers is reserved"),
        ("default", 'pools=[{"name": "default", "min": 3}]', "min 3 is above max 2"),
        ("default", 'gateway.defaultPool="turbo"', "is none of the pools (default)"),
        ("default", "gateway.jobTimeoutS=7200", "Raise terminationGraceS to 7260"),
        (
            "default",
            'pools=[{"name": "default", "terminationGraceS": 600}]',
            "has 540 of its terminationGraceS=600 left",
        ),
        ("default", "poolDefaults.gpu.count=1", "gpu.resource and gpu.count go together"),
        ("default", 'poolDefaults.gpu.resource="nvidia.com/gpu"', "gpu.resource and gpu.count go together"),
        ("default", 'poolDefaults.cache.type="hostPath"', "needs cache.path"),
        ("default", 'poolDefaults.cache={"type": "image", "image": "a/b:1"}', "set model to /models"),
        ("default", "gateway.httpRoute.enabled=true", "name the Gateway that the route attaches to"),
        ("edge", 'gateway.ingress.path="/other"', "Make them equal"),
        ("external", 'gateway.ingress.path="/v1"', "begins as the gateway's own paths do"),
        ("external", 'gateway.ingress.path="/studio/"', "begins as the gateway's own paths do"),
        ("edge", 'gateway.service.type="ClusterIP"', "set gateway.service.type"),
        ("default", "gateway.service.nodePort=30819", "set gateway.service.type"),
        ("default", 'gateway.service.externalTrafficPolicy="Local"', "set gateway.service.type"),
        ("default", 'fullnameOverride="Songs"', "fullnameOverride"),
        ("default", 'commonLabels={"app.kubernetes.io/name": "songs"}', "commonLabels"),
        ("edge", 'seaweedfs.persistence.existingClaim="claim-of-valkey"', "each needs a volume of its own"),
        ("edge", "gateway.resources=null", "which is not set"),
        ("edge", "gateway.autoscaling.min=12", "min 12 is above max 11"),
        ("edge", 'gateway.resources.requests={"cpu": null}', "which is not set"),
        ("edge", 'valkey.persistence.storageClass="fast"', "leave storageClass and volumeName empty"),
        ("edge", "seaweedfs.persistence.enabled=false", "seaweedfs.persistence.existingClaim names a claim"),
        ("containers", "containers.images=[]", "list what may run"),
        ("containers", "containers.network.storeTo=[]", "Give its address"),
        ("containers", "containers.priorityClasses.values.high=1", "lane high has both"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_do(render: Render, values: str, setting: str, words: str) -> None:
    with pytest.raises(CommandFailed) as refusal:
        render(values, setting)
    assert words in str(refusal.value)


def test_a_name_that_a_label_cannot_hold_is_refused(render: Render) -> None:
    """Cut short, two pools could have one name."""
    long = f'fullnameOverride="{"a" * 40}"'
    render("default", long, 'pools=[{"name": "default"}, {"name": "fifteen-letters"}]')
    with pytest.raises(CommandFailed, match="more than 63 characters"):
        render("default", long, 'pools=[{"name": "default"}, {"name": "sixteen-letters1"}]')


def test_a_cluster_without_keda_is_refused(render: Render) -> None:
    with pytest.raises(CommandFailed, match=r"KEDA is not in this cluster.*keda\.enabled=false"):
        render("default", keda=False)


def test_a_job_longer_than_the_grace_is_for_spot_pools_only(render: Render) -> None:
    render("default", 'pools=[{"name": "default", "terminationGraceS": 30, "spot": true}]')
    render("default", "gateway.jobTimeoutS=7200", "poolDefaults.terminationGraceS=7260")
