"""The supervisor of a worker pod: an engine and slots. It keeps them alive, tells of them and lets them go in order."""

from __future__ import annotations

import logging
import secrets
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from gpu_worker.children import Child
from gpu_worker.engine_environment import engine_environment
from gpu_worker.engine_watch import EngineWatch
from gpu_worker.exit_codes import CONFIGURATION_EXIT_CODE
from gpu_worker.herald import Herald
from gpu_worker.metrics import Pod, WorkerMetrics
from gpu_worker.restart import Step, next_step
from gpu_worker.settings import WorkerSettings
from gpu_worker.wire import Hello
from serinette.job import now
from serinette.presence import Presence, WorkerStage
from serinette.settings import connect_redis

log = logging.getLogger(__name__)

_TICK_S = 0.1
# A slot that lived this long had started well.
_SLOT_WELL_AFTER_S = 10.0
# Beyond the drain: for a job that is given back, an engine that is told to stop, a Redis that is slow just then.
_DRAIN_MARGIN_S = 15.0
_ENGINE_END_TIMEOUT_S = 10.0
# In the run directory while the model is loaded: a look at a file is all that the platform's probe costs.
READY_FILE = "ready"


class Supervisor:
    """Starts everything in `run`; ends it on SIGTERM or SIGINT. A second signal has running jobs given back at once."""

    def __init__(self, settings: WorkerSettings, run_dir: Path) -> None:
        """`run_dir`: this supervisor's own directory."""
        self._settings = settings = settings.model_copy(update={"run_dir": run_dir})
        self._ready_file = run_dir / READY_FILE
        self.name = f"{socket.gethostname()}-{secrets.token_hex(3)}"
        environment = {"SERINETTE_RUN_DIR": str(run_dir)}
        self._engine = Child(
            "engine",
            (sys.executable, "-m", settings.engine_module),
            {**engine_environment(settings.work_dir), **environment},
        )
        self._slots = [self._slot(number, environment) for number in range(settings.slots)]
        self._watch = EngineWatch(settings.engine_socket)
        self._signals = 0
        self._passed_on = 0
        self._drain_ends_at_s: float | None = None
        self._presence = Presence(
            name=self.name,
            pool=settings.pool,
            stage=WorkerStage.STARTING,
            slots=settings.slots,
            started_at=now(),
        )
        self._herald = Herald(connect_redis(settings), settings.keys, self._presence)
        self._deaths: Counter[str] = Counter()
        self.metrics = WorkerMetrics(self._presence)

    def _slot(self, number: int, environment: dict[str, str]) -> Child:
        command = (sys.executable, "-m", "gpu_worker.slot")
        return Child(f"slot {number}", command, environment, name_prefix=f"{self.name}.{number}", reports_busy=True)

    def run(self) -> int:
        """Run until a signal comes and the slots have left; the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        log.info("worker %s: pool %s, %d slots", self.name, self._settings.pool, self._settings.slots)
        self._herald.start()
        status = 0
        while not self._left() and status == 0:
            status = self._tick(time.monotonic())
            time.sleep(_TICK_S)
        for child in self._slots:
            child.end(0.0 if status == 0 else _ENGINE_END_TIMEOUT_S)
        self._watch.close()
        self._engine.end(_ENGINE_END_TIMEOUT_S)
        self._herald.stop()
        log.info("worker %s left", self.name)
        return status

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _left(self) -> bool:
        return self._signals > 0 and all(child.pid is None for child in self._slots)

    def _tick(self, at_s: float) -> int:
        for child in (self._engine, *self._slots):
            if child.look():
                self._note_death(child)
                if child.exit_status == CONFIGURATION_EXIT_CODE:
                    self._herald.load_failed(f"the {child.name} refuses its configuration; see its log")
                    log.critical("%s refuses its configuration, and so does this worker: see above", child.name)
                    return CONFIGURATION_EXIT_CODE
        hello = self._watch.look()
        self._keep_engine(hello, at_s)
        if self._signals > self._passed_on:
            self._drain(at_s)
        if self._signals == 0:
            self._keep_slots(at_s)
        elif self._drain_ends_at_s is not None and at_s > self._drain_ends_at_s:
            self._end_slots()
        self._tell(hello)
        return 0

    def _note_death(self, child: Child) -> None:
        asked = self._signals > 0 and child is not self._engine
        if child is not self._engine and child.exit_status != 0:
            self._herald.bury(child.life_name)
        if not asked:
            self._deaths[child.name.partition(" ")[0]] += 1
        again = "" if asked else f"; starts again in {child.life.pause_s:g} s"
        refused = child.exit_status == CONFIGURATION_EXIT_CODE  # told by whoever ends this worker for it
        if child is self._engine and child.life.deaths and self._signals == 0 and not refused:
            self._herald.load_failed(self._message())
        log.log(logging.INFO if asked else logging.WARNING, "%s %s%s", child.name, child.how_it_ended(), again)

    def _keep_engine(self, hello: Hello | None, at_s: float) -> None:
        """Also while draining: a job in hand may need it."""
        if hello and hello.stage == "ready":
            if not self._engine.life.well:
                log.info("engine ready on %s", hello.device)
            self._engine.life = self._engine.life.got_well()
        match next_step(self._engine.life, at_s, self._settings.engine_start_timeout_s):
            case Step.START:
                self._engine.start()
            case Step.KILL:
                log.error("the engine was not ready within %g s", self._settings.engine_start_timeout_s)
                self._engine.signal(signal.SIGKILL)

    def _keep_slots(self, at_s: float) -> None:
        for child in self._slots:
            started_at_s = child.life.started_at_s
            if started_at_s is not None and at_s > started_at_s + _SLOT_WELL_AFTER_S:
                child.life = child.life.got_well()
            if next_step(child.life, at_s, float("inf")) is Step.START:
                child.start()

    def _drain(self, at_s: float) -> None:
        if self._drain_ends_at_s is None:
            log.info("asked to leave: %d slots are busy", sum(child.busy for child in self._slots))
            self._drain_ends_at_s = (
                at_s + self._settings.drain_timeout_s + self._settings.cancel_timeout_s + _DRAIN_MARGIN_S
            )
        self._passed_on = self._signals
        for child in self._slots:
            child.signal(signal.SIGTERM)

    def _end_slots(self) -> None:
        for child in self._slots:
            if child.pid:
                log.error("%s did not leave in time and is killed; its job returns to its lane", child.name)
                child.signal(signal.SIGKILL)

    def _tell(self, hello: Hello | None) -> None:
        self._mark_ready(self._stage(hello) is WorkerStage.READY)
        self._presence = self._presence.model_copy(
            update={
                "stage": self._stage(hello),
                "busy_slots": sum(child.busy for child in self._slots),
                "device": hello.device if hello else "",
                "model": hello.model if hello else None,
                "message": self._message(),
            }
        )
        self._herald.update(self._presence)
        self.metrics.pod = Pod(self._presence, self._watch.vitals, self._herald.cold_start_s, self._deaths.copy())

    def _mark_ready(self, ready: bool) -> None:
        if ready and not self._ready_file.exists():
            self._ready_file.touch()
        elif not ready:
            self._ready_file.unlink(missing_ok=True)

    def _stage(self, hello: Hello | None) -> WorkerStage:
        if self._signals:
            return WorkerStage.DRAINING
        if hello is None:
            return WorkerStage.STARTING
        return WorkerStage.READY if hello.stage == "ready" else WorkerStage.LOADING

    def _message(self) -> str:
        life = self._engine.life
        if life.deaths == 0:
            return ""
        what = f"the engine {self._engine.how_it_ended()} before it was ready"
        return f"{what}, {life.deaths} times in a row; see its log" if life.deaths > 1 else f"{what}; see its log"
