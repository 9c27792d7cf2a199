"""A Kubernetes API server for tests: real HTTP for the real client, objects in memory, no controllers behind it.

It answers GET, lists (label and field selectors), POST, PUT, PATCH and DELETE of any object given to `add` or created,
discovery and /version. It validates nothing. What was asked is in `requests`, what was patched in `patches`. A
pod's log is in `logs`.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]

# For `fail`: hold the request until the server ends.
HANG = -1

_PLURALS = {
    "NetworkPolicy": "networkpolicies",
    "StorageClass": "storageclasses",
    "RuntimeClass": "runtimeclasses",
    "PriorityClass": "priorityclasses",
    "Ingress": "ingresses",
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
}
_CLUSTERED = {
    "Namespace",
    "Node",
    "StorageClass",
    "CustomResourceDefinition",
    "APIService",
    "RuntimeClass",
    "PriorityClass",
    "ClusterRole",
    "ClusterRoleBinding",
    "PersistentVolume",
}


def plural(kind: str) -> str:
    """How a kind is called in paths."""
    return _PLURALS.get(kind, kind.lower() + "s")


@dataclass(frozen=True, slots=True)
class Address:
    """What a path names: `/apis/apps/v1/namespaces/music/deployments/worker/scale`."""

    api: str  # v1, apps/v1
    namespace: str | None
    plural: str
    name: str | None = None
    part: str | None = None  # status, scale, log

    @property
    def path(self) -> str:
        words = ["/api" if "/" not in self.api else "/apis", self.api]
        words += ["namespaces", self.namespace] if self.namespace else []
        return "/".join([*words, self.plural, *([self.name] if self.name else [])])


def address(path: str) -> Address | None:
    """What a path names; None when it is not of an object or a list."""
    words = path.strip("/").split("/")
    head = 2 if words[0] == "api" else 3
    api, rest = "/".join(words[1:head]), words[head:]
    if words[0] not in {"api", "apis"} or not rest:
        return None
    namespace = None
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in {"status", "finalize"}:
        namespace, rest = rest[1], rest[2:]
    return Address(api, namespace, *rest[:3])


@dataclass
class _Trouble:
    method: str
    path: str
    status: int
    message: str
    times: int | None

    def meets(self, method: str, path: str) -> bool:
        return self.times != 0 and self.method in {"*", method} and self.path in path


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    method: str
    path: str
    query: dict[str, str]
    body: Any = None


@dataclass
class Kube:
    """What the server holds and saw; give it objects before or while it runs."""

    url: str = ""
    version: str = "v1.36.0"
    context: str = "kind-test"
    logs: dict[str, str] = field(default_factory=dict)  # by pod, as the API answers them
    answers: dict[str, Object] = field(default_factory=dict)  # path: whole body, e.g. of external.metrics.k8s.io
    requests: list[Asked] = field(default_factory=list)
    _objects: dict[str, Object] = field(default_factory=dict)
    _kinds: dict[tuple[str, str], str] = field(default_factory=dict)
    _troubles: list[_Trouble] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _counter: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def add(self, *objects: Object, namespace: str = "default") -> None:
        """Have these objects, in place of older ones of their names."""
        for given in objects:
            kind, api = given["kind"], given["apiVersion"]
            inside = None if kind in _CLUSTERED else given["metadata"].get("namespace", namespace)
            with self._lock:
                self._kinds[api, plural(kind)] = kind
                self._keep(Address(api, inside, plural(kind), given["metadata"]["name"]), given)

    def remove(self, api: str, kind: str, name: str, namespace: str | None = None) -> None:
        """Have this object no more."""
        with self._lock:
            self._objects.pop(Address(api, namespace, plural(kind), name).path, None)

    def get(self, api: str, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """An object as it is now."""
        with self._lock:
            return copy.deepcopy(self._objects.get(Address(api, namespace, plural(kind), name).path))

    def objects(self, api: str, kind: str, namespace: str) -> list[Object]:
        """All of a kind, as they are now."""
        with self._lock:
            found = self._list(Address(api, namespace, plural(kind)), {})["items"]
            return copy.deepcopy(found)

    def fail(
        self, path: str, status: int, message: str = "broken on purpose", *, method: str = "*", times: int | None = None
    ) -> None:
        """Answer requests whose path holds `path` with this status, `times` of them or all. 0: hang up; or HANG."""
        self._troubles.append(_Trouble(method, path, status, message, times))

    def recover(self) -> None:
        """Forget all `fail`."""
        self._troubles.clear()

    @property
    def patches(self) -> list[Asked]:
        """All PATCH requests, in their order."""
        return [asked for asked in self.requests if asked.method == "PATCH"]

    def kubeconfig(self, directory: Path) -> Path:
        """A file for KUBECONFIG."""
        cluster = {"name": "test", "cluster": {"server": self.url}}
        context = {"name": self.context, "context": {"cluster": "test", "user": "test", "namespace": "default"}}
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": self.context,
            "clusters": [cluster],
            "contexts": [context],
            "users": [{"name": "test", "user": {"token": "test"}}],
        }
        path = directory / "kubeconfig"
        path.write_text(json.dumps(kubeconfig))  # JSON is YAML
        return path

    def answer(self, asked: Asked) -> tuple[int, Object | str]:
        """Status and body for a request. Status 0: none."""
        with self._lock:
            self.requests.append(asked)
            for trouble in self._troubles:
                if trouble.meets(asked.method, asked.path):
                    trouble.times = None if trouble.times is None else trouble.times - 1
                    return trouble.status, _status(trouble.status, trouble.message)
            if asked.path in self.answers:
                return 200, self.answers[asked.path]
            if (found := self._discover(asked.path)) is not None:
                return 200, found
            named = address(asked.path)
            if named is None or not self._knows(named):
                return 404, _status(404, "the server could not find the requested resource")
            if named.part == "log":
                return (200, self.logs[named.name or ""]) if named.name in self.logs else (404, _status(404, "no log"))
            return self._act(asked, named)

    def _knows(self, named: Address) -> bool:
        """An API of ours: core and apps are always there, others by their objects or CustomResourceDefinitions."""
        if named.api in {"v1", "apps/v1"} or (named.api, named.plural) in self._kinds:
            return True
        group, _, version = named.api.partition("/")
        own = {"apps", "batch", "events.k8s.io", "storage.k8s.io", "apiextensions.k8s.io", "autoscaling", "policy"}
        crd = self._objects.get(
            f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{named.plural}.{group}", {"spec": {}}
        )
        return group in own or version in [each["name"] for each in crd["spec"].get("versions", [])]

    def _act(self, asked: Asked, named: Address) -> tuple[int, Object]:
        if asked.method == "POST":
            body = {**asked.body, "metadata": {**asked.body.get("metadata", {})}}
            name = body["metadata"].setdefault("name", body["metadata"].get("generateName", "x") + str(self._counter))
            whole = Address(named.api, named.namespace, named.plural, name)
            if whole.path in self._objects:
                return 409, _status(409, f'{named.plural} "{name}" already exists')
            self._kinds.setdefault((named.api, named.plural), body.get("kind", named.plural))
            return 201, self._keep(whole, body)
        if named.name is None:
            return 200, self._list(named, asked.query)
        if (found := self._objects.get(named.path)) is None:
            return 404, _status(404, f'{named.plural} "{named.name}" not found')
        if asked.method == "PATCH":
            return 200, self._keep(named, merged(found, asked.body))
        if asked.method == "PUT":
            return 200, self._keep(named, asked.body)
        if asked.method == "DELETE":
            del self._objects[named.path]
        return 200, found

    def _keep(self, named: Address, given: Object) -> Object:
        self._counter += 1
        kept = copy.deepcopy(given)
        metadata = kept.setdefault("metadata", {})
        if named.namespace:
            metadata["namespace"] = named.namespace
        metadata.setdefault("uid", f"uid-{self._counter}")
        metadata.setdefault("creationTimestamp", _timestamp())
        metadata["resourceVersion"] = str(self._counter)
        self._objects[named.path] = kept
        return kept

    def _list(self, named: Address, query: dict[str, str]) -> Object:
        prefix, found = ("/api/" if "/" not in named.api else "/apis/") + named.api + "/", []
        for path, each in self._objects.items():
            at = address(path)
            if at is None or not path.startswith(prefix) or at.plural != named.plural or at.api != named.api:
                continue
            if named.namespace in {None, at.namespace} and _selected(each, query):
                found.append(each)
        kind = self._kinds.get((named.api, named.plural), named.plural)
        return {
            "apiVersion": named.api,
            "kind": f"{kind}List",
            "metadata": {"resourceVersion": str(self._counter)},
            "items": found,
        }

    def _discover(self, path: str) -> Object | None:
        words = path.strip("/").split("/")
        if path.rstrip("/") == "/version":
            major, minor, _ = self.version.lstrip("v").split(".", 2)
            others = ("gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform")
            return {"major": major, "minor": minor, "gitVersion": self.version, **dict.fromkeys(others, "test")}
        if path.rstrip("/") == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path.rstrip("/") == "/apis":
            apis = sorted({api for api, _ in self._kinds if "/" in api})
            versions = [{"groupVersion": api, "version": api.partition("/")[2]} for api in apis]
            groups = [
                {"name": each["groupVersion"].partition("/")[0], "versions": [each], "preferredVersion": each}
                for each in versions
            ]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        api = "/".join(words[1:])
        known = [(name, kind) for (of, name), kind in self._kinds.items() if of == api]
        if (words[0], len(words)) not in {("api", 2), ("apis", 3)} or not (known or api == "v1"):
            return None
        verbs = ["get", "list", "create", "update", "patch", "delete"]
        resources = [
            {"name": name, "kind": kind, "namespaced": kind not in _CLUSTERED, "singularName": "", "verbs": verbs}
            for name, kind in known
        ]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api, "resources": resources}


def merged(old: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7386) applied; a strategic one is taken as if it were one."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    new = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            new.pop(name, None)
        else:
            new[name] = merged(new.get(name), value)
    return new


def _selected(given: Object, query: dict[str, str]) -> bool:
    labels = given["metadata"].get("labels", {})
    for term in filter(None, query.get("labelSelector", "").split(",")):
        name, separator, value = term.replace("==", "=").partition("=")
        if name.endswith("!"):
            wanted = labels.get(name[:-1]) != value
        elif term.startswith("!"):
            wanted = term[1:] not in labels
        else:
            wanted = labels.get(name) == value if separator else name in labels
        if not wanted:
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, value = term.replace("==", "=").partition("=")
        negated = path.endswith("!")
        found: Any = given
        for word in path.rstrip("!").split("."):
            found = found.get(word) if isinstance(found, dict) else None
        if ((found or "") == value) == negated:
            return False
    return True


def _timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _status(code: int, message: str) -> Object:
    reasons = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict", 429: "TooManyRequests"}
    reason = reasons.get(code, "InternalError")
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def _handler(kube: Kube) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else the client waits 40 ms for a body that follows its head

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            status, reported = kube.answer(Asked(self.command, parts.path, query, json.loads(body) if body else None))
            if status == HANG:
                kube.ended.wait()
            if status in {0, HANG}:
                self.close_connection = True
                return
            data = reported.encode() if isinstance(reported, str) else json.dumps(reported).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(reported, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815  # names of http.server

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    return Handler


@contextmanager
def kubernetes_api(*objects: Object) -> Iterator[Kube]:
    """A running API server that has these objects."""
    kube = Kube()
    kube.add(*objects)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(kube))
    server.daemon_threads = True
    kube.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield kube
    finally:
        kube.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
