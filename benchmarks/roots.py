"""From a clone to the first sound in a fresh Debian, and the wheel in a second one, as a client of the first.

Needs root and `mmdebstrap`. The roots see this machine's network, /proc and /dev, and nothing else of it but what pip
is configured to read: its settings go along as environment, the directories that they name as read-only mounts.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.record import Figures
from serinette.media import decode
from tests.servers import free_ports

SUITE = "bookworm"
# What README.md asks for (Debian has venv in a package of its own), and certificates for pip.
PACKAGES = "python3,python3-venv,make,ca-certificates"
_TIMEOUT_S = 3_600
_SOURCE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Root:
    """A Debian in a directory; commands run in it as root, in a mount namespace of their own."""

    directory: Path

    def command(self, script: str) -> list[str]:
        """What runs a shell script in its /root."""
        settings = pip_settings()
        mounts = [f"mount -t proc proc {self._at('/proc')}", f"mount --rbind /dev {self._at('/dev')}"]
        for path in named_paths(settings):
            place = self.directory / path.lstrip("/")
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                (place.mkdir if Path(path).is_dir() else place.touch)()
            mounts.append(f"mount --bind -o ro {shlex.quote(path)} {self._at(path)}")
        environment = [f"{name}={value}" for name, value in settings.items()]
        environment += ["HOME=/root", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
        inside = ["env", "-i", *environment, "sh", "-euc", f"cd /root\n{script}"]
        outside = " && ".join([*mounts, f"exec chroot {shlex.quote(str(self.directory))} {shlex.join(inside)}"])
        return ["unshare", "--mount", "sh", "-euc", outside]

    def run(self, script: str) -> str:
        """A script to its end; what it wrote."""
        ended = subprocess.run(self.command(script), capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
        if ended.returncode != 0:
            raise RuntimeError(
                f"{script}\nended with {ended.returncode}:\n{ended.stdout[-2_000:]}{ended.stderr[-4_000:]}"
            )
        return ended.stdout

    def timed(self, script: str) -> float:
        """A script to its end; its seconds."""
        began = time.perf_counter()
        self.run(script)
        return round(time.perf_counter() - began, 2)

    def _at(self, path: str) -> str:
        return shlex.quote(f"{self.directory}{path}")


def pip_settings() -> dict[str, str]:
    """What pip is configured with here, as environment variables."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2].upper().replace("-", "_")
        settings[f"PIP_{option}"] = value.strip("'").replace("\\n", " ")
    return settings


def named_paths(settings: dict[str, str]) -> list[str]:
    """Directories and files of this machine that the settings name."""
    words = [word for value in settings.values() for word in value.split()]
    indexes = [Path(word.removeprefix("file://")).parent for word in words if word.startswith("file://")]
    return sorted({str(path) for path in (*indexes, *map(Path, words)) if path.is_absolute() and path.exists()})


@contextmanager
def _up(root: Root, port: int, log: Path) -> Iterator[float]:
    """`make up` in a root; how many seconds it took until it listened. Ended as by Ctrl-C."""
    began = time.perf_counter()
    with log.open("w") as output:
        command = root.command(f"cd serinette && exec make up PORT={port}")
        process = subprocess.Popen(command, stdout=output, stderr=output, process_group=0)
    try:
        while "Listening on" not in log.read_text():
            if process.poll() is not None or time.perf_counter() - began > _TIMEOUT_S:
                raise RuntimeError(f"`make up` does not listen:\n{log.read_text()[-4_000:]}")
            time.sleep(0.1)
        yield round(time.perf_counter() - began, 2)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)


_USE = """
. venv/bin/activate
serinette submit "a slow waltz" -d 15 -o song.mp3
python -c 'import serinette; serinette.generate("a glad waltz", duration_s=15).save("again.mp3")'
"""


def measure() -> Figures:
    """Seconds of each step."""
    with tempfile.TemporaryDirectory(prefix="serinette-roots-") as name:
        first, second = Root(Path(name, "first")), Root(Path(name, "second"))
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(first.directory)],
            check=True,
            timeout=_TIMEOUT_S,
        )
        subprocess.run(["cp", "-a", str(first.directory), str(second.directory)], check=True)
        began = time.perf_counter()
        subprocess.run(
            ["git", "clone", "--quiet", "--no-hardlinks", str(_SOURCE), str(first.directory / "root" / "serinette")],
            check=True,
        )
        clone_s = round(time.perf_counter() - began, 2)
        demo_s = first.timed("cd serinette && make demo")
        first_sound_s = round(time.perf_counter() - began, 2)
        _check_song(first.directory / "root" / "serinette" / "demo.mp3")
        again_s = first.timed("cd serinette && make demo")
        first.run("cd serinette && .venv/bin/pip wheel --quiet --no-deps --wheel-dir ../dist .")
        (wheel,) = (first.directory / "root" / "dist").glob("*.whl")
        shutil.copy(wheel, second.directory / "root")
        install_s = second.timed(f"python3 -m venv venv && venv/bin/pip install --quiet './{wheel.name}[cli]'")
        (port,) = free_ports(1)
        with _up(first, port, Path(name, "up.log")) as up_s:
            use_s = second.timed(f"export SERINETTE_URL=http://127.0.0.1:{port}\n{_USE}")
        for song in ("song.mp3", "again.mp3"):
            _check_song(second.directory / "root" / song)
    return {
        "suite": SUITE,
        "clone_s": clone_s,
        "first_demo_s": demo_s,
        "clone_to_first_sound_s": first_sound_s,
        "second_demo_s": again_s,
        "up_s": up_s,
        "wheel": {"install_s": install_s, "two_songs_s": use_s},
    }


def _check_song(path: Path) -> None:
    samples = decode(path, 48_000, 2, 60)
    duration_s, loudest = samples.shape[1] / 48_000, abs(samples).max()
    if abs(duration_s - 15) > 0.5 or loudest < 0.01:
        raise RuntimeError(f"{path} holds {duration_s:.1f} s, and its loudest sample is {loudest:.3f}")
