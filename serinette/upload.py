"""What a client brought: audio and what the probe found out about it, or a file for a container."""

from __future__ import annotations

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field


class Upload(BaseModel):
    """`upload.json`: written once the bytes are proved to be audio; without it an upload cannot be used."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(description="Give it as `source_audio` or `reference_audio`.")
    duration_s: float
    sample_rate: int
    channels: int
    codec: str
    container: str
    size_bytes: int
    sha256: str
    created_at: AwareDatetime


class UploadedFile(BaseModel):
    """`file.json`: of any file, which nothing but a container reads."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(description="Give it as `upload` of one of a container's `inputs`.")
    size_bytes: int
    sha256: str
    created_at: AwareDatetime
