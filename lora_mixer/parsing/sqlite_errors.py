"""What reading a SQLite file raises that is damaged, or no such file."""

from __future__ import annotations

import sqlite3

SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""The second is Python's, where a damaged file's own words are in the message that SQLite makes of it."""
