"""The former name of ``handlers.library``, for scripts that were written before the first tag."""

from .handlers.library import details, from_hub, keep, search, upload

__all__ = ["details", "from_hub", "keep", "search", "upload"]
