"""The side engine: adapters beside layers whose weights stay as they are."""
