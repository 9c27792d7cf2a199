"""`make bench-gpu`: the full-size model on this machine's GPU, start to table within ten minutes.

It needs torch, diffusers, transformers and this repository: no server, no checkpoint, no other package than those of
the engine (songs are encoded where PyAV is there), and no version of them but one that does what is asked. Each part
is caught and ended when the time is over; results are written after each number, so that a run that is cut short has
what it measured. Without a GPU the same code runs with a tiny model, to prove it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AceStepPipeline
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks import page
from benchmarks.engine.cases import BETWEEN_RUNS, as_engine
from benchmarks.engine.full_size import PLANNER, PLANNER_CODES, SIZES, assemble
from benchmarks.engine.gpu_bench import BUDGET_S, CAPTIONS, SMALL, Bench, Figures, machine, process_age_s
from benchmarks.engine.speed import Clock, synchronize
from benchmarks.record import RESULTS
from gpu_worker.engine.ace_step.adapters import Adapters
from gpu_worker.engine.ace_step.engine import AceStepEngine
from gpu_worker.engine.ace_step.loading import fold_weight_norm, part_audio, settle_kernels
from gpu_worker.engine.interface import Checkpoint, Song, SongRequest
from gpu_worker.engine.memory.plan import CARD_FRAMES
from gpu_worker.engine.memory.windows import Windows, decode
from gpu_worker.planner.planner import Planner
from gpu_worker.planner.prompts import Metadata
from gpu_worker.planner.questions import Song as PlannedSong
from gpu_worker.wire import share_samples
from serinette.spec import AudioFormat
from tests.tiny_checkpoint import tiny_tokenizer

ENCODES = importlib.util.find_spec("av") is not None


def ceilings(bench: Bench) -> None:
    """What the card does at its best."""
    side = 8192 if bench.gpu else 256
    one = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    bench.note("matmul_tflop_per_s", round(2 * side**3 / bench.median_ms(lambda: one @ one) / 1e9, 1))
    memory = torch.empty(2**31 if bench.gpu else 2**20, device=bench.device, dtype=torch.uint8)
    other = torch.empty_like(memory)
    copied_ms = bench.median_ms(lambda: other.copy_(memory))
    bench.note("copy_tb_per_s", round(2 * memory.numel() / copied_ms / 1e9, 3))


def attention(bench: Bench) -> None:
    """A shape for the first time, and again: with a mask and without, with cuDNN's kernels and without."""
    heads, dims = (16, 128) if bench.gpu else (4, 16)
    for cudnn in (True, False) if bench.gpu else (False,):
        if bench.gpu:
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
        for masked in (True, False):
            first = []
            for tokens in (701, 733, 787):
                queries, keys = (
                    torch.randn(1, each, tokens, dims, device=bench.device, dtype=torch.bfloat16)
                    for each in (heads, heads // 2)
                )
                mask = torch.zeros(1, 1, tokens, tokens, device=bench.device, dtype=queries.dtype) if masked else None

                def attend(queries: Any = queries, keys: Any = keys, mask: Any = mask) -> object:  # noqa: ANN401
                    return scaled_dot_product_attention(queries, keys, keys, attn_mask=mask, enable_gqa=True)

                synchronize()
                began = time.perf_counter()
                attend()
                synchronize()
                first.append(round(1e3 * (time.perf_counter() - began), 2))
            name = f"attention_{'masked' if masked else 'plain'}_cudnn_{'on' if cudnn else 'off'}"
            bench.note(name, {"first_ms": first, "again_ms": bench.median_ms(attend, 20)})
    if bench.gpu:
        torch.backends.cuda.enable_cudnn_sdp(True)


def assembled(bench: Bench) -> None:
    """The pipeline, put together on the device without a file."""
    bench.pipe = assemble(bench.sizes, bench.device)
    bench.pipe.set_progress_bar_config(disable=True)
    for name in ("transformer", "vae", "text_encoder", "condition_encoder"):
        getattr(bench.pipe, name).eval().requires_grad_(False)
    synchronize()
    bench.note("assembled", True)


def stock(bench: Bench) -> None:
    """The loop of diffusers' own pipeline, one song a call: without a file, and with an mp3 in series where PyAV is."""
    pipe = AceStepPipeline(**bench.pipe.components)
    pipe.set_progress_bar_config(disable=True)

    def one() -> Any:  # noqa: ANN401  # diffusers ships no types
        return pipe(
            prompt=CAPTIONS[0],
            lyrics="[Instrumental]",
            audio_duration=bench.song_s,
            generator=torch.Generator().manual_seed(1),
        ).audios

    loop_ms = bench.median_ms(one, 3)
    bench.note("stock_songs_per_min", round(60_000 / loop_ms, 1))
    if not ENCODES:
        return
    samples = one()[0].float().cpu().numpy()
    for format in (AudioFormat.MP3, AudioFormat.FLAC):
        encoded_ms = bench.median_ms(lambda format=format: _encoded(samples, format), 1)  # type: ignore[misc]
        bench.note(f"stock_songs_per_min_{format}_in_series", round(60_000 / (loop_ms + encoded_ms), 1))


def _encoded(samples: Any, format: AudioFormat) -> bytes:  # noqa: ANN401  # an array
    encode = importlib.import_module("serinette.media").encode
    made: bytes = encode(samples, 48_000, format)
    return made


def made_ready(bench: Bench) -> None:
    """The engine around the same weights, with what it plans for this card."""
    if bench.pipe is None:
        assembled(bench)
    settle_kernels(bench.pipe.device)
    fold_weight_norm(bench.pipe.vae)
    fits = bench.planned()
    part_audio(bench.pipe.vae, fits)
    measured = Checkpoint(Path(), "measured", "random")
    bench.engine = AceStepEngine(bench.pipe, Adapters(bench.pipe, {}, lambda place, _: Path(place), 1), fits, measured)
    bench.note("plan", repr(fits))


def eager(bench: Bench) -> None:
    """Songs a minute by batch, and their share of the card's floor."""
    for songs in bench.batches:
        bench.note(f"eager_batch_{songs}", bench.with_floor(songs, bench.typical(songs, bench.song_s)))


def novel(bench: Bench) -> None:
    """Songs of lengths and texts that the process has not seen, each once; and one of them again."""
    known_ms = bench.typical(1, bench.song_s)["ms_a_song"]
    taken = []
    for _ in range(6 if bench.gpu else 2):
        number = next(bench.novel)
        away = (1 + number // 2) * (-1) ** number  # longer and shorter in turns: as much music as the known song has
        request = bench.requests(1, bench.song_s * (1 + 0.01 * away), " and more" * (number + 1))
        synchronize()
        began = time.perf_counter()
        bench.engine.generate_all(request, Clock())
        synchronize()
        taken.append(1e3 * (time.perf_counter() - began))
    bench.note("novel_ms", [round(each, 1) for each in taken])
    bench.note("novel_to_known", round(statistics.median(taken) / known_ms, 3))


def equal(bench: Bench) -> None:
    """How far songs of a batch are from themselves alone, in the device's own dtype."""
    requests = bench.requests(4, 8.0 if bench.gpu else 1.5)
    together = bench.engine.generate_all(requests, Clock())
    away = []
    for request, song in zip(requests, together, strict=True):
        (alone,) = bench.engine.generate_all([request], Clock())
        away.append(_away(song, alone))
    bench.note("batch_to_alone_rms_shares", [round(each, 5) for each in away])
    bench.note("batch_to_alone_rms_share", round(max(away), 5))
    (again,) = bench.engine.generate_all([requests[-1]], Clock())
    bench.note("alone_again_same_bits", bool(np.array_equal(alone.samples, again.samples)))
    bench.note("samples_finite", bool(np.isfinite(again.samples).all()))


def _away(song: Song, alone: Song) -> float:
    difference = song.samples - alone.samples
    return float(np.sqrt((difference**2).mean()) / np.sqrt((alone.samples**2).mean()))


def decoding(bench: Bench) -> None:
    """A song decoded whole and in windows, several at once; each as it is handed over, on the CPU in float32."""
    vae, frames = bench.pipe.vae, round(bench.song_s * bench.pipe.latents_per_second)
    latents = torch.randn(1, frames, vae.config.decoder_input_channels, device=bench.device, dtype=vae.dtype)
    ways = {f"windows_{at_once}": Windows(CARD_FRAMES, at_once, fixed=True) for at_once in (1, 4, 8, 16)}
    ways = {"whole": Windows(frames, 1, fixed=False), **ways}
    samples = {}
    with torch.no_grad():
        for name, windows in ways.items():

            def decoded(windows: Windows = windows) -> torch.Tensor:
                return dict(decode(vae.decoder, latents, [frames], windows, lambda _: True))[0]

            samples[name] = decoded()
            bench.note(f"decode_{name}_ms", bench.median_ms(decoded, 3))
    whole = samples.pop("whole")
    furthest = max(float((parted - whole).abs().max()) for parted in samples.values())
    bench.note("windows_to_whole", furthest / float(whole.abs().max()))


def compiled(bench: Bench) -> None:
    """The transformer's blocks and the decoder compiled, as SERINETTE_COMPILE does."""
    forwards = {module: module.forward for module in (*bench.pipe.transformer.layers, bench.pipe.vae.decoder)}
    bench.note("compiled_before", (BETWEEN_RUNS / "checkpoints" / "compiled").exists())  # then less is to be compiled
    began = time.perf_counter()
    try:
        bench.engine.compile()
        bench.timed(1, bench.song_s)
        bench.timed(bench.batches[-1], bench.song_s)
        bench.note("compile_s", round(time.perf_counter() - began, 1))
        torch.compiler.set_stance("eager_on_recompile")  # as in a worker: nothing that is measured is a compiler
        for songs in (bench.batches[0], bench.batches[-1]):
            bench.note(f"compiled_batch_{songs}", bench.with_floor(songs, bench.typical(songs, bench.song_s)))
    except BaseException:  # what does not compile is measured eagerly from here on
        for module, forward in forwards.items():
            module.forward = forward
        raise


def backlog(bench: Bench) -> None:
    """Batches of texts that differ, each song handed over as the engine's process does, flac of it in processes beside
    (where PyAV is): songs a minute, and the share of the time that the model was not kept waiting.
    """
    songs, seconds = bench.batches[-1], 25.0 if bench.gpu else 1.0
    cores = max(1, (os.cpu_count() or 2) - 2)
    # Forked, as a data loader's are: they load nothing, and touch no device.
    with ProcessPoolExecutor(cores, get_context("fork"), partial(os.nice, 10)) as pool:
        pool.submit(_flac_of, None).result()
        files, busy_s, began = [], 0.0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            at_s = time.perf_counter()
            for song in _generated(bench, bench.requests(songs, bench.song_s, f" number {next(bench.novel)}")):
                busy_s += time.perf_counter() - at_s
                files.append(_handed_over(song, pool))
                at_s = time.perf_counter()
            busy_s += time.perf_counter() - at_s
        done = [file.result() for file in files]
        wall_s = time.perf_counter() - began
    bench.note("backlog_encoded", "flac" if ENCODES else "nothing, as PyAV is not installed")
    name = "backlog_flac_songs_per_min" if ENCODES else "backlog_songs_per_min_without_encoding"
    bench.note(name, round(60 * len(done) / wall_s, 1))
    bench.note("backlog_busy_share", round(busy_s / wall_s, 3))
    for name in ("stock_songs_per_min", "stock_songs_per_min_mp3_in_series"):
        if name in bench.figures:
            bench.note(f"backlog_to_{name}", round(60 * len(done) / wall_s / bench.figures[name], 2))


def _generated(bench: Bench, requests: Sequence[SongRequest]) -> Iterator[Song]:
    for _, song in bench.engine.generate(requests, lambda *_: frozenset()):
        yield song


def _handed_over(song: Song, pool: Executor) -> Future[int]:
    descriptor = share_samples(song.samples)
    file = pool.submit(_flac_of, f"/proc/{os.getpid()}/fd/{descriptor}")
    file.add_done_callback(lambda _: os.close(descriptor))
    return file


def _flac_of(samples: str | None) -> int:
    """Bytes of the file that is made of stereo samples in a descriptor."""
    if samples is None or not ENCODES:
        return 0
    return len(_encoded(np.fromfile(samples, "<f4").reshape(2, -1), AudioFormat.FLAC))


def long(bench: Bench) -> None:
    """Songs of 400 and 600 s."""
    for duration_s in (400.0, 600.0) if bench.gpu else (12.0,):
        if bench.gpu:
            torch.cuda.reset_peak_memory_stats()
        whole, denoise, decoded = bench.timed(1, duration_s)
        bench.note(f"song_of_{duration_s:g}_s_ms", [round(each) for each in (whole, denoise, decoded)])
        if bench.gpu:
            bench.note(f"song_of_{duration_s:g}_s_peak_gib", round(torch.cuda.max_memory_allocated() / 2**30, 1))


def planning(bench: Bench) -> None:
    """Audio codes that the planner writes a second, for one song and for eight together: guidance doubles the rows."""
    sizes, codes = (PLANNER, PLANNER_CODES) if bench.gpu else ({**SMALL.text, "vocab_size": 512}, 16)
    tokenizer = tiny_tokenizer(range(codes))
    torch.manual_seed(0)
    with torch.device(bench.device):
        model = Qwen3ForCausalLM(Qwen3Config(**sizes))
    planner = Planner.of_parts(model.bfloat16() if bench.gpu else model, tokenizer, device=torch.device(bench.device))
    given = Metadata("calm", 90, bench.song_s, "C major", "4", "en")
    for rows in (2, 16):
        songs = [PlannedSong(CAPTIONS[0], "", given, seed=seed) for seed in range(rows // 2)]
        planner.codes(songs[:1], _unobserved)  # the first call in a process is slower
        synchronize()
        began = time.perf_counter()
        written = sum(map(len, planner.codes(songs, _unobserved)))
        synchronize()
        bench.note(f"planner_tokens_per_s_{rows}_rows", round(written / (time.perf_counter() - began), 1))


def _unobserved(_done: int, _total: int | None) -> frozenset[int]:
    return frozenset()


# What each part may take at the longest, seconds on an H200 by arithmetic; the important ones first.
PARTS: tuple[tuple[str, float, Callable[[Bench], None]], ...] = (
    ("ceilings", 10, ceilings),
    ("assembled", 30, assembled),
    ("stock", 40, stock),
    ("made_ready", 20, made_ready),
    ("eager", 60, eager),
    ("novel", 20, novel),
    ("equal", 20, equal),
    ("backlog", 45, backlog),
    ("decoding", 30, decoding),
    ("attention", 20, attention),
    ("planning", 40, planning),
    ("long", 60, long),
    ("compiled", 150, compiled),
    ("backlog_compiled", 45, backlog),
)


def main(arguments: Sequence[str] | None = None, spent_s: float = 0.0) -> int:
    """Run every part; 1 if one of them failed. `spent_s` of the budget went before."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine.gpu", description=__doc__)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    kind = "gpu" if torch.cuda.is_available() else "gpu-tried-on-a-cpu"
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/results/{day}-{kind}.json"))
    parser.add_argument("--size", choices=tuple(SIZES), default="turbo")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for everything")
    asked = parser.parse_args(arguments)
    bench = Bench(asked.out, asked.size, asked.budget, spent_s)
    print(json.dumps(machine()), flush=True)
    before: Figures = {}
    try:
        for name, needs_s, work in PARTS:
            if name == "backlog_compiled":  # the same part once more: its figures eager are kept beside
                before = {key: value for key, value in bench.figures.items() if key.startswith("backlog")}
            bench.part(name, needs_s, work)
    finally:
        torch.compiler.set_stance("default")
    if before:
        bench.note("backlog_eager", before)
    print(page.results_of("gpu", {"figures": bench.figures}), flush=True)
    if bench.gpu and asked.out.resolve().parent == RESULTS.resolve():
        page.update()
    print(f"{asked.out}: {len(bench.figures)} figures, {len(bench.failed)} parts failed or left out", flush=True)
    return 1 if bench.failed else 0


if __name__ == "__main__":
    as_engine("benchmarks.engine.gpu", sys.argv[1:])
    sys.exit(main(spent_s=process_age_s()))
