"""The times published for the service that this one replaces, in fp16, batch 1.

Its table has two columns named A100; they are told apart here by their order.
"""

from __future__ import annotations

#: What ``--reference`` takes, and the column's title.
CARDS = {
    "V100": "V100",
    "RTX5000": "Quadro RTX5000",
    "A5000": "RTX A5000",
    "A40": "A40",
    "A100-1": "A100 (1)",
    "A100-2": "A100 (2)",
}

#: Seconds for one response by its tokens, prompt included; columns as in :data:`CARDS`.
SECONDS: dict[int, tuple[float, ...]] = {
    128: (9.13, 8.94, 5.62, 6.98, 5.11, 4.95),
    256: (16.2, 16.95, 9.74, 12.09, 8.9, 8.52),
    384: (23.65, 22.64, 14.17, 17.47, 12.89, 12.3),
    512: (31.38, 30.03, 17.97, 22.32, 16.47, 15.74),
    640: (39.43, 36.91, 22.27, 27.34, 20.2, 19.51),
    768: (50.27, 43.9, 28.09, 34.12, 25.11, 24.36),
    896: (58.68, 49.04, 30.85, 38.07, 28.06, 27.36),
    1024: (68.8, 55.9, 35.24, 43.66, 32.05, 30.9),
    1152: (78.45, 61.84, 39.02, 48.28, 35.36, 34.37),
    1280: (91.08, 73.12, 45.18, 56.07, 41.26, 39.79),
    1408: (101.32, 85.47, 53.98, 61.04, 45.11, 43.05),
    1536: (111.21, 91.93, 54.22, 66.3, 49.69, 47.86),
    1664: (119.76, 94.35, 58, 71.78, 53.14, 51.18),
    1792: (131.12, 100.37, 63.14, 77.5, 58.04, 55.26),
    1920: (136.66, 101.83, 63.7, 78.72, 58.52, 55.96),
    2048: (149.16, 110.88, 69.48, 85.18, 63.41, 61.06),
}

#: Parameters of the model that was measured, and how far off another may be to be compared.
GPTJ_6B_PARAMETERS = 6_050_882_784
TOLERANCE = 0.01


def column(card: str) -> dict[int, float]:
    """Seconds by tokens of one card, a key of :data:`CARDS`."""
    index = list(CARDS).index(card)
    return {tokens: row[index] for tokens, row in SECONDS.items()}


def comparable(parameters: int) -> bool:
    """Whether a model of so many parameters has GPT-J-6B's size."""
    return abs(parameters / GPTJ_6B_PARAMETERS - 1) <= TOLERANCE
