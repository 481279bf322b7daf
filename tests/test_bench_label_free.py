"""The bench of figures without labels: correlations that are known, ties, and what is missing."""

import json

import pytest

from tests.bench_label_free import correlations, main


def write(path, figures):
    """A run with an evaluation of each (kNN, alignment, rankme)."""
    path.mkdir()
    lines = [
        {"step": 10 * (number + 1), "figures": {"knn_top1": knn}, "alignment": alignment, "rankme": rankme}
        for number, (knn, alignment, rankme) in enumerate(figures)
    ]
    (path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_correlation_is_that_of_ranks_and_equal_values_share_theirs():
    # kNN's ranks are 1, 2.5, 2.5, 4; the cubes of numbers have the ranks of the numbers.
    lines = [
        {"step": s, "figures": {"knn_top1": k}, "rankme": s**3} for s, k in zip((1, 2, 3, 4), (1, 5, 5, 9), strict=True)
    ]
    found = correlations(lines, "knn_top1")
    assert found["rankme"] == found["step"] == pytest.approx(4.5 / (5 * 4.5) ** 0.5)
    assert "alignment" not in found
    lines = [{**line, "rankme": 7} for line in lines]
    assert correlations(lines, "knn_top1")["rankme"] is None


def test_the_table_has_a_line_a_figure_and_a_column_a_run(tmp_path, capsys):
    write(tmp_path / "one", [(0.1, 0.9, 3), (0.2, 0.8, 2), (0.3, 0.7, 1)])
    write(tmp_path / "two", [(0.1, 0.9, 3), (0.3, 0.8, None), (0.2, 0.7, 5)])
    main([str(tmp_path / "one"), str(tmp_path / "two"), "--least", "3"])
    out = capsys.readouterr().out
    assert "| alignment | -1.00 | -0.50 | -0.75 |" in out and "| rankme | -1.00 |  | -1.00 |" in out
    assert "one: 3 evaluations, knn_top1 10.0% to 30.0%" in out
    with pytest.raises(SystemExit, match="fewer than 8"):
        main([str(tmp_path / "one")])
