"""Random generators that are a function of names and numbers, so that draws can be repeated."""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """Hash everything that a draw depends on to one seed; other parts give an unrelated seed.

    Args:
        parts: for example the run's seed, what is drawn (``"order"``), the step; in this order.

    Returns:
        An integer in [0, 2^63), the same on every machine and in every Python.
    """
    text = repr([part if isinstance(part, str) else int(part) for part in parts])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator on ``device``, seeded with :func:`derive_seed` of ``parts``."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))
