"""The supervisor of a worker pod: an engine and slots. It keeps them alive, reports them and drains them in order."""

from __future__ import annotations

import logging
import secrets
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType

from gpu_worker.metrics import Pod, WorkerMetrics
from gpu_worker.presence_reporter import PresenceReporter
from gpu_worker.process_setup import (
    CONFIGURATION_EXIT_CODE,
    FULL_DISK_EXIT_CODE,
    SLOT_ENVIRONMENT,
    TROUBLES,
    engine_environment,
    slot_file,
    unless_set,
)
from gpu_worker.service_watch import ServiceWatch
from gpu_worker.settings import WorkerSettings
from gpu_worker.wire import AskVitals, EngineLink, Hello, Vitals
from serinette.checkpoints import Fetched, fetched_of
from serinette.housekeeping import HousekeepingRedis
from serinette.job import WaitingCode, now
from serinette.presence import ColdStart, Presence, WorkerStage
from serinette.settings import connect_redis
from serinette.supervisor import POLL_S, Child, ChildSpec, Notice, Phase, Supervisor

log = logging.getLogger(__name__)

_SLOT_HEALTHY_AFTER_S = 10.0
# Beyond the drain: for a job that is given back, an engine that is asked to stop, a Redis that is slow just then.
_DRAIN_MARGIN_S = 15.0
_STOP_TIMEOUT_S = 10.0
# Between two questions for the engine's vitals: more often than metrics are scraped.
_ASK_VITALS_EVERY_S = 5.0
_LOOK_AT_FILES_EVERY_S = 2.0
# In the run directory while the model is loaded: a look at a file is all that the platform's probe costs.
READY_FILE = "ready"


class SlotChild(Child):
    """A slot, under another name at each start: RQ refuses the name of a process that was killed a moment ago."""

    def __init__(self, number: int, worker: str, run_dir: Path, environment: dict[str, str]) -> None:
        command = (sys.executable, "-m", "gpu_worker.slot")
        super().__init__(
            ChildSpec(
                f"slot {number}",
                command,
                {**unless_set(SLOT_ENVIRONMENT), **environment},
                healthy_after_s=_SLOT_HEALTHY_AFTER_S,
                stop_timeout_s=_STOP_TIMEOUT_S,
            )
        )
        self._name_prefix = f"{worker}.{number}"
        self._run_dir = run_dir
        self.rq_name = ""

    def command(self) -> Sequence[str]:
        """With its name."""
        self.rq_name = f"{self._name_prefix}.{secrets.token_hex(3)}"
        return [*self.spec.command, "--name", self.rq_name]

    @property
    def busy(self) -> bool:
        """Whether it holds a job."""
        return self.pid is not None and slot_file(self._run_dir, self.rq_name, "busy").exists()

    @property
    def up(self) -> bool:
        """Whether it can claim jobs: it is registered, and in its loop."""
        return self.pid is not None and slot_file(self._run_dir, self.rq_name, "up").exists()

    @property
    def full(self) -> bool:
        """Whether it claims no jobs, because too many songs wait for the store."""
        return self.pid is not None and slot_file(self._run_dir, self.rq_name, "full").exists()

    def kill(self) -> None:
        """What it left in the run directory goes, too."""
        super().kill()
        for file in self._run_dir.glob(f"{self.rq_name}.*") if self.rq_name else ():
            file.unlink(missing_ok=True)


