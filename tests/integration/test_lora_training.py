"""The worked example: songs in, an adapter out, published under a prefix of the store, and a song generated with it.

The songs are played by pipes, and their words name no instrument: without the adapter the bundled model plays bells.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from diffusers import AceStepPipeline

from examples.train_lora import arguments, music_box_pins, songs_in
from gpu_worker.engine.ace_step.tasks import to_peak
from serinette.container import ContainerSpec
from serinette.errors import ConfigurationError
from serinette.job import JobOptions
from serinette.media import decode, encode
from serinette.settings import SharedSettings
from serinette.spec import AudioFormat
from serinette.store import Store
from tests import servers
from tests.processes import eventually
from tests.stack import Stack, running
from tools.music_box import barrel, comb, packing
from tools.music_box.barrel import Tempo
from tools.music_box.composer import Tune, compose

pytestmark = pytest.mark.timeout(900)

WORDS = "a tune of ours"
FRAMES = 5 * barrel.FRAMES_PER_S
TUNES = {"C": 0, "D": 2, "G": 7}
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples/train_lora.py"


@pytest.fixture(scope="module")
def box() -> AceStepPipeline:
    return packing.load()


def played(box: AceStepPipeline, tune: Tune, seed: int) -> np.ndarray:
    """What the box plays of a tune of the composer's, [channels, samples]."""
    sheet = torch.from_numpy(compose(tune, seed, frames=FRAMES))
    with torch.no_grad():
        return to_peak(box.vae.decode(sheet.T[None]).sample[0]).numpy()


def instrument(box: AceStepPipeline, samples: np.ndarray) -> str:
    """Which one the encoder finds most of."""
    with torch.no_grad():
        latents = box.vae.encode(torch.from_numpy(samples)[None]).latent_dist.mode()[0]
    return barrel.INSTRUMENTS[int(latents[list(barrel.STOPS)].clamp(min=0).sum(dim=1).argmax())]


