"""
The ways of writing a mix; docs/mixes.md lists them.

Every ``read_*`` here and beside takes what was written, ``where`` it stands (its path, for messages) and the ``reading`` in which problems
are noted; it returns the value, or None where there was a problem.
"""
