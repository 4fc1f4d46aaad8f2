"""Caches: calls of the denoiser that reuse, or forecast, what earlier calls of the run computed."""
