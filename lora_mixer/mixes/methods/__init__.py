"""How the adapters of a mix come together: a file per method, and the table of all."""
