"""How the page is laid out, a tab a file, and which handler answers which click."""
