"""Writing a song: the same samples, rate, format and tags give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping

import av
import numpy as np
import numpy.typing as npt

from serinette.media.formats import CODINGS, encoded_rate
from serinette.spec import AudioFormat


def encode(
    samples: npt.NDArray[np.float32],
    sample_rate: int,
    format: AudioFormat,
    *,
    bitrate_kbps: int | None = None,
    tags: Mapping[str, str] | None = None,
) -> bytes:
    """Encode float32 [channels, frames] of -1 to 1, 1 or 2 channels; louder samples are clipped.

    The file's rate is `encoded_rate(format, sample_rate)`. `bitrate_kbps` is for mp3, ogg and m4a.
    """
    coding = CODINGS[format]
    layout = "mono" if samples.shape[0] == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(np.clip(samples, -1, 1)), format="fltp", layout=layout)
    frame.sample_rate = sample_rate
    file = io.BytesIO()
    with av.open(file, "w", format=coding.container, options=dict(coding.container_options)) as container:
        container.metadata.update(tags or {})
        rate = encoded_rate(format, sample_rate)
        stream = container.add_stream(coding.codec, rate=rate, layout=layout, options=dict(coding.codec_options))
        if coding.bitrate_kbps:
            stream.bit_rate = 1000 * (bitrate_kbps or coding.bitrate_kbps)
        resampler = av.AudioResampler(coding.sample_format, layout, rate)
        for part in (*resampler.resample(frame), *resampler.resample(None), None):
            container.mux(stream.encode(part))
    return file.getvalue()
