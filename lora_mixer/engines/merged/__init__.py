"""The merged engine: weights rewritten in place from kept bases."""
