"""What is encoded comes back, in every format; what is not audio is refused in words."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serinette.errors import InvalidAudio, InvalidOutput, Unsupported
from serinette.media import (
    CONTENT_TYPES,
    EXTENSIONS,
    SongTags,
    decode,
    encode,
    encoded_rate,
    probe,
    read_song_tags,
    song_tags,
    to_loudness,
)
from serinette.media.encoding import PEAK, measured_lufs
from serinette.spec import MAX_SEED, AudioFormat, GenerationSpec
from tests.unit import sounds

FORMATS = list(AudioFormat)
LOSSY = [AudioFormat.MP3, AudioFormat.OGG, AudioFormat.M4A]
RATE = 48_000
QUIET = np.zeros((2, 4_800), np.float32)


def test_every_format_has_a_type_and_an_extension() -> None:
    assert set(CONTENT_TYPES) == set(EXTENSIONS) == set(FORMATS)
    assert CONTENT_TYPES[AudioFormat.M4A] == "audio/mp4"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("duration_s", [1, 7])
def test_the_length_survives(format: AudioFormat, duration_s: int) -> None:
    file = encode(sounds.tone(duration_s), 48_000, format)
    info = probe(io.BytesIO(file), duration_s)
    # AAC rounds up to its blocks of 1024.
    tolerance_s = 1024 / 48_000 if format is AudioFormat.M4A else 1e-6
    assert duration_s - 1e-6 <= info.duration_s <= duration_s + tolerance_s
    assert (info.sample_rate, info.channels) == (48_000, 2)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("sample_rate", [48_000, 44_100, 32_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_sound_survives_where_it_was(format: AudioFormat, sample_rate: int, channels: int) -> None:
    file = encode(sounds.tone(2, sample_rate, channels), sample_rate, format)
    decoded = decode(io.BytesIO(file), 48_000, 2, max_duration_s=3)
    meant = np.broadcast_to(sounds.tone(2, channels=channels), (2, 96_000))
    middle = slice(4_800, 91_200)  # a tone cut off abruptly rings at both ends
    error = decoded[:, middle] - meant[:, middle]
    assert 10 * np.log10((meant[:, middle] ** 2).mean() / (error**2).mean()) > 20
    assert decoded.dtype == np.float32


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_song_is_the_same_bytes(format: AudioFormat) -> None:
    samples = sounds.tone(1)
    tags = song_tags(GenerationSpec(prompt="ジャズ"), 7, "tiny", "abc", "job")
    assert encode(samples, 48_000, format, tags=tags) == encode(samples.copy(), 48_000, format, tags=tags)
    assert encode(samples * 0.9, 48_000, format, tags=tags) != encode(samples, 48_000, format, tags=tags)


@pytest.mark.parametrize("format", FORMATS)
def test_loud_samples_are_clipped_and_not_wrapped(format: AudioFormat) -> None:
    loud = sounds.tone(1) * 6
    decoded = decode(io.BytesIO(encode(loud, 48_000, format)), 48_000, 2, max_duration_s=2)[:, 4_800:43_200]
    assert abs(decoded).max() < 1.5, "a lossy codec rings a little beyond 1"
    assert np.corrcoef(decoded[0], np.clip(loud, -1, 1)[0, 4_800:43_200])[0, 1] > 0.99
    assert abs(loud).max() > 2, "the caller's samples are left alone"


@pytest.mark.parametrize("samples", [np.zeros((2, 0)), np.full((2, 100), np.nan), np.full((1, 100), np.inf)])
def test_nothing_and_nan_are_no_song(samples: sounds.Samples) -> None:
    with pytest.raises(InvalidOutput, match="not finite"):
        encode(samples.astype(np.float32), 48_000, AudioFormat.WAV)


@pytest.mark.parametrize(
    ("format", "sample_rate", "expected"),
    [
        (AudioFormat.WAV, 47_999, 47_999),
        (AudioFormat.MP3, 44_100, 44_100),
        (AudioFormat.MP3, 47_999, 48_000),
        (AudioFormat.MP3, 96_000, 48_000),
        (AudioFormat.OGG, 44_100, 48_000),
        (AudioFormat.M4A, 96_000, 96_000),
    ],
)
def test_a_codec_gets_a_rate_it_knows(format: AudioFormat, sample_rate: int, expected: int) -> None:
    assert encoded_rate(format, sample_rate) == expected
    file = encode(sounds.tone(0.5, sample_rate), sample_rate, format)
    assert probe(io.BytesIO(file), 1).sample_rate == expected


@pytest.mark.parametrize("format", LOSSY)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_bitrate_is_honoured_as_far_as_the_codec_goes(format: AudioFormat, channels: int) -> None:
    noise = np.random.default_rng(1).normal(0, 0.1, (channels, 96_000)).astype(np.float32)
    sizes = [len(encode(noise, 48_000, format, bitrate_kbps=kbps)) for kbps in (32, 96, 320)]
    assert sizes == sorted(sizes)
    assert sizes[0] * 8 / 2 < 60_000
    assert sizes[2] > 2 * sizes[1]


# Tags


PROMPTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t\"'\\;=#"), max_size=200)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=25, deadline=None)
@given(prompt=PROMPTS, lyrics=PROMPTS, seed=st.integers(0, MAX_SEED), model=PROMPTS)
def test_a_file_says_how_to_make_it_again(format: AudioFormat, prompt: str, lyrics: str, seed: int, model: str) -> None:
    spec = GenerationSpec(prompt=prompt, lyrics=lyrics, seed=seed, format=format, timesteps=(1.0, 0.5))
    file = encode(QUIET, 48_000, format, tags=song_tags(spec, seed, model, "0123abc", "job-1"))
    assert read_song_tags(io.BytesIO(file)) == SongTags(
        spec=spec, seed=seed, model=model, model_revision="0123abc", job_id="job-1"
    )


@pytest.mark.parametrize("format", FORMATS)
def test_tags_of_any_length_and_a_title_for_players(format: AudioFormat, tmp_path: Path) -> None:
    spec = GenerationSpec(prompt="静かな\n夜の“ジャズ”", lyrics="あ" * 16_000, audio_codes="<1>" * 60_000)
    path = tmp_path / "song"
    path.write_bytes(encode(QUIET, 48_000, format, tags=song_tags(spec, 1, "m", "r", "j")))
    found = read_song_tags(path)
    assert found is not None
    assert found.spec == spec
    with av.open(str(path)) as container:
        tags = {**container.metadata, **container.streams.audio[0].metadata}
    assert tags["title"] == "静かな 夜の“ジャズ”"


@pytest.mark.parametrize(
    "comment", ["", "a nice song", "[]", "3", "{}", '{"serinette": 1}', '{"serinette": {"steps": 0}}']
)
def test_a_stranger_s_file_has_no_tags_of_ours(comment: str) -> None:
    file = encode(QUIET, 48_000, AudioFormat.MP3, tags={"comment": comment})
    assert read_song_tags(io.BytesIO(file)) is None


def test_tags_of_a_newer_version_are_not_misread() -> None:
    comment = json.dumps({"serinette": {"schema": 99, "prompt": "x"}, "seed": 1})
    with pytest.raises(Unsupported, match=r"schema 99.*newer"):
        read_song_tags(io.BytesIO(encode(QUIET, 48_000, AudioFormat.FLAC, tags={"comment": comment})))


def test_text_has_no_tags() -> None:
    with pytest.raises(InvalidAudio):
        read_song_tags(io.BytesIO(b"text"))


# Strangers' files


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("wav", "pcm_s24le"),
        ("wav", "pcm_f32le"),
        ("wav", "pcm_mulaw"),
        ("aiff", "pcm_s16be"),
        ("caf", "pcm_s16be"),
        ("ipod", "alac"),
        ("webm", "libopus"),
        ("adts", "aac"),
    ],
)
def test_what_people_have_can_be_decoded(container: str, codec: str) -> None:
    file = sounds.packed(container, codec, [sounds.tone(1)], 48_000)
    samples = decode(io.BytesIO(file), 48_000, 2, max_duration_s=2)
    assert samples.shape[0] == 2
    assert abs(samples.shape[1] - 48_000) <= 3 * 1024
    assert 0.3 < abs(samples).max() < 0.8


def test_a_cover_picture_does_not_matter() -> None:
    plain = encode(sounds.tone(1), 48_000, AudioFormat.MP3)
    dressed = sounds.with_cover(plain)
    assert np.array_equal(decode(io.BytesIO(dressed), 48_000, 2, 2), decode(io.BytesIO(plain), 48_000, 2, 2))


def test_channels_are_mapped_at_full_level() -> None:
    left_only = sounds.tone(1)
    left_only[1] = 0
    mono = decode(io.BytesIO(encode(left_only, 48_000, AudioFormat.WAV)), 48_000, 1, 2)
    assert mono.shape == (1, 48_000)
    assert np.allclose(mono[0], left_only[0] / 2, atol=1e-3)
    surround = sounds.packed("wav", "pcm_s16le", [np.repeat(sounds.tone(1), 3, axis=0)], 48_000, "5.1")
    assert decode(io.BytesIO(surround), 44_100, 2, 2).shape == (2, 44_100)


@pytest.mark.parametrize("format", FORMATS)
def test_the_limit_itself_is_allowed(format: AudioFormat) -> None:
    file = encode(sounds.tone(1), 48_000, format)
    assert probe(io.BytesIO(file), 1.0).duration_s == pytest.approx(1, abs=0.03)
    for reader in (lambda: probe(io.BytesIO(file), 0.8), lambda: decode(io.BytesIO(file), 48_000, 2, 0.8)):
        with pytest.raises(InvalidAudio, match=r"longer than the 0\.8 s allowed"):
            reader()


@pytest.mark.parametrize("channels", range(1, 9))
def test_what_is_proved_can_be_decoded(channels: int) -> None:
    file = sounds.wav(bytes(48_000 * 2 * channels), channels=channels)
    assert probe(io.BytesIO(file), 2).channels == channels
    assert decode(io.BytesIO(file), 44_100, 2, 2).shape == (2, 44_100)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"", "cannot be decoded"),
        (b"la la la\n" * 1000, "cannot be decoded"),
        (sounds.png(), "cannot be decoded"),
        (sounds.video(), "no audio track"),
        (sounds.wav(b""), "no audio samples|cannot be decoded"),
        (sounds.wav(bytes(4000), sample_rate=1), "at 1 Hz"),
        (sounds.wav(bytes(4000), sample_rate=500_000), "at 500000 Hz"),
        (sounds.wav(bytes(40_000), channels=12), "12 channels"),
        (sounds.wav(bytes(4000), channels=65_535), "cannot be decoded"),
        (sounds.packed("avi", "pcm_s16le", [sounds.tone(1)], 48_000), "cannot be decoded"),
        (encode(sounds.tone(1), 48_000, AudioFormat.M4A)[:5_000], "cannot be decoded"),
    ],
    ids=["empty", "text", "png", "video", "no samples", "1 Hz", "500 kHz", "12", "65535", "avi", "truncated"],
)
def test_what_is_not_audio_is_refused(file: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    path.write_bytes(file)
    with pytest.raises(InvalidAudio, match=words) as refused:
        probe(path, 600)
    assert str(tmp_path) not in refused.value.message
    with pytest.raises(InvalidAudio, match=words):
        probe(io.BytesIO(file), 600)
    with pytest.raises(InvalidAudio, match=words):
        decode(io.BytesIO(file), 48_000, 2, 600)


def test_a_file_that_changes_midway_is_refused() -> None:
    first, second = (sounds.packed("mp3", "libmp3lame", [sounds.tone(1, rate)], rate) for rate in (48_000, 44_100))
    with pytest.raises(InvalidAudio, match="midway"):
        probe(io.BytesIO(first + second), 600)


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile song.wav\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsong.wav\n#EXT-X-ENDLIST\n",
    ],
)
def test_a_playlist_opens_nothing(playlist: str, tmp_path: Path) -> None:
    (tmp_path / "song.wav").write_bytes(encode(sounds.tone(1), 48_000, AudioFormat.WAV))
    path = tmp_path / "list"
    path.write_text(playlist)
    if playlist.startswith("ffconcat"):
        with av.open(str(path)) as naive:
            assert naive.streams.audio, "FFmpeg alone would have opened the neighbour"
    with pytest.raises(InvalidAudio):
        probe(path, 600)


def wav(tag: int, bits: int, data: bytes, *, valid: int | None = None, sub: int = 1, before: bytes = b"") -> io.BytesIO:
    """A stereo WAV of 48 kHz; with `valid`, in the extensible format that WASAPI writes."""
    align = 2 * bits // 8
    form = struct.pack("<HHIIHH", tag if valid is None else 0xFFFE, 2, 48_000, 48_000 * align, align, bits)
    if valid is not None:
        guid = struct.pack("<H", sub) + bytes.fromhex("000000001000800000aa00389b71")
        form += struct.pack("<HHI", 22, valid, 3) + guid
    chunks = before + b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return io.BytesIO(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)


WAVE = np.stack([0.5 * np.sin(np.arange(48_000) / 20)] * 2, axis=1)
WHOLE = (WAVE * 2**31 * 0.999).astype("<i4")
NOT_A_NUMBER = WAVE.astype("<f4")
NOT_A_NUMBER[100] = np.nan


@pytest.mark.parametrize(
    "file",
    [
        wav(1, 32, ((WHOLE >> 8) << 8).tobytes(), valid=24),
        wav(1, 32, WHOLE.tobytes(), valid=32),
        wav(1, 32, ((WHOLE >> 8) << 8).tobytes(), valid=24, before=b"JUNK" + struct.pack("<I", 27) + bytes(28)),
        wav(3, 32, WAVE.astype("<f4").tobytes(), valid=32, sub=3),
    ],
    ids=["24 in 32", "32", "24 in 32 behind a chunk", "floats"],
)
def test_a_sample_is_as_wide_as_it_lies(file: io.BytesIO, tmp_path: Path) -> None:
    (tmp_path / "file.wav").write_bytes(file.getvalue())
    for each in (file, tmp_path / "file.wav"):
        assert probe(each, 10).duration_s == 1
        samples = decode(each, 48_000, 2, 10)
        assert np.abs(samples - WAVE.T).max() < 1e-3


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (wav(3, 32, NOT_A_NUMBER.tobytes()), "no numbers"),
        (wav(3, 32, (WAVE * 1e30).astype("<f4").tobytes()), "beyond 100 times full scale"),
        (wav(3, 64, np.where(WAVE > 0.4, np.inf, WAVE).astype("<f8").tobytes()), "no numbers"),
        (wav(1, 16, struct.pack("<hh", 1000, 1000)), "at least 0.01 s"),
        (wav(1, 16, bytes(4 * 479)), "at least 0.01 s"),
    ],
    ids=["nan", "huge", "inf", "one sample", "almost enough"],
)
def test_audio_that_a_model_could_not_use_is_refused_at_upload(file: io.BytesIO, words: str) -> None:
    for work in (lambda: probe(file, 10), lambda: decode(file, 48_000, 2, 10)):
        file.seek(0)
        with pytest.raises(InvalidAudio, match=words):
            work()


def loud_tone(hertz: float, seconds: float, level: float = 0.1) -> npt.NDArray[np.float32]:
    """Stereo [2, frames]."""
    wave = level * np.sin(2 * np.pi * hertz / RATE * np.arange(round(seconds * RATE)))
    return np.stack([wave, wave]).astype(np.float32)


def test_the_meter_reads_what_the_standard_says() -> None:
    # BS.1770-4: a 997 Hz sine at full scale in one channel reads -3.01 LUFS.
    one_sided = loud_tone(997, 5, level=1.0)
    one_sided[1] = 0
    assert measured_lufs(one_sided, RATE) == pytest.approx(-3.01, abs=0.05)


@pytest.mark.parametrize("target", [-23.0, -14.0])
def test_a_song_comes_to_the_target(target: float) -> None:
    samples, complaint = to_loudness(loud_tone(440, 3), RATE, target)
    assert complaint is None
    assert samples.dtype == np.float32
    assert measured_lufs(samples, RATE) == pytest.approx(target, abs=0.05)


def test_peaks_in_the_way_limit_the_gain() -> None:
    loud = loud_tone(440, 3)
    loud[:, RATE] = 0.9
    samples, complaint = to_loudness(loud, RATE, -6.0)
    assert float(np.abs(samples).max()) == pytest.approx(PEAK, abs=1e-6)
    assert complaint is not None
    assert f"{measured_lufs(samples, RATE):.1f} instead of -6" in complaint


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        (np.zeros((2, RATE), np.float32), "silent"),
        (loud_tone(440, 0.3), "shorter"),
        (loud_tone(440, 3, level=1e-6), "silent"),
    ],
)
def test_what_has_no_loudness_is_left_alone(samples: npt.NDArray[np.float32], why: str) -> None:
    same, complaint = to_loudness(samples, RATE, -14.0)
    assert np.array_equal(same, samples)
    assert complaint is not None
    assert why in complaint


@pytest.mark.parametrize("format", AudioFormat)
def test_prompt_and_lyrics_may_be_kept_out_of_a_file(format: AudioFormat) -> None:
    spec = GenerationSpec(prompt="a secret prompt", lyrics="secret words", duration_s=7)
    file = encode(QUIET, 48_000, format, tags=song_tags(spec, 1, "tiny", "abc", "job-1", texts=False))
    assert b"secret" not in file
    tags = read_song_tags(io.BytesIO(file))
    assert tags is not None
    assert (tags.texts, tags.spec) == (False, GenerationSpec(duration_s=7))
