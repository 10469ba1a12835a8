from __future__ import annotations

from gptj_predictor.bench.published import CARDS, SECONDS, column, comparable

#: As it was published: V100, Quadro RTX5000, RTX A5000, A40, A100, A100.
TABLE = """
128: 9.13 8.94 5.62 6.98 5.11 4.95
256: 16.2 16.95 9.74 12.09 8.9 8.52
384: 23.65 22.64 14.17 17.47 12.89 12.3
512: 31.38 30.03 17.97 22.32 16.47 15.74
640: 39.43 36.91 22.27 27.34 20.2 19.51
768: 50.27 43.9 28.09 34.12 25.11 24.36
896: 58.68 49.04 30.85 38.07 28.06 27.36
1024: 68.8 55.9 35.24 43.66 32.05 30.9
1152: 78.45 61.84 39.02 48.28 35.36 34.37
1280: 91.08 73.12 45.18 56.07 41.26 39.79
1408: 101.32 85.47 53.98 61.04 45.11 43.05
1536: 111.21 91.93 54.22 66.3 49.69 47.86
1664: 119.76 94.35 58 71.78 53.14 51.18
1792: 131.12 100.37 63.14 77.5 58.04 55.26
1920: 136.66 101.83 63.7 78.72 58.52 55.96
2048: 149.16 110.88 69.48 85.18 63.41 61.06
"""


def test_the_table_is_the_published_one() -> None:
    rows = (line.split(": ") for line in TABLE.strip().splitlines())
    assert {int(t): tuple(map(float, row.split())) for t, row in rows} == SECONDS
    assert all(len(row) == len(CARDS) for row in SECONDS.values())
    assert column("A100-2")[2048] == 61.06
    assert column("V100")[128] == 9.13


def test_only_gpt_j_s_size_is_comparable() -> None:
    assert comparable(6_053_381_344)  # the published checkpoint, its bias of the head included
    assert not comparable(2_563_712)
    assert not comparable(12_000_000_000)
