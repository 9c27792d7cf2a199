"""The run of `make bench-gpu`: its clock, its model, and each number written as soon as it is there."""

from __future__ import annotations

import faulthandler
import importlib
import itertools
import json
import math
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import floor
from benchmarks.engine.cases import let_go
from benchmarks.engine.full_size import SIZES, Sizes
from benchmarks.engine.speed import Clock, synchronize
from benchmarks.record import commit
from gpu_worker.engine.ace_step.footprint import decoder_line, transformer_curves
from gpu_worker.engine.interface import SongRequest
from gpu_worker.engine.memory.plan import CPU_WINDOWS, Need, Plan, plan
from serinette.job import Stage
from serinette.spec import GenerationSpec

Figures = dict[str, Any]

BUDGET_S = 570.0
GRACE_S = 15.0  # from the end of the time until a call that never comes back is ended
_PATIENCE = 3.0  # how often what a part may take by arithmetic it may take indeed
CAPTIONS = (
    "jazz piano, smooth",
    "lofi hip hop with a warm bass and vinyl noise",
    "trap",
    "a slow ballad for strings, far away, with a choir behind them and rain against the windows",
)
_SMALL_ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
_SMALL_BODY: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, **_SMALL_ATTENTION}
SMALL = Sizes(
    transformer={**_SMALL_BODY, "num_hidden_layers": 2, "in_channels": 24, "audio_acoustic_hidden_dim": 8},
    text={**_SMALL_BODY, "vocab_size": 257, "num_hidden_layers": 1, "max_position_embeddings": 4096},
    vae={
        "encoder_hidden_size": 16,
        "decoder_channels": 4,
        "decoder_input_channels": 8,
        "channel_multiples": [1, 2, 4, 8, 8],
        "downsampling_ratios": [2, 4, 4, 6, 10],
        "sampling_rate": 48_000,
    },
    conditions={
        **_SMALL_BODY,
        "text_hidden_dim": 64,
        "timbre_hidden_dim": 8,
        "num_lyric_encoder_hidden_layers": 1,
        "num_timbre_encoder_hidden_layers": 1,
    },
)


