"""Orthogonal matrices from skew-symmetric ones, and their product with a weight: what OFT and BOFT share."""

from __future__ import annotations

import torch


def skew(matrix: torch.Tensor) -> torch.Tensor:
    """Return M - M^T for a batch (..., b, b)."""
    return matrix - matrix.transpose(-1, -2)


def skew_of_triangle(vector: torch.Tensor) -> torch.Tensor:
    """Return the skew-symmetric matrices (n, b, b) whose upper triangles are the rows of ``vector`` (n, b(b-1)/2)."""
    size = triangle_side(vector.shape[1])
    rows, columns = torch.triu_indices(size, size, 1, device=vector.device)
    matrix = vector.new_zeros(vector.shape[0], size, size)
    matrix[:, rows, columns] = vector
    return skew(matrix)


def triangle_side(elements: int) -> int:
    """Return b for b(b-1)/2 elements; 0 where no whole number fits."""
    size = int((1 + (1 + 8 * elements) ** 0.5) / 2 + 0.5)
    return size if size * (size - 1) // 2 == elements else 0


def cayley(q: torch.Tensor) -> torch.Tensor:
    """Return R = (I + Q)(I - Q)^-1 for skew-symmetric Q (..., b, b): orthogonal, and I for Q = 0."""
    eye = torch.eye(q.shape[-1], device=q.device, dtype=q.dtype).expand_as(q)
    # I - Q has an inverse for every skew-symmetric Q; solve_ex does not stop at NaN that were let in on purpose
    rotation: torch.Tensor = torch.linalg.solve_ex(eye - q, eye + q, left=False).result
    return rotation


def cayley_neumann(q: torch.Tensor, terms: int) -> torch.Tensor:
    """
    Return PEFT's approximation of (I + Q)(I - Q)^-1: I + 2Q + 2Q^2 + ... , the last of ``terms`` powers not doubled.

    The weights were trained through this very polynomial, so it is the meaning of the file, exactly orthogonal or not.
    """
    total = torch.eye(q.shape[-1], device=q.device, dtype=q.dtype).repeat(*q.shape[:-2], 1, 1)
    if terms > 1:
        total = total + 2 * q
    if terms > 2:
        power = q @ q
        total = total + 2 * power
        for _ in range(3, terms - 1):
            power = power @ q
            total = total + 2 * power
        total = total + power @ q
    return total


def toward_identity(rotation: torch.Tensor, gain: float) -> torch.Tensor:
    """Return gain * R + (1 - gain) * I: LyCORIS' and Kohya's meaning of a weight."""
    eye = torch.eye(rotation.shape[-1], device=rotation.device, dtype=rotation.dtype)
    return torch.lerp(eye, rotation, gain)


def constrained(q: torch.Tensor, limit: float) -> torch.Tensor:
    """Scale Q so that its norm over all blocks is at most ``limit``; 0 means no limit."""
    if limit <= 0:
        return q
    norm = q.norm() + 1e-8
    scaled: torch.Tensor = q * (limit / norm).clamp(max=1.0)
    return scaled
