"""The API's own page, in a real browser that can reach nothing but the gateway."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gateways import gateway

pytestmark = pytest.mark.browser

ALONE = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--virtual-time-budget=20000",
    "--window-size=1280,1600",
)


def test_the_api_page_needs_no_other_host(tmp_path: Path, redis_url: str, file_store_url: str) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with gateway(tmp_path, redis_url, file_store_url) as running:
        command = [chromium, *ALONE, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"{running.url}/docs"]
        page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert 'data-path="/v1/jobs"' in page
    assert 'data-path="/generate_music_async"' in page
