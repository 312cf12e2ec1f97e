"""Adapters that are trained: beside the weights, through the caller's own parameters."""
