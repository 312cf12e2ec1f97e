"""Tests; a package so that helpers beside them import as ``tests.<name>``."""
