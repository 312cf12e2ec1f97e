"""What adapters are written in: a file for each format, a row for each in :mod:`.table`."""
