"""What the operator of the demo allows: one model of limits, enforced before a request waits and again before it runs."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["BUNDLED", "Settings"]

BUNDLED = ("cifar10-dit", "cifar10-unet", "cifar10-vit")


class Settings(BaseModel):
    """Limits and places, all of them with defaults that suit two cores and strangers.

    Attributes:
        host, port: where the server listens; None: the first free port from 7860.
        share: open a public tunnel.
        auth: user and password, or None.
        allow_model: patterns of hub ids and folders that visitors may name besides the bundled models.
        max_images: in one request.
        max_steps, max_calls: of one run: solver steps, and evaluations of the network.
        max_pixels: of an uploaded image, and of one picture that is made.
        max_upload, max_body: bytes of one file, and of one request.
        upload_quota: bytes that all visitors together may upload in ten minutes.
        queue: requests that may wait.
        variants: recipes that are kept prepared for each model.
        timing_seconds: how long a comparison is timed.
        prepare_seconds: how long a recipe may take to be made ready: int8 and q-diffusion run the model first.
        slow_methods: allow what takes a minute before the first picture (compilation).
        threads: of PyTorch; None: its own choice.
        card: a card.json for the frontier, beside those that ship.
        log_requests: log prompts and recipes too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int | None = Field(default=None, ge=1, le=65535)
    share: bool = False
    auth: tuple[str, str] | None = Field(default=None, repr=False)
    allow_model: tuple[str, ...] = ()
    max_images: int = Field(default=16, ge=1, le=1024)
    max_steps: int = Field(default=100, ge=1, le=1000)
    max_calls: int = Field(default=400, ge=1, le=10_000)
    max_pixels: int = Field(default=4_000_000, ge=1024, le=100_000_000)
    max_upload: int = Field(default=5_000_000, ge=1000)
    max_body: int = Field(default=7_000_000, ge=1000)
    upload_quota: int = Field(default=200_000_000, ge=1000)
    queue: int = Field(default=16, ge=1, le=1000)
    variants: int = Field(default=8, ge=2, le=100)
    timing_seconds: float = Field(default=5.0, gt=0, le=120)
    prepare_seconds: float = Field(default=120.0, gt=0, le=3600)
    slow_methods: bool = False
    threads: int | None = Field(default=None, ge=1, le=1024)
    card: Path | None = None
    log_requests: bool = False

    def allows(self, model: str) -> bool:
        """Whether visitors may name this model. A name that climbs (`..`) is never one: `*` would let it out of the operator's folder."""
        if model in BUNDLED:
            return True
        climbs = ".." in model.replace("\\", "/").split("/") or "\0" in model
        return not climbs and any(fnmatchcase(model, pattern) for pattern in self.allow_model)