class PodSupervisor:
    """Starts everything in `run`; ends it on SIGTERM or SIGINT. A second signal has running jobs given back at once."""

    def __init__(self, settings: WorkerSettings, run_dir: Path) -> None:
        """`run_dir`: this supervisor's own directory."""
        self._settings = settings = settings.model_copy(update={"run_dir": run_dir})
        self._ready_file = run_dir / READY_FILE
        self.name = f"{socket.gethostname()}-{secrets.token_hex(3)}"
        environment = {"SERINETTE_RUN_DIR": str(run_dir)}
        self._engine = Child(
            ChildSpec(
                "engine",
                (sys.executable, "-m", settings.engine_module),
                {**engine_environment(settings.work_dir), **environment},
                healthy_after_s=float("inf"),  # but when it says that it is ready
                start_timeout_s=settings.engine_start_timeout_s,
                stop_timeout_s=_STOP_TIMEOUT_S,
            )
        )
        self._slots = [SlotChild(number, self.name, run_dir, environment) for number in range(settings.slots)]
        self._children = Supervisor(self._on_notice)
        for child in (self._engine, *self._slots):
            self._children.add(child)
        self._link = EngineLink(settings.engine_socket)
        self._ask_vitals_at_s = 0.0
        self._signals = 0
        self._signals_passed_on = 0
        self._drain_ends_at_s = float("inf")
        self._exit_status = 0
        self._services = ServiceWatch(
            [name for name in settings.own_services.split(",") if name], settings.services_gone_s
        )
        self._presence = Presence(
            name=self.name, pool=settings.pool, stage=WorkerStage.STARTING, slots=settings.slots, started_at=now()
        )
        redis = HousekeepingRedis(connection_pool=connect_redis(settings).connection_pool)
        self._reporter = PresenceReporter(redis, settings.keys, self._presence)
        self._loading_since: datetime | None = None
        self._look_at_files_s = 0.0
        self._seen = Fetched(0, 0)
        self._deaths: Counter[str] = Counter()
        self._cold_start: dict[str, float] = {}
        self.metrics = WorkerMetrics(self._presence)

    def run(self) -> int:
        """Run until a signal comes and the slots have left; the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        log.info("worker %s: pool %s, %d slots", self.name, self._settings.pool, self._settings.slots)
        self._reporter.start()
        while not self._drained() and self._exit_status == 0:
            self._tick(time.monotonic())
            time.sleep(POLL_S)
        self._link.close()
        self._children.stop(in_a_hurry=lambda: self._services.gone)
        self._reporter.stop()
        log.info("worker %s left", self.name)
        return self._exit_status

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _drained(self) -> bool:
        if self._signals == 0:
            return False
        if self._services.gone:
            log.error("the release's own Services are gone, as after an uninstall: nothing is left to finish for")
            return True
        return all(slot.pid is None for slot in self._slots)

    def _tick(self, at_s: float) -> None:
        self._children.tick()
        hello = self._poll_engine(at_s)
        if hello and hello.stage == "ready" and not self._engine.history.healthy:
            log.info("engine ready on %s", hello.device)
            self._engine.mark_healthy()
        if self._signals > self._signals_passed_on:
            self._drain(at_s)
        elif at_s > self._drain_ends_at_s:
            for slot in self._slots:
                if slot.running:
                    log.error("%s did not leave in time and is killed; its job returns to its lane", slot.spec.name)
                    slot.signal(signal.SIGKILL)
        self._report(hello)

    def _poll_engine(self, at_s: float) -> Hello | None:
        """Its last report of itself, None while there is none; a busy engine is never waited for."""
        self._link.listen()
        if self._link.hello and at_s >= self._ask_vitals_at_s:
            self._ask_vitals_at_s = at_s + _ASK_VITALS_EVERY_S
            try:
                self._link.connection.send(AskVitals(), timeout_s=POLL_S)
            except OSError:
                self._link.close()
        return self._link.hello

    def _on_notice(self, notice: Notice) -> None:
        if notice.phase is Phase.LATE:
            log.error("the %s %s", notice.name, notice.detail)
        if notice.phase is not Phase.DIED:
            return
        children: dict[str, Child] = {child.spec.name: child for child in (self._engine, *self._slots)}
        child = children[notice.name]
        if isinstance(child, SlotChild) and child.exit_status != 0:
            self._reporter.slot_died(child.rq_name)
        if child.restarts:
            self._deaths[notice.name.partition(" ")[0]] += 1
        log.log(logging.WARNING if child.restarts else logging.INFO, "%s %s", notice.name, notice.detail)
        no_room = child is self._engine and child.exit_status == FULL_DISK_EXIT_CODE
        if child.exit_status == CONFIGURATION_EXIT_CODE or no_room:
            why = "has no room on its disk" if no_room else "refuses its configuration"
            self._reporter.load_failed(f"the {notice.name} {why}; see its log")
            log.critical("%s %s, and so this worker ends: see above", notice.name, why)
            self._exit_status = FULL_DISK_EXIT_CODE if no_room else CONFIGURATION_EXIT_CODE
        elif child is self._engine and child.history.deaths and self._signals == 0:
            self._reporter.load_failed(self._trouble()[1])

    def _drain(self, at_s: float) -> None:
        """Have the slots leave; the engine is kept, and restarted, as a job in hand may need it."""
        if self._signals_passed_on == 0:
            log.info("asked to leave: %d slots are busy", sum(slot.busy for slot in self._slots))
            settings = self._settings
            self._services.start()
            self._drain_ends_at_s = at_s + settings.drain_timeout_s + settings.cancel_timeout_s + _DRAIN_MARGIN_S
        self._signals_passed_on = self._signals
        for slot in self._slots:
            slot.restarts = False
            slot.signal(signal.SIGTERM)

    def _report(self, hello: Hello | None) -> None:
        stage = self._stage(hello)
        trouble, message = self._trouble()
        fetched = self._fetched(hello)
        if self._presence.stage is WorkerStage.READY is not stage:
            self._loading_since = now()
        if stage is not WorkerStage.READY:
            self._ready_file.unlink(missing_ok=True)
        elif not self._ready_file.exists():
            self._ready_file.touch()
        self._presence = self._presence.model_copy(
            update={
                "stage": stage,
                "busy_slots": sum(slot.busy for slot in self._slots),
                "device": hello.device if hello else "",
                "model": hello.model if hello else None,
                "loading_since": self._loading_since,
                "fetched_bytes": fetched.done_bytes,
                "checkpoint_bytes": fetched.size_bytes,
                "trouble": trouble,
                "message": message,
                "cold_start": self._seen_of_start(hello),
            }
        )
        self._reporter.update(self._presence)
        self.metrics.pod = Pod(self._presence, self._link.vitals, self._reporter.cold_start_s, self._deaths.copy())

    def _fetched(self, hello: Hello | None) -> Fetched:
        """How much of its checkpoint has come; nothing when it is there."""
        if hello is None or hello.stage == "ready":
            return Fetched(0, 0)
        if time.monotonic() >= self._look_at_files_s:
            self._look_at_files_s = time.monotonic() + _LOOK_AT_FILES_EVERY_S
            models = filter(None, (self._settings.model, self._settings.planner_model))
            self._seen = fetched_of(self._settings.work_dir / "checkpoints", models)
        return Fetched(0, 0) if self._seen.whole else self._seen

    def _seen_of_start(self, hello: Hello | None) -> ColdStart:
        """What is known of this worker's start."""
        if self._deaths["engine"] == 0:
            self._cold_start = parts_of_start(self._cold_start, hello, self._link.vitals)
        return ColdStart(**self._reporter.pod_start, **self._cold_start)

    def _stage(self, hello: Hello | None) -> WorkerStage:
        if self._signals:
            return WorkerStage.DRAINING
        if hello is None:
            return WorkerStage.STARTING
        return WorkerStage.READY if hello.stage == "ready" and self._slots_up else WorkerStage.LOADING

    @property
    def _slots_up(self) -> bool:
        return any(slot.up for slot in self._slots)

    def _trouble(self) -> tuple[WaitingCode | None, str]:
        """What keeps jobs from being claimed, and what ended that is needed for it; None and '' when nothing does."""
        failing: Child = max(self._slots, key=lambda slot: slot.history.deaths)
        if self._engine.history.deaths:
            failing = self._engine
        elif all(slot.full for slot in self._slots):
            return WaitingCode.STORE, "as many songs wait on its disk for the store as may"
        elif self._slots_up or not failing.history.deaths:
            return None, ""
        return TROUBLES.get(failing.exit_status, WaitingCode.RESTART), _ended_early(failing)


def parts_of_start(known: Mapping[str, float], hello: Hello | None, vitals: Vitals | None) -> dict[str, float]:
    """Seconds of the parts of a start, by the first engine's words: what is known stays when that engine is silent, as
    while it dies. An engine that was restarted is no part of it.
    """
    first = vitals.first_song_s if vitals else None
    times = {**(hello.load_times if hello else {}), **({} if first is None else {"first_song_s": first})}
    return {**known, **{name: round(seconds, 3) for name, seconds in times.items()}}


def _ended_early(child: Child) -> str:
    deaths = child.history.deaths
    what = f"the {child.spec.name} {child.how_it_ended()} before it was ready"
    return f"{what}, {deaths} times in a row; see its log" if deaths > 1 else f"{what}; see its log"
