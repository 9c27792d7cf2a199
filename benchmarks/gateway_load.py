"""Submits and status polls a second, as ratios to the same gateway's `/healthz`, which does nothing.

One gateway process and one Valkey that flushes every write to disk (as `serinette up` has it), no worker; the load
comes from this process over keep-alive connections, on the same cores. The three take turns, so that what else happens
on the machine befalls them alike: the ratios are the result, the absolute figures belong to this machine and hour.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.record import Figures, spread
from serinette.leash import leashed
from tests.servers import free_ports, valkey

CONNECTIONS = 8
ROUNDS = 5
ROUND_S = 3.0


@contextmanager
def gateway(directory: Path, **environment_too: str) -> Iterator[tuple[int, str]]:
    """A gateway on a Valkey of its own, with environment beyond what all have; its port, and the URL of the Valkey."""
    port = free_ports(1)[0]
    with valkey(directory / "valkey", append_only=True) as server:
        environment = {
            "SERINETTE_REDIS_URL": server.connection_url,
            "SERINETTE_STORE_URL": f"file://{directory}/store",
            "SERINETTE_PORT": str(port),
            "SERINETTE_LOG_LEVEL": "WARNING",
            "SERINETTE_MAX_WAITING": "1000000",  # they are not generated
        }
        (directory / "store").mkdir()
        environment |= environment_too
        process = subprocess.Popen(leashed([sys.executable, "-m", "api"]), env={**os.environ, **environment})
        try:
            _wait_until_healthy(port)
            yield port, server.connection_url
        finally:
            process.terminate()
            process.wait()


def _wait_until_healthy(port: int) -> None:
    for _ in range(600):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise RuntimeError("the gateway is not up after a minute")


def request(method: str, path: str, body: object = None) -> bytes:
    """One HTTP/1.1 request as it goes over the wire."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n"
    return f"{head}Content-Type: application/json\r\n\r\n".encode() + content


def per_second(port: int, message: bytes, status: bytes) -> float:
    """Answers a second over CONNECTIONS keep-alive connections; any other status is an error."""
    until = time.perf_counter() + ROUND_S
    counts = [0] * CONNECTIONS
    wrong: list[bytes] = []

    def load(number: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rb") as answers:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while time.perf_counter() < until and not wrong:
                connection.sendall(message)
                line, length_bytes = answers.readline(), 0
                while (header := answers.readline()) != b"\r\n":
                    if header.lower().startswith(b"content-length:"):
                        length_bytes = int(header.partition(b":")[2])
                answers.read(length_bytes)
                if line.split()[1] != status:
                    wrong.append(line)
                counts[number] += 1

    threads = [threading.Thread(target=load, args=[number]) for number in range(CONNECTIONS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise RuntimeError(f"the gateway answered {wrong[0].decode().strip()} to {message.split(b' HTTP')[0].decode()}")
    return sum(counts) / (time.perf_counter() - began)


def measure() -> Figures:
    """Rounds of healthz, polls and submits in turn."""
    rates: dict[str, list[float]] = {"healthz": [], "polls": [], "submits": []}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, gateway(Path(directory)) as (port, _):
        job = httpx.post(f"http://127.0.0.1:{port}/v1/jobs", json={"prompt": "jazz"}, trust_env=False).json()
        turns = {
            "healthz": (request("GET", "/healthz"), b"200"),
            "polls": (request("GET", f"/v1/jobs/{job['id']}"), b"200"),
            "submits": (request("POST", "/v1/jobs", {"prompt": "jazz piano, smooth", "duration_s": 15}), b"202"),
        }
        for message, status in turns.values():
            per_second(port, message, status)  # warms up, uncounted
        for _ in range(ROUNDS):
            for name, (message, status) in turns.items():
                rates[name].append(per_second(port, message, status))
    nothing = rates["healthz"]
    return {
        "connections": CONNECTIONS,
        "round_s": ROUND_S,
        "healthz_per_s": spread(nothing, 1),
        "polls_per_s": spread(rates["polls"], 1),
        "submits_per_s": spread(rates["submits"], 1),
        "polls_to_healthz": spread([rate / base for rate, base in zip(rates["polls"], nothing, strict=True)]),
        "submits_to_healthz": spread([rate / base for rate, base in zip(rates["submits"], nothing, strict=True)]),
    }
