"""Songs are encoded beside the engine: as they come, niced, and no more at once in a pod than it has places."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_worker.slot import encoding
from gpu_worker.slot.encoding import Encoders, place
from serinette.errors import InvalidOutput
from serinette.media import encode
from serinette.spec import GenerationSpec

RATE = 48_000
SPEC = GenerationSpec(prompt="x", format="flac", seed=1)


def tone(seconds: float = 1.0) -> Any:
    wave = 0.1 * np.sin(np.arange(round(seconds * RATE)) / 20)
    return np.stack([wave, wave]).astype(np.float32)


def test_a_song_is_the_file_that_it_always_was(tmp_path: Path) -> None:
    encoders = Encoders(tmp_path, 2)
    encoded = encoders.submit(tone(), RATE, SPEC, {"title": "x"}).result()
    encoders.close()
    assert encoded.data == encode(tone(), RATE, SPEC.format, tags={"title": "x"})
    assert encoded.warnings == ()
    assert encoded.encode_s > 0


def test_loudness_is_brought_and_clipping_is_warned_of(tmp_path: Path) -> None:
    encoders = Encoders(tmp_path, 2)
    peaky = tone()
    peaky[:, RATE // 2] = 0.9
    quiet, loud = (
        encoders.submit(peaky, RATE, SPEC.model_copy(update={"loudness_lufs": lufs}), {}).result()
        for lufs in (-30.0, -5.0)
    )
    encoders.close()
    assert quiet.data != encode(peaky, RATE, SPEC.format)
    assert quiet.warnings == ()
    (warning,) = loud.warnings
    assert "more would clip" in warning


def test_what_cannot_be_encoded_is_the_waiters_error(tmp_path: Path) -> None:
    encoders = Encoders(tmp_path, 1)
    with pytest.raises(InvalidOutput):
        encoders.submit(tone() * np.float32("nan"), RATE, SPEC, {}).result()
    encoders.close()


@pytest.mark.skipif(sys.platform != "linux", reason="a thread's own niceness is Linux's")
@pytest.mark.parametrize("lower", [1, -1])
def test_encoders_give_way_and_other_threads_do_not(
    lower: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    monkeypatch.setattr(encoding, "_NICENESS", before + lower)  # a worker may be niced itself
    seen: list[int] = []

    def note_priority(*_: object, **__: object) -> bytes:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return b""

    monkeypatch.setattr(encoding, "encode", note_priority)
    encoders = Encoders(tmp_path, 1)
    encoders.submit(tone(), RATE, SPEC, {}).result()
    encoders.close()
    assert seen[0] == max(before, min(19, before + lower))
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_a_pods_slots_share_its_places(tmp_path: Path) -> None:
    inside, most = [0], [0]
    lock = threading.Lock()

    def work() -> None:
        with place(tmp_path, 2):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            with lock:
                inside[0] -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: work(), range(12)))
    assert most == [2]


def test_a_slot_that_dies_gives_its_place_back(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from gpu_worker.slot.encoding import place\n"
        "with place(Path(sys.argv[1]), 1): print('in', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"in\n"
    entered = threading.Event()

    def enter() -> None:
        with place(tmp_path, 1):
            entered.set()

    threading.Thread(target=enter).start()
    assert not entered.wait(0.2)
    other.kill()
    other.wait()
    other.stdout.close()
    assert entered.wait(30)
