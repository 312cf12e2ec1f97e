"""The denoiser while it runs: its steps, its calls, the rows of its batch, CUDA graphs of it."""
