"""The ways of writing a mix; docs/mixes.md lists them."""
