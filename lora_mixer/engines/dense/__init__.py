"""Changes without a low-rank form beside weights that stay as they are: packed ones, and rows with mixes of their own."""
