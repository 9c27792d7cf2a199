"""Songs are encoded beside the engine: as they come, niced, and no more at once in a pod than it has places."""

from __future__ import annotations

import ctypes
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
from gpu_worker.supervisor import SlotChild
from serinette.errors import InvalidOutput
from serinette.media import encode
from serinette.spec import GenerationSpec

RATE = 48_000
MIB = 2**20
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


# Prints what is in use after 12 songs and after 60, and what glibc holds free then: bytes, of all arenas.
SIXTY_SONGS = """
import ctypes, gc, sys
from pathlib import Path
import numpy as np
from gpu_worker.slot.encoding import Encoders
from serinette.spec import AudioFormat, GenerationSpec

class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo2
for number in range(60):
    song = np.zeros((2, 48_000 * (1 + number % 3)), np.float32)
    spec = GenerationSpec(prompt="x", seed=1, format=list(AudioFormat)[number % 5])
    encoders = Encoders(Path(sys.argv[1]), 1)
    encoders.submit(song, 48_000, spec, {"title": "x"}).result()
    encoders.close()
    if number in {11, 59}:
        gc.collect()
        held = mallinfo2()
        print(held.uordblks + held.hblkhd)
print(held.fordblks)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc's own figures")
def test_songs_leave_no_memory_in_a_slot(tmp_path: Path) -> None:
    environment = {**os.environ, **SlotChild(0, "x", tmp_path, {}).spec.environment}
    command = [sys.executable, "-c", SIXTY_SONGS, str(tmp_path)]
    early, late, free = map(int, subprocess.check_output(command, env=environment).split())
    assert late - early < MIB / 4, "48 songs left something in use"
    assert free < 12 * MIB, "glibc holds what songs have freed"
