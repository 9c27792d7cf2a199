"""The bundled planner through a whole server: text as jobs, planned songs made again from their tags, a 1.5 client.

And an mp3 that is continued.
"""

from __future__ import annotations

import subprocess
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serinette.cli.replay import spec_of
from serinette.client import Client
from serinette.errors import NotFound
from serinette.job import Job
from serinette.media import decode, read_song_tags
from serinette.spec import INSTRUMENTAL, GenerationSpec
from tests.stack import Stack
from tests.up import CLI


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.url) as client:
        yield client


def ended(client: Client, song: str | GenerationSpec, **fields: Any) -> Job:
    return client.wait(client.submit(song, **fields).id)


def test_a_wish_is_written_as_a_job_and_erased_as_one(client: Client) -> None:
    wish: dict[str, Any] = {"task": "write", "lyrics": INSTRUMENTAL, "lm_temperature": 0.0}
    job = ended(client, "a sad tune on the harp at 88 bpm in F# minor", **wish)
    assert job.result and (job.result.artifacts, job.result.sampling, job.result.warnings) == ((), None, ())
    (text,) = job.result.texts
    assert (text.caption, text.bpm, text.lyrics) == ("A sad tune on the harp.", 88, INSTRUMENTAL)
    assert text.key_scale == "F# minor"
    assert text.duration_s
    client.erase(job.id)
    with pytest.raises(NotFound):
        client.get(job.id)


def test_text_is_printed(stack: Stack, tmp_path: Path) -> None:
    command = [*CLI, "submit", "a sad tune at 88 bpm", "--task", "write", "-n", "2", "--server", stack.url]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("caption: A ") == ended.stdout.count("bpm: 88") == 2
    assert "\n\n---\n\n" in ended.stdout
    assert "writes none" in ended.stderr  # lyrics were asked for
    assert not list(tmp_path.iterdir())


def test_a_song_is_written_first_from_the_command_line(stack: Stack, tmp_path: Path) -> None:
    command = [*CLI, "submit", "a sad harp", "--rewrite", "write", "-d", "1", "-o", str(tmp_path / "song.wav")]
    ended = subprocess.run([*command, "--server", stack.url], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    tags = read_song_tags(tmp_path / "song.wav")
    assert tags
    assert (tags.spec.rewrite, tags.spec.prompt) == ("write", "a sad harp")
    assert tags.plan


def test_the_bundled_planner_cannot_describe_and_says_so(stack: Stack, tmp_path: Path) -> None:
    song = tmp_path / "song.wav"
    with wave.open(str(song), "wb") as file:
        file.setparams((2, 2, 24_000, 24_000, "NONE", ""))
        file.writeframes(bytes(4 * 24_000))
    command = [*CLI, "submit", "--task", "describe", "--source", str(song), "--server", stack.url]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode != 0
    assert "so it cannot describe" in ended.stderr


def test_a_planned_song_is_made_again_from_its_tags(client: Client, tmp_path: Path) -> None:
    job = ended(client, "a happy flute", thinking=True, duration_s=1, seed=3, bpm=140, format="wav")
    assert job.result
    plan = job.result.artifacts[0].plan
    assert plan and (plan.bpm, plan.codes, job.spec.prompt) == (140, 0, "a happy flute")
    assert plan.caption and plan.caption.startswith("A happy tune")
    assert plan.key_scale
    song = tmp_path / "song.wav"
    client.download(job, song)
    tags = read_song_tags(song)
    assert tags and (tags.plan, tags.spec.thinking) == (plan, True)
    again = ended(client, spec_of(tags))
    assert again.spec.prompt == plan.caption
    assert again.spec.key_scale == plan.key_scale
    client.download(again, tmp_path / "again.wav")
    one, other = (decode(path, 24_000, 2, 10) for path in (song, tmp_path / "again.wav"))
    assert np.array_equal(one, other)
    # A repaint follows the plan of its source where it leaves metadata open.
    repaint = {"task": "repaint", "source_audio": f"{job.id}/0", "repaint_end_s": 0.5}
    repainted = ended(client, "a happy flute", thinking=True, **repaint)
    assert repainted.result
    kept = repainted.result.artifacts[0].plan
    assert kept and (kept.bpm, kept.key_scale) == (plan.bpm, plan.key_scale)


@pytest.mark.parametrize(("window", "before_s"), [((-1.0, 0.0), 1), ((2.0, 3.0), 0)])
def test_a_song_in_mp3_is_continued_and_sounds_as_before_where_it_was(
    client: Client, tmp_path: Path, window: tuple[float, float], before_s: int
) -> None:
    """Bits are not kept by this codec: what was there is as loud, at the same sample, within the coding's noise."""
    source = ended(client, "a happy flute", duration_s=2, seed=3)
    spec = {"task": "repaint", "source_audio": f"{source.id}/0", "repaint_start_s": window[0]}
    longer = ended(client, "a happy flute", **spec, repaint_end_s=window[1])
    assert longer.result and longer.result.artifacts[0].content_type == "audio/mpeg"
    rate = 24_000
    for job in (source, longer):
        client.download(job, tmp_path / job.id)
    was, now = (decode(tmp_path / job.id, rate, 2, 10) for job in (source, longer))
    assert now.shape[1] == pytest.approx(3 * rate, abs=1_200)
    again = now[:, before_s * rate :][:, : was.shape[1]]
    error = np.sqrt(np.mean((again - was[:, : again.shape[1]]) ** 2))
    assert error < 0.1 * np.sqrt(np.mean(was**2))


def test_a_client_of_acestep_is_answered_what_was_written(stack: Stack) -> None:
    answer = httpx.post(f"{stack.url}/v1/create_sample", json={"query": "a calm music box", "instrumental": True})
    written = answer.json()["data"]
    assert written["degraded"] is False, written
    assert written["caption"].startswith("A ")
    assert 60 <= written["bpm"] <= 160
    assert written["instrumental"]
