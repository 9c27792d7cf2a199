"""The figures of docs/benchmarks.md, from the newest raw results; scripts/check_benchmarks.py compares the two."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.record import newest
from scripts.check_benchmarks import lookup

PAGE = Path("docs/benchmarks.md")
BEGIN, END = "<!-- figures: made by `make bench` -->", "<!-- end of figures -->"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; not measured without a `benchmark`."""

    what: str
    benchmark: str = ""
    figure: str = ""
    digits: int = 0
    unit: str = ""
    target: str = ""


_RATIOS = "backlog.ratios.0"
ROWS = (
    Row("Second `make demo` on 2 cores, whole", "demo", "figures.wall_s.median", 1, "s", "under 30 s"),
    Row("From a clone in a fresh Debian to the first sound", "roots", "figures.clone_to_first_sound_s", 0, "s"),
    Row("The wheel with its command line, installed in another", "roots", "figures.wheel.install_s", 0, "s"),
    Row("Submit to start, idle warm worker, median", "songs", "figures.submit_to_start_ms.median", 1, "ms"),
    Row("Submit to start, idle warm worker, 95th percentile", "songs", "figures.submit_to_start_ms.p95", 1, "ms"),
    Row("Status polls, ratio to `/healthz`", "gateway-load", "figures.polls_to_healthz.median", 3),
    Row("Submits, ratio to `/healthz`", "gateway-load", "figures.submits_to_healthz.median", 3),
    Row("Status polls", "gateway-load", "figures.polls_per_s.median", 0, "a second"),
    Row("Submits, each flushed to disk", "gateway-load", "figures.submits_per_s.median", 0, "a second"),
    Row("`/healthz`, which does nothing", "gateway-load", "figures.healthz_per_s.median", 0, "a second"),
    *(
        Row(what, "peers", f"figures.{figure}.median", 2, "", target)
        for what, figure, target in (
            (
                "Submits as shipped, with keys and quotas, ratio to FastAPI + Celery's",
                "submit.serinette_process.to_celery",
                "at least 1.5",
            ),
            ("The same with `durability: fsync`", "submit.serinette_fsync.to_celery", "at least 1.5"),
            ("The same in the seed's dialect, with it", "submit.serinette_seed_dialect.to_celery", ""),
            ("FastAPI + plain RQ's submits, ratio to FastAPI + Celery's", "submit.rq.to_celery", ""),
            ("Polls, ratio to FastAPI + Celery's", "poll.serinette.to_celery", "at least 1"),
            ("FastAPI + plain RQ's polls, ratio to FastAPI + Celery's", "poll.rq.to_celery", ""),
            ("`/healthz`, ratio to a bare FastAPI route", "healthz.serinette.to_noop", "at least 0.85"),
        )
    ),
    *(
        Row(
            f"{step.capitalize()} where 1,000,000 jobs wait, ratio to 10 that wait",
            "depth",
            f"figures.{step}.deep_to_shallow",
            2,
            "",
            "at most 1.2",
        )
        for step in ("submit", "poll", "cancel")
    ),
    *(
        Row(f"Valkey for a job that {state}", "depth", f"figures.bytes_per_job.{name}.whole", 0, "bytes", target)
        for state, name, target in (
            ("waits", "waiting", ""),
            ("runs", "running", ""),
            ("has just ended", "ended", ""),
            ("ended some minutes ago", "ended_later", "at most 500"),
        )
    ),
    *(
        Row(f"One Valkey and a fleet, 100,000 jobs waiting: {what}", "fleet", f"figures.{figure}", digits, unit)
        for what, figure, digits, unit in (
            ("simulated workers", "steps.2.workers", 0, ""),
            ("Valkey's share of a core for 100 workers", "cpu_share_per_100_workers", 4, ""),
            ("its commands a second for 100 workers", "commands_per_s_per_100_workers", 0, ""),
            ("workers until it has seven tenths of a core", "workers_until_full", 0, ""),
            ("claims at twice the fleet's rate, share of those wanted", "claims_kept_up", 2, ""),
        )
    ),
    Row(
        "Submit to start of an idle slot, ratio to another checkout's",
        "start-latency",
        "figures.sent_to_start_this_to_other.median",
        2,
    ),
    Row("Import of the gateway", "gateway-import", "figures.import_s.median", 2, "s"),
    Row("Memory of the gateway, ready", "gateway-import", "figures.memory_mib.median", 0, "MiB"),
    Row(
        "Modules of torch, diffusers, transformers, worker in it", "gateway-import", "figures.heavy_modules", 0, "", "0"
    ),
    Row("`import serinette`", "client-import", "figures.import_serinette_ms.median", 1, "ms", "under 30 ms"),
    Row("The same, ratio to `import httpx`", "client-import", "figures.serinette_to_httpx.median", 4),
    Row(
        "`from serinette import Client`: httpx, pydantic, ours",
        "client-import",
        "figures.import_client_ms.median",
        0,
        "ms",
    ),
    Row(
        "Modules of httpx, pydantic, asyncio after `import serinette`",
        "client-import",
        "figures.heavy_modules",
        0,
        "",
        "0",
    ),
    Row("15 s song on the CPU, submit to end", "songs", "figures.wall_s.median", 2, "s"),
    Row(
        "The same as real-time factor (below `1`: faster than it plays)", "songs", "figures.real_time_factor.median", 3
    ),
    Row("The same, in the engine alone", "songs", "figures.sing_s.median", 2, "s"),
    Row("The first song of a process", "songs", "figures.first_song_wall_s", 2, "s"),
    Row("`serinette up` until a song can be generated", "songs", "figures.up_s", 1, "s"),
    Row("Load of the machine meanwhile, one-minute average", "songs", "machine.load_average_1m", 1),
    Row(
        "A quiet tenant's submits and polls beside a greedy one, 95th percentile above `2` times those alone and "
        "`20 ms`, the worst (below `0`: less)",
        "interference",
        "figures.worst_above_bound_ms",
        1,
        "ms",
        "at most 0",
    ),
    *(
        Row(f"Bundled model: songs whose {what} is heard, {whose}", "planned-songs", f"figures.{figure}", 2, "", target)
        for what, name in (("key", "key_found"), ("tempo", "tempo_found"))
        for whose, figure, target in (
            ("of metadata that the planner wrote", f"{name}.planned", ""),
            ("the same metadata given by the user", f"{name}.given", ""),
            ("ratio of the first to the second", f"{name}.planned_to_given", "at least 1"),
        )
    ),
    Row("Jobs that ended in every way and were deleted by age", "forgetting", "figures.jobs"),
    Row("Redis's memory after them, more than before", "forgetting", "figures.grown_bytes", 0, "bytes", "0 a job"),
    Row("Redis's keys after them, more than before", "forgetting", "figures.grown_keys", 0, "", "0"),
    Row("Files left in the store after them", "forgetting", "figures.after.files", 0, "", "0"),
    Row("Songs in a row on one `serinette up`, every fiftieth canceled", "soak", "figures.songs"),
    Row("Of them lost", "soak", "figures.lost", 0, "", "0"),
    Row("Redis's keys after they were deleted by age, more than before", "soak", "figures.grown_keys", 0, "", "0"),
    Row("Files left in the store after that", "soak", "figures.after.files", 0, "", "0"),
    Row("Memory of the engine after that, more than before", "soak", "figures.grown_mib.engine", 1, "MiB"),
    Row("The same of the gateway", "soak", "figures.grown_mib.gateway", 1, "MiB"),
    Row("The same of the two slots together", "soak", "figures.grown_mib.slots", 1, "MiB"),
    Row("Of that in the second half", "soak", "figures.grown_mib_in_the_second_half.slots", 1, "MiB"),
    Row("`make chaos`: jobs submitted while every process is killed at random", "chaos", "figures.counts.submitted"),
    Row("Of them lost", "chaos", "figures.counts.lost", 0, "", "0"),
    Row("Of them stuck", "chaos", "figures.counts.stuck", 0, "", "0"),
    Row("Of them doubled", "chaos", "figures.counts.duplicated", 0, "", "0"),
    Row("Kills, and times without memory or disk, each of a process that held work", "chaos", "figures.kills_in_all"),
    Row("Seconds that the store was away meanwhile", "chaos", "figures.outage_s"),
    Row(
        "From the kill of a whole worker until its jobs waited again, slowest",
        "chaos",
        "figures.recovery_s.supervisor.slowest",
        1,
        "s",
        "under 30 s",
    ),
    Row("Load of the machine as it ended, one-minute average", "chaos", "machine.load_average_1m", 1),
    Row("Lines of a batch, gateway and controller killed on the way", "batch", "figures.lines"),
    Row("Of them lost", "batch", "figures.lines_lost", 0, "", "0"),
    Row("Of them begun twice", "batch", "figures.lines_begun_twice", 0, "", "0"),
    Row(
        "Wait of an interactive song meanwhile, ratio to slots that are busy without a batch",
        "batch",
        "figures.interactive_wait_batch_to_busy",
        2,
    ),
    Row("Memory of the gateway late in it, ratio to early", "batch", "figures.gateway_mib.late_to_early", 2),
    Row("The same of the controller", "batch", "figures.controller_mib.late_to_early", 2),
    Row("The same of Redis, with the jobs of the last `120 s`", "batch", "figures.redis_mib.late_to_early", 2),
    Row("The same for each key that Redis holds", "batch", "figures.redis_kib_per_key.late_to_early", 2),
    Row("Lines that waited in the lane, of `200`", "batch", "figures.waiting_lines.median", 0),
    Row("CPU time of the controller for each line", "batch", "figures.controller_cpu_ms_per_line", 1, "ms"),
    Row("Load of the machine as it ended, one-minute average", "batch", "machine.load_average_1m", 1),
    *(
        Row(what, "engine", f"figures.{figure}", digits, unit)
        for what, figure, digits, unit in (
            ("Worker on the CPU under backlog: songs a minute, ratio to diffusers' loop", f"{_RATIOS}.to_plain", 2, ""),
            ("The same, ratio to that loop at its best batch", f"{_RATIOS}.to_plain_at_its_best", 2, ""),
            ("Two slots before one engine, ratio to one slot", f"{_RATIOS}.overlap", 2, ""),
            ("Batches of two songs, ratio to one song at a time", f"{_RATIOS}.batching", 2, ""),
            ("Busy share of the engine, two slots", "backlog.pod.1.engine_busy_share", 2, ""),
            ("The engine's process on the CPU: import", "cold_start.eager.import_s", 1, "s"),
            ("The same: load", "cold_start.eager.load_s", 1, "s"),
            ("The same: first song, of 30 s", "cold_start.eager.first_song_s", 1, "s"),
        )
    ),
    Row("Load of the machine as it ended, one-minute average", "engine", "machine.load_average_1m", 1),
    *(
        Row(
            f"Busy share of an engine of `{rate}` songs a second, encoders that sleep `{encode}`",
            "feeding",
            figure,
            3,
            "",
            target,
        )
        for rate, encode, figure, target in (
            ("2", "1.3 s", "figures.feeds.0.engine_busy_share", "at least 0.95"),
            ("8", "1.3 s", "figures.feeds.1.engine_busy_share", "at least 0.95"),
            ("16", "0.9 s", "figures.feeds.2.engine_busy_share", "at least 0.95"),
            ("5", "1.3 s, two slots", "figures.starved.engine_busy_share", ""),
        )
    ),
    *(
        Row(
            f"Songs a second that the engine of `{rate}` generated meanwhile",
            "feeding",
            f"figures.feeds.{place}.{name}",
            1,
        )
        for place, (rate, name) in enumerate((rate, "songs_per_s_generated") for rate in ("2", "8", "16"))
    ),
    Row("Load of the machine as it ended, one-minute average", "feeding", "machine.load_average_1m", 1),
    *(
        Row(f"On a GPU: {what}", "gpu", f"figures.{figure}", digits, unit, target)
        for what, figure, digits, unit, target in (
            ("codes that a planner of 1.7B writes, one guided song", "planner_tokens_per_s_2_rows", 0, "a second", ""),
            ("the same, eight together", "planner_tokens_per_s_16_rows", 0, "a second", ""),
            ("60 s songs with flac under backlog", "backlog_flac_songs_per_min", 0, "a minute", "at least 640"),
            (
                "the same, ratio to diffusers' loop with an mp3 in series",
                "backlog_to_stock_songs_per_min_mp3_in_series",
                2,
                "",
                "at least 10",
            ),
            (
                "the same, ratio to that loop without encoding",
                "backlog_to_stock_songs_per_min",
                2,
                "",
                "at least 2",
            ),
            ("the engine's busy share under backlog", "backlog_busy_share", 3, "", "at least 0.95"),
            ("a novel length and text, ratio to a known one", "novel_to_known", 2, "", "at most 1.2"),
            ("a batch of 8, eager", "eager_batch_8.songs_per_min", 0, "songs a minute", ""),
            ("the same, compiled", "compiled_batch_8.songs_per_min", 0, "songs a minute", ""),
            ("a song in a batch and alone, in bf16, of rms, the worst of four", "batch_to_alone_rms_share", 4, "", ""),
        )
    ),
    Row("Gateway on several machines, behind an ingress"),
)


