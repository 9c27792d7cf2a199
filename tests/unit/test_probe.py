"""A stranger's file is proved elsewhere: whatever it is, the caller gets an answer and lives."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import serinette
from serinette.errors import InvalidAudio, TooLarge, Unavailable
from serinette.media import AudioInfo, encode
from serinette.probe import prove_audio
from serinette.spec import AudioFormat
from tests.unit import sounds

MAX_DURATION_S = 60


def song(format: AudioFormat, duration_s: float = 3) -> bytes:
    return encode(sounds.tone(duration_s), 48_000, format)


def damaged(file: bytes) -> bytes:
    middle = len(file) // 2
    return file[:middle] + np.random.default_rng(2).bytes(2_000) + file[middle + 2_000 :]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "upload with spaces, -and 音"


@pytest.mark.parametrize("format", list(AudioFormat))
def test_audio_is_audio(format: AudioFormat, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path.write_bytes(song(format))
    info = prove_audio(Path(path.name), max_duration_s=MAX_DURATION_S, max_size_bytes=10_000_000)
    assert info.duration_s == pytest.approx(3, abs=0.03)
    assert (info.sample_rate, info.channels) == (48_000, 2)


HOSTILE = {
    "empty": b"",
    "random": np.random.default_rng(1).bytes(300_000),
    "text": b"la la la\n" * 10_000,
    "png": sounds.png(),
    "video": sounds.video(),
    "wav that claims 6 hours": sounds.wav(bytes(4000), claimed_bytes=0xFFFFFFFF),
    "flac that claims years": sounds.flac_that_claims_years(song(AudioFormat.FLAC)),
    **{f"{format} cut short": song(format)[:20_000] for format in AudioFormat},
    **{f"{format} without its head": song(format)[2_000:] for format in AudioFormat},
    **{f"{format} damaged": damaged(song(format)) for format in AudioFormat},
    "ID3 that claims 256 MB": b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(1000),
    "m4a with a box of 16 EB": song(AudioFormat.M4A)[:28] + b"\0\0\0\1moov" + b"\xff" * 8 + bytes(1000),
}


SURELY_NO_AUDIO = {"empty", "random", "text", "png", "video", "m4a cut short"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_or_measured(name: str, path: Path) -> None:
    path.write_bytes(HOSTILE[name])
    try:
        info = prove_audio(path, max_duration_s=MAX_DURATION_S)
    except InvalidAudio as refused:
        assert str(path) not in refused.message
        assert len(refused.message) < 200
        assert "the file" in refused.message or name not in SURELY_NO_AUDIO
    else:
        assert isinstance(info, AudioInfo)
        assert 0 < info.duration_s <= 3.1
        assert name not in SURELY_NO_AUDIO


def test_hours_of_silence_in_a_megabyte_end_at_the_limit(path: Path) -> None:
    path.write_bytes(sounds.silence(2 * 3600))
    assert path.stat().st_size < 1_500_000
    with pytest.raises(InvalidAudio, match="longer than the 600 s allowed"):
        prove_audio(path, max_duration_s=600)


def test_a_large_file_is_not_even_opened(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2 * 1024**3)
    with pytest.raises(TooLarge, match="2147483648 bytes; 1000 are allowed"):
        prove_audio(path, max_duration_s=600, max_size_bytes=1000)


async def test_a_proof_that_never_ends_is_ended_and_the_loop_runs_on(path: Path) -> None:
    os.mkfifo(path)  # opening it waits for a writer who never comes
    ticks = 0
    proof = asyncio.create_task(asyncio.to_thread(prove_audio, path, max_duration_s=600, timeout_s=2))
    while not proof.done():
        ticks += 1
        await asyncio.sleep(0.05)
    with pytest.raises(InvalidAudio, match="more time or memory"):
        await proof
    assert ticks > 5


@pytest.mark.parametrize(
    ("deed", "end"),
    [
        ("bytearray(3 * 1024**3)", "MemoryError"),
        ("open(sys.argv[1], 'wb', buffering=0).write(b'x')", "File too large"),
        ("[open('/dev/null') for _ in range(20)]", "Too many open files"),
        ("exec('while True: pass')", ""),
    ],
)
def test_a_decoder_gone_wild_does_no_harm(deed: str, end: str, tmp_path: Path) -> None:
    code = f"import sys; from serinette import media, probe; media.probe; probe._confine(1); {deed}"
    command = [sys.executable, "-I", "-c", code, str(tmp_path / "stolen")]
    done = subprocess.run(command, env={}, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert end in done.stderr
    assert not (tmp_path / "stolen").exists() or (tmp_path / "stolen").stat().st_size == 0


def substitute(tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `script` where the interpreter would be."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_the_prover_sees_no_secret(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    substitute(tmp_path, "/usr/bin/env; /bin/cat; pwd", monkeypatch)
    path.write_bytes(b"")
    with pytest.raises(Unavailable) as failed:
        prove_audio(path, max_duration_s=600, timeout_s=20)
    seen = "".join(getattr(failed.value.__cause__, "__notes__", []))
    assert "PWD=/" in seen
    assert "hush" not in seen
    assert "PATH=" not in seen.replace("PWD=", "")


def test_the_prover_is_of_the_same_package_wherever_that_lies(path: Path, tmp_path: Path) -> None:
    """As in our images, where PYTHONPATH alone leads to it."""
    copy = tmp_path / "app"
    shutil.copytree(Path(serinette.__file__).parent, copy / "serinette", ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "serinette/media/__init__.py").open("a") as file:
        file.write("from serinette.errors import InvalidAudio\ndef probe(path, most_s):\n")
        file.write("    raise InvalidAudio('the copy was asked')\n")
    path.write_bytes(b"")
    code = (
        f"from pathlib import Path; from serinette.probe import *; prove_audio(Path({str(path)!r}), max_duration_s=9)"
    )
    command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=120, check=False)
    assert "InvalidAudio: the copy was asked" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("exit 1", Unavailable),
        ("echo no such module; exit 1", Unavailable),
        ("echo 3", Unavailable),
        ("kill -SEGV $$", InvalidAudio),
        ("while true; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done", InvalidAudio),
    ],
    ids=["fails", "fails in words", "nonsense", "crashes", "never stops talking"],
)
def test_however_the_prover_ends_there_is_an_answer(
    script: str, error: type[Exception], path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    substitute(tmp_path, script, monkeypatch)
    path.write_bytes(song(AudioFormat.WAV, 0.1))
    with pytest.raises(error):
        prove_audio(path, max_duration_s=600, timeout_s=30)


def test_naming_formats_loads_no_decoder() -> None:
    code = "import sys, serinette.media, serinette.probe; sys.exit(int('av' in sys.modules or 'numpy' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
