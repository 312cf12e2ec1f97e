"""The dense engine: changes without a low-rank form, held whole beside layers whose weights stay as they are."""