def cell(row: Row) -> str:
    """The figure with its link, or NOT MEASURED and the command that would."""
    path = newest(row.benchmark) if row.benchmark else None
    value = lookup(json.loads(path.read_text()), row.figure) if path else None
    if path is None or value is None:
        command = "make bench-gpu" if row.benchmark == "gpu" else f"make bench ARGS={row.benchmark}"
        return f"NOT MEASURED: `{command}`" if row.benchmark else "NOT MEASURED"
    return f"[{value:.{row.digits}f}](../{path}#{row.figure}) {row.unit}".rstrip()


def results_of(benchmark: str, raw: object) -> str:
    """The rows of one benchmark, in plain text, from its raw result."""
    lines = []
    for row in ROWS:
        if row.benchmark == benchmark:
            value = lookup(raw, row.figure)
            shown = "NOT MEASURED" if value is None else f"{value:.{row.digits}f} {row.unit}"
            lines.append(f"{row.what:<75} {shown:<22} {row.target}".rstrip())
    return "\n".join(lines)


def table() -> str:
    """The table, in Markdown. Numbers in the first column are in `code`: they are conditions, not results."""
    lines = ["| what | measured | target |", "| --- | --- | --- |"]
    lines += [f"| {_coded(row.what)} | {cell(row)} | {f'`{row.target}`' if row.target else ''} |" for row in ROWS]
    return "\n".join(lines)


def _coded(words: str) -> str:
    parts = words.split("`")
    parts[::2] = [re.sub(r"\b\w*\d(?:[\w.,]*\w)?", r"`\g<0>`", part) for part in parts[::2]]
    return "`".join(parts)


def update() -> None:
    """Write the table into the page, between its markers."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}")