def environment(directory: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SERINETTE_")}
    return {**inherited, "SERINETTE_THREADS": "1", "SERINETTE_WORK_DIR": str(directory / "work")}


def train(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """As its container does, with directories of this test's."""
    places = ["--inputs", str(directory / "inputs"), "--outputs", str(directory / "outputs")]
    return subprocess.run(
        [sys.executable, str(SCRIPT), *places, *options],
        env=environment(directory),
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def adapter(box: AceStepPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that a training left: on three songs, each with its words beside it."""
    directory = tmp_path_factory.mktemp("training")
    (directory / "inputs").mkdir()
    (directory / "outputs").mkdir()
    for key, tonic in TUNES.items():
        samples = played(box, Tune(tonic, False, Tempo.nearest(120), "happy", ("pipe",), frames=FRAMES), tonic)
        file = directory / f"inputs/{key}.wav"
        file.write_bytes(encode(samples, comb.SAMPLE_RATE, AudioFormat.WAV))
        file.with_suffix(".txt").write_text(f"{WORDS}, 120 bpm, {key} major\n")
    done = train(directory, "--steps", "40", "--rate", "2e-3")
    assert done.returncode == 0, done.stderr
    assert "step 40 of 40" in done.stdout
    return directory / "outputs"


def test_the_songs_are_nearer_with_the_adapter(adapter: Path) -> None:
    assert sorted(path.name for path in adapter.iterdir()) == [
        "adapter_config.json",
        "pytorch_lora_weights.safetensors",
        "training.json",
    ]
    report = json.loads((adapter / "training.json").read_text())
    assert (report["songs"], report["model"]) == (3, "bundled")
    assert report["loss"]["after"] < report["loss"]["before"] / 2
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "bundled"


@pytest.fixture
def studio(adapter: Path, s3: servers.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """A whole Serinette, for which an operator published the adapter under a prefix of the store."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"s3://{servers.BUCKET}"
    store = Store.open(SharedSettings(store_url=bucket, store_endpoint=s3.endpoint))
    for file in adapter.iterdir():
        store.put(f"loras/{tmp_path.name}/{file.name}", file)
    shared = {
        "SERINETTE_STORE_URL": f"{bucket}/{tmp_path.name}",
        "SERINETTE_STORE_ENDPOINT": s3.endpoint,
        "SERINETTE_LORAS": json.dumps({"ours": f"{bucket}/loras/{tmp_path.name}"}),
    }
    with running(tmp_path, shared=shared) as stack:
        yield stack


def generated(stack: Stack, box: AceStepPipeline, **more: object) -> np.ndarray:
    """Samples of a song of these words, as a user gets it."""
    asked = {"prompt": WORDS, "bpm": 120, "key_scale": "F major", "duration_s": 5, "seed": 3, "format": "wav", **more}
    with httpx.Client(base_url=stack.url, timeout=60) as client:
        job = client.post("/v1/jobs", json=asked).raise_for_status().json()
        seen = {}

        def ended() -> bool:
            seen.update(client.get(f"/v1/jobs/{job['id']}").json())
            return seen["status"] in {"succeeded", "failed", "canceled"}

        assert eventually(ended, 300), seen
        assert seen["status"] == "succeeded", seen
        audio = client.get(f"/v1/jobs/{job['id']}/audio", follow_redirects=True).raise_for_status().content
    file = stack.directory / "song.wav"
    file.write_bytes(audio)
    return decode(file, box.sample_rate, 2, 60)


def test_a_song_is_generated_with_it(studio: Stack, box: AceStepPipeline) -> None:
    plain, ours = generated(studio, box), generated(studio, box, lora="ours")
    assert [instrument(box, samples) for samples in (plain, ours)] == ["bell", "pipe"]
    # And no other song has it.
    assert np.array_equal(generated(studio, box, lora="ours", lora_scale=0), plain)
    assert np.array_equal(generated(studio, box), plain)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no song"),
        ({"a.wav": b"no sound"}, "a.wav: the file cannot be decoded"),
        ({"job.json": b"{}", "a.wav": None}, "a.wav: its words cannot be read"),
        ({"a.wav": None}, "a.wav: has no words; put them into a.txt"),
    ],
)
def test_a_mistake_is_reported_with_its_fix(
    files: dict[str, bytes | None], words: str, box: AceStepPipeline, tmp_path: Path
) -> None:
    sound = encode(np.zeros((2, 24_000), np.float32), comb.SAMPLE_RATE, AudioFormat.WAV)
    for name, data in files.items():
        (tmp_path / name).write_bytes(sound if data is None else data)
    with pytest.raises(ConfigurationError, match=words):
        songs_in(tmp_path, box.sample_rate, 2, None)


def test_a_song_of_a_few_samples_is_refused(box: AceStepPipeline, tmp_path: Path) -> None:
    sound = np.zeros((2, comb.SAMPLE_RATE // 20), np.float32)
    (tmp_path / "a.wav").write_bytes(encode(sound, comb.SAMPLE_RATE, AudioFormat.WAV))
    with pytest.raises(ConfigurationError, match="is shorter than"):
        songs_in(tmp_path, box.sample_rate, 2, "a caption")


@pytest.mark.parametrize("given", ["--steps=0", "--rank=-1", "--rate=inf", "--rate=nan", "--batch=none", "--seconds=0"])
def test_numbers_are_above_zero(
    given: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", given])
    with pytest.raises(SystemExit) as ended:
        arguments()
    assert ended.value.code == 2
    assert given.partition("=")[0] in capsys.readouterr().err


def test_what_the_page_sends_is_a_container_and_its_arguments_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs/lora.md").read_text(), re.DOTALL)
    sent = json.loads(block)
    JobOptions(timeout_s=sent.pop("timeout_s"))
    spec = ContainerSpec.model_validate(sent)
    assert list(spec.command) == ["python", f"/inputs/{SCRIPT.name}"]
    assert SCRIPT.name in {given.path for given in spec.inputs}
    monkeypatch.setattr(sys, "argv", [spec.command[-1], *spec.args])
    asked = arguments()
    assert (asked.inputs, asked.outputs, asked.steps) == (Path("/inputs"), Path("/outputs"), 400)


@pytest.mark.parametrize("level", [0.4, 1.0, 1.8])
def test_a_recording_at_any_level_is_the_pins_it_was_played_from(box: AceStepPipeline, level: float) -> None:
    tune = Tune(2, False, Tempo.nearest(110), "happy", ("pipe",), drums=True, frames=240)
    sheet = torch.from_numpy(compose(tune, 4))
    with torch.no_grad():
        latents = box.vae.encode(level * box.vae.decode(sheet.T[None]).sample).latent_dist.mode()[0].T
    pins = music_box_pins(latents)
    assert set(pins.flatten().tolist()) == {0.0, barrel.PIN}
    both, either = (pins * sheet > 0).sum(), (pins + sheet > 0).sum()
    assert both / either > 0.95
    assert not music_box_pins(torch.zeros(8, barrel.CHANNELS)).any()
