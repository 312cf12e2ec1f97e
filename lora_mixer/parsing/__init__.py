"""Reading what people and strangers wrote: problems with their places, strict JSON and YAML, values, frozen maps."""