class Bench:
    """One run: the model, the clock, and what was measured."""

    def __init__(self, out: Path, size: str, budget_s: float, spent_s: float = 0.0) -> None:
        self.gpu = torch.cuda.is_available()
        self.device = "cuda" if self.gpu else "cpu"
        self.song_s = 60.0 if self.gpu else 1.5
        self.batches = (1, 4, 8) if self.gpu else (1, 2)
        self._out, self._budget_s, self._began_s = out, budget_s, time.perf_counter() - spent_s
        self.sizes = SIZES[size] if self.gpu else SMALL
        self.figures: Figures = {}
        self.failed: dict[str, str] = {}
        self.pipe: Any = None
        self.engine: Any = None
        self.novel = itertools.count()
        self.doing = ""
        self._commit = commit()

    @property
    def left_s(self) -> float:
        """Of the budget."""
        return self._budget_s - (time.perf_counter() - self._began_s)

    def note(self, name: str, value: object) -> None:
        """Keep one number, and write all of them."""
        self.figures[name] = value
        print(f"{time.perf_counter() - self._began_s:6.1f} s  {name}: {value}", flush=True)
        self.write()

    def needs(self, on_a_gpu_s: float) -> float:
        """What a part may take here: a tiny model's are quick."""
        return on_a_gpu_s if self.gpu else 0.0

    def write(self) -> None:
        """Everything up to now."""
        written = {
            "name": "gpu",
            "command": "python -m benchmarks.engine.gpu",
            "commit": self._commit,
            "size": "full" if self.gpu else "tiny",
            "failed": self.failed,
            "doing": self.doing,  # what hung, where the process was ended
            "figures": self.figures,
        }
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._out.write_text(json.dumps({**written, "machine": machine()}, indent=1, default=str))

    def part(self, name: str, needs_s: float, work: Callable[[Bench], None]) -> None:
        """Do one part if there is time, and for no longer than would leave the others none; what goes wrong in it is a
        result too.
        """
        needs_s = self.needs(needs_s)
        if self.left_s < needs_s:
            self.failed[name] = (
                f"left out: {self.left_s:.0f} s are left of {self._budget_s:.0f}, it may take {needs_s:.0f}"
            )
        else:
            self.doing = name
            self.write()
            try:
                with ended_after(min(self.left_s, _PATIENCE * needs_s or math.inf), self.left_s):
                    work(self)
            except Exception as error:
                self.failed[name] = repr(error)[:500]
            self.doing = ""
            let_go()  # only now, with the traceback gone, are a failed part's tensors free
        if name in self.failed:
            print(f"        {name}: {self.failed[name]}", flush=True)
            self.write()

    # -- what parts are made of

    def median_ms(self, work: Callable[[], object], runs: int = 5) -> float:
        """Milliseconds of warm work."""
        work()
        taken = []
        for _ in range(runs if self.gpu else 1):
            synchronize()
            began = time.perf_counter()
            work()
            synchronize()
            taken.append(time.perf_counter() - began)
        return round(1e3 * statistics.median(taken), 3)

    def requests(self, songs: int, duration_s: float, words: str = "") -> list[SongRequest]:
        """Songs of several captions."""
        specs = (
            GenerationSpec(prompt=CAPTIONS[seed % len(CAPTIONS)] + words, duration_s=duration_s, seed=seed)
            for seed in range(songs)
        )
        return [SongRequest(spec, seed) for seed, spec in enumerate(specs)]

    def timed(self, songs: int, duration_s: float) -> tuple[float, float, float]:
        """Milliseconds a song: whole, until it is decoded, decoded."""
        clock = Clock()
        synchronize()
        began = time.perf_counter()
        self.engine.generate_all(self.requests(songs, duration_s), clock)
        synchronize()
        ended, decoding = time.perf_counter(), clock.at[Stage.DECODING]
        return tuple(1e3 * part / songs for part in (ended - began, decoding - began, ended - decoding))  # type: ignore[return-value]

    def planned(self) -> Plan:
        """What fits on this card beside the weights, which are there already."""
        if not self.gpu:
            return Plan(False, CPU_WINDOWS, math.inf)
        transformer, vae = self.pipe.transformer, self.pipe.vae
        free_bytes, _ = torch.cuda.mem_get_info()
        need = Need(
            weights_bytes=0,  # they are there already
            largest_part_bytes=0,
            steps=transformer_curves(transformer.config, torch.bfloat16),
            decoder=decoder_line(vae.config, torch.bfloat16),
            frames_per_s=self.pipe.latents_per_second,
            max_duration_s=600.0,
            guidance=False,
        )
        return plan(need, free_bytes, offload=False)

    def with_floor(self, songs: int, row: Figures) -> Figures:
        """A row with the denoiser's share of the least time that the card's arithmetic allows."""
        peaks = floor.card(torch.cuda.get_device_name()) if self.gpu else None
        if peaks is None:
            return row
        transformer = self.pipe.transformer
        batch = floor.Batch(songs, self.song_s, self.engine.model.default_steps)
        weights = sum(weight.numel() for weight in transformer.parameters())
        denoise_ms = 1e3 * floor.denoise_floor_s(transformer.config, weights, peaks, batch) / songs
        return row | {"denoiser_share_of_floor": round(denoise_ms / row["denoise_ms"], 3)}

    def typical(self, songs: int, duration_s: float, runs: int = 3) -> Figures:
        """Medians of `timed`, warm."""
        self.timed(songs, duration_s)
        rows = zip(*(self.timed(songs, duration_s) for _ in range(runs if self.gpu else 1)), strict=True)
        whole, denoise, decoded = (round(statistics.median(row), 2) for row in rows)
        return {
            "ms_a_song": whole,
            "denoise_ms": denoise,
            "decode_ms": decoded,
            "songs_per_min": round(60_000 / whole, 1),
        }


@contextmanager
def ended_after(seconds: float, at_last_s: float) -> Iterator[None]:
    """Raise TimeoutError within after so long; a call into a driver that never comes back ends the process at last."""

    def end(*_: object) -> None:
        raise TimeoutError(f"not done when the time was over, after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    others_s, _ = signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds))
    faulthandler.dump_traceback_later(at_last_s + GRACE_S, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, others_s)


def process_age_s() -> float:
    """Seconds since this process was started: a cold disk takes half a minute for torch's libraries. 0 if unknown."""
    try:
        began_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - began_ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
    return age_s if 0 <= age_s < BUDGET_S else 0.0


def machine() -> Figures:
    """What was measured: the card by its maker's name, and the stack that ran, whatever is pinned."""
    versions: dict[str, str | None] = {}
    for package in ("torch", "diffusers", "transformers", "accelerate", "peft", "av", "triton"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]  # torch's
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), **versions},
        "packed_attention": _has("torch.nn.attention.varlen"),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _has(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True
