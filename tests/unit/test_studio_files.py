"""How the gateway serves the studio's files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import api.studio
from api.app import create_app
from serinette.job import WaitingCode
from tests.unit.tenants import settings_of

FIRST_LOAD_BYTES = 60_000
FILES = Path(api.studio.__file__).parent


@pytest.fixture(scope="module")
def http(valkey_url: str, store_url: str) -> Iterator[TestClient]:
    """Of a gateway that asks for keys."""
    with TestClient(create_app(settings_of(valkey_url, store_url)), "http://localhost") as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/studio/app.js", "/studio/studio.css", "/studio/icon.svg"])
def test_files_need_no_key_and_run_nothing_but_themselves(http: TestClient, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert re.findall(r"https?:|\*", policy) == []
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-cache"
    again = http.get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert http.head(path).headers["ETag"] == answer.headers["ETag"]


def test_they_are_sent_compressed_to_clients_that_ask_for_it(http: TestClient) -> None:
    plain = http.get("/studio/app.js", headers={"Accept-Encoding": "identity"})
    short = http.get("/studio/app.js", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert short.headers["Content-Encoding"] == "gzip"
    assert plain.content == short.content
    assert int(short.headers["Content-Length"]) < int(plain.headers["Content-Length"])


def test_all_of_them_together_are_a_short_load(http: TestClient) -> None:
    names = ["/", *(f"/studio/{file.name}" for file in FILES.iterdir() if file.suffix in {".js", ".css", ".svg"})]
    assert sum(int(http.get(name).headers["Content-Length"]) for name in names) < FIRST_LOAD_BYTES


def test_whatever_is_waited_for_has_words_in_japanese() -> None:
    codes = re.findall(r'"waits\.(\w+)"', (FILES / "text_ja.js").read_text())
    assert sorted(codes) == sorted(WaitingCode)


@pytest.mark.parametrize("name", ["__init__.py", "nothing.js", "..%2Fapp.py", "%2Fetc%2Fpasswd"])
def test_there_is_nothing_else(http: TestClient, name: str) -> None:
    assert http.get(f"/studio/{name}").status_code in {401, 404}  # a name with a slash is another path


def test_what_the_page_loads_is_there_and_its_addresses_are_relative(http: TestClient) -> None:
    wanted = re.findall(r'(?:href|src)="([^"]+)"', (FILES / "index.html").read_text())
    assert wanted
    assert [name for name in wanted if name.startswith("/") or http.get(f"/{name}").status_code != 200] == []
    for file in FILES.glob("*.js"):
        for name in re.findall(r"""(?:from|import\()\s*["'](\./[^"']+)["']""", file.read_text()):
            assert (FILES / name).is_file(), f"{file.name}: {name}"
