"""What no honest client sends: bodies, raw requests and audio files, the same at every run."""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Iterator
from random import Random

import av

_NOISE = Random(7).randbytes(4_000)
UNKNOWN_ID = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"

# JSON bodies, the prompt and lyrics in every dialect.
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "noise": _NOISE,
    "control characters": json.dumps({"prompt": "a\x00b\x1b[2J\x07"}).encode(),
    "right to left": json.dumps({"prompt": "\u202egnp.exe\u2066\u2069", "lyrics": "\u200f\ufeff"}).encode(),
    "emoji": json.dumps({"prompt": "\U0001f9d1\u200d\U0001f680" * 50, "lyrics": "\U0001f3b5"}).encode(),
    "combining marks": json.dumps({"prompt": "e" + "\u0301" * 5_000}).encode(),
    "half a pair": b'{"prompt": "\\ud800", "lyrics": "\\udfff"}',
    "half a pair as a name": b'{"prompt": "x", "\\ud800": 1}',
    "bad UTF-8": b'{"prompt": "\xff\xfe\xc3"}',
    "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "a megabyte": json.dumps({"prompt": "x" * 1_000_000}).encode(),
    "beyond the bound": json.dumps({"prompt": "x" * 1_100_000}).encode(),
    "10,000 deep": b'{"prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "10,000 deep objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "twice": b'{"prompt": "x", "prompt": "y", "duration_s": 15, "duration_s": -1, "audio_duration": -5e300}',
    "NaN": b'{"prompt": "x", "duration_s": NaN, "audio_duration": NaN, "guidance_scale": NaN}',
    "Infinity": b'{"prompt": "x", "duration_s": -Infinity, "audio_duration": Infinity, "infer_step": Infinity}',
    "exponents": b'{"prompt": "x", "seed": 1e400, "bpm": 1e308, "audio_duration": 1e400, "manual_seeds": "1e999"}',
    "huge integers": b'{"prompt": "x", "seed": ' + b"9" * 5_000 + b', "manual_seeds": "' + b"9" * 900 + b'"}',
    "wrong types": b'{"prompt": {"$gt": ""}, "lyrics": [1], "seed": {}, "task_id_list": {"a": [null]}, "model": []}',
    "a list": b"[1, 2, 3]",
    "null": b"null",
    "many fields": json.dumps({f"f{number}": number for number in range(20_000)}).encode(),
    "paths": b'{"prompt": "x", "src_audio_path": "../../etc/passwd", "ref_audio_input": "/etc/passwd", '
    b'"audio2audio_enable": true, "source_audio": "file:///etc/passwd", "lora_name_or_path": "/etc"}',
    "ids in JSON in JSON": b'{"task_id_list": "[[[[[[\\"../\\\\u0000\\"]]]]]]"}',
    "webhook inside": b'{"prompt": "x", "webhook": "http://169.254.169.254/latest/meta-data/"}',
    "webhook mapped": b'{"prompt": "x", "webhook": "http://[::ffff:127.0.0.1]/"}',
    "audio inside": json.dumps(
        {
            "audio_base64": "A" * 400_000,
            "messages": [
                {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "A" * 400_000}}]},
            ],
        }
    ).encode(),
    "tags inside": json.dumps({"messages": [{"role": "user", "content": "<prompt>[" * 50_000}]}).encode(),
    "labels": json.dumps({"prompt": "x", "labels": {"a\r\nSet-Cookie: x": "\u0000"}}).encode(),
}
POSTS = (
    "/v1/jobs",
    "/v1/batches",
    "/generate_music_async",
    "/generate_music_with_audio_json",
    "/v1/chat/completions",
    "/release_task",
    "/query_result",
    "/create_random_sample",
    "/format_input",
    "/initialize",
    "/v1/init",
    "/v1/lora/toggle",
)

_IDS = (
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/x",
    "a%00b",
    "%ff%fe",
    "x" * 10_000,
    "%0d%0aSet-Cookie:%20a",
    "${jndi:ldap:x}",
    UNKNOWN_ID.upper(),
    "{}",
)
_PLACES = (
    "/v1/jobs/{}",
    "/v1/jobs/{}/audio",
    "/v1/jobs/{}/events",
    "/v1/uploads/{}",
    "/v1/batches/{}",
    "/status/{}",
    "/result/{}",
    "/v1/audio?path={}",
    "/v1/jobs?cursor={}",
    "/v1/jobs?label={}",
    "/v1/usage?since={}",
    "/k/{}/v1/jobs",
)


def heads(job_id: str, theirs: str) -> Iterator[tuple[str, list[bytes]]]:
    """Requests without bodies: the line and the headers beyond host and key. `theirs`: another tenant's job."""
    for place in _PLACES:
        for name in (*_IDS, theirs):
            yield f"GET {place.format(name)}", []
    for value in (b"bytes=-0", b"bytes=9-1", b"bytes=" + b"0-1," * 5_000, b"bytes=" + b"9" * 4_000 + b"-", b"\xff=0-"):
        yield f"GET /v1/jobs/{job_id}/audio", [b"range: " + value]
        yield f"GET /result/{job_id}", [b"range: " + value, b"if-range: " + value, b"if-none-match: " + value]
    for value in (b"\xff\xfe", b"a" * 300, b"a\tb", b"", b"0-0-0", b"9" * 5_000):
        yield "POST /v1/jobs", [b"idempotency-key: " + value]
        yield "POST /release_task", [b"idempotency-key: " + value]
        yield f"GET /v1/jobs/{job_id}/events", [b"last-event-id: " + value]
        yield "GET /v1/jobs", [b"traceparent: 00-" + value, b"baggage: " + value]
        yield (
            f"GET /v1/jobs/{UNKNOWN_ID}",
            [b"prefer: wait=" + value, b"accept-encoding: " + value, b"cookie: " + value],
        )
        yield "GET /v1/queue", [b"origin: " + value, b"content-type: " + value, b"x-forwarded-for: " + value]
    yield "GET /v1/queue", [b"x-%d: y" % number for number in range(1_000)]


def raw(key: str) -> list[bytes]:
    """Bytes that are hardly HTTP; the answer may be none."""
    start = f"POST /v1/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n".encode()
    start += b"content-type: application/json\r\n"
    return [
        b"",
        _NOISE,
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + _NOISE,  # TLS to a port that speaks none
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET http://169.254.169.254/ HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET " + b"/" * 200_000 + b" HTTP/1.1\r\n\r\n",
        start + b"content-length: 5\r\ncontent-length: 6\r\n\r\n{}",
        start + b"content-length: -1\r\n\r\n{}",
        start + b"content-length: 99999999999999999999999\r\n\r\n{}",
        start + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        start + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}",
        start + b"transfer-encoding: chunked\r\n\r\n2;" + b"x" * 70_000 + b"\r\n{}\r\n0\r\n\r\n",
        start + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        start + b"content-length: 1000\r\n\r\n{",
        start + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n",
        start + b"x: " + b"y" * 300_000,
        start + b"authorization: Bearer other\r\ncontent-length: 2\r\n\r\n{}",
        start + b"a\x00b: c\r\ncontent-length: 2\r\n\r\n{}",
        start + b"idempotency-key: a\r\n b\r\ncontent-length: 2\r\n\r\n{}",
        start.replace(b"POST /v1/jobs ", f"GET /v1/jobs/{UNKNOWN_ID}/events ".encode())
        + b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
        + b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        + _NOISE,
        b"GET /v1/queue HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n" + _NOISE,
        start + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + b"a: b\r\n" * 100_000,  # trailers
        b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
        + b"a: b\r\n" * 500_000,
    ]


def _wav(channels: int, rate: int, data: bytes, *, kind: int = 1, bits: int = 16, says: int | None = None) -> bytes:
    frame = channels * bits // 8
    head = struct.pack("<HHIIHH", kind, channels, rate, (rate * frame) & 0xFFFFFFFF, frame & 0xFFFF, bits)
    size = len(data) if says is None else says
    return (
        b"RIFF"
        + struct.pack("<I", 0xFFFFFFF0)
        + b"WAVEfmt \x10\0\0\0"
        + head
        + b"data"
        + struct.pack("<I", size)
        + data
    )


def _many_tracks(count: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", "matroska") as container:
        for _ in range(count):
            container.add_stream("pcm_s16le", 8_000)
        container.start_encoding()
    return file.getvalue()


def audio() -> dict[str, bytes]:
    """Files that are no song, or only pretend to be one; none may be kept."""
    box = b"".join(struct.pack(">I", 8 * (10_000 - depth)) + b"moov" for depth in range(10_000))
    return {
        "truncated": _wav(2, 48_000, b"")[:30],
        "wrong magic": b"PK\x03\x04" + _NOISE,
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
        "0 Hz": _wav(2, 0, _NOISE),
        "255 channels": _wav(255, 48_000, _NOISE * 4),
        "0 channels": _wav(0, 48_000, _NOISE),
        "4 GHz": _wav(1, 0xFFFFFFFF, _NOISE),
        "no samples of 4 GiB": _wav(2, 48_000, b"", says=0xFFFFFFFF),
        "too long": _wav(1, 4_000, b"\x80" * 4_000 * 700, bits=8),
        "bomb": gzip.compress(b"\0" * 10_000_000),
        "300 tracks": _many_tracks(300),
        "nested": b"\0\0\0\x14ftypisom\0\0\0\0isom" + box,
        "a box of exabytes": b"\0\0\0\x14ftypisom\0\0\0\0isom\0\0\0\x01mdat\x7f\xff\xff\xff\xff\xff\xff\xff" + _NOISE,
        "ogg of noise": b"OggS\0\2" + _NOISE,
        "flac of noise": b"fLaC\0\0\0\x22" + _NOISE,
        "tags without end": b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + _NOISE,
    }


NOT_A_NUMBER = _wav(1, 8_000, struct.pack("<f", float("nan")) * 8_000, kind=3, bits=32)
