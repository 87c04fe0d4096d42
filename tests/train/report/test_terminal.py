"""Tables on terminals of 80 and 120 columns: no number is cut, however long the labels are."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from train.report.table import HIGHER, LOWER, OVER_SEEDS, Cell, Column, Row, Table, number_cell
from train.report.terminal import to_rich

LONG = "reverse_image_gene, mean of 3 seeds, 18 neighbours, alpha 0.35"
TITLES = ("PCC@10", "PCC@50", "PCC@200", "MSE", "MAE", "MSE, centred")


def table(n: int) -> Table:
    """A table with so many columns of numbers."""
    columns = tuple(Column(title, HIGHER if "PCC" in title else LOWER) for title in TITLES[:n])
    numbers = tuple(number_cell(0.641 + i, 0.0234) for i in range(n))
    rows = (
        Row(LONG, "run", (Cell("0.700 ± 0.012", 0.7, 0.012, best=True), *numbers[1:])),
        Row("± over 3 seeds", OVER_SEEDS, tuple(Cell("± 0.004", 0.004) for _ in range(n))),
        Row("p against full", "p", tuple(Cell("0.031", 0.031) for _ in range(n))),
        Row("ridge, PCA-256", "control", numbers),
    )
    return Table("t", "Metrics, tiny", columns, rows, ("mean ± std over 5 folds " * 8,))


def text(shown: Table, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), soft_wrap=True)
    console.print(to_rich(shown, width))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    return "\n".join(lines)


@pytest.mark.parametrize(("n", "width"), [(4, 80), (5, 80), (6, 120)])
def test_all_digits_where_they_fit(n: int, width: int) -> None:
    shown = text(table(n), width)
    assert shown.replace(" ± ", "±").count("±0.023") == 2 * n - 1
    assert ("│" in shown) == ((n, width) != (5, 80)), "lines between columns where there is room"
    assert [word for word in shown.split() if word.startswith("0.031")] == ["0.031"] * n


def test_fewer_digits_where_only_these_fit() -> None:
    shown = text(table(6), 80)
    assert shown.count("0.64±0.02") == 1
    assert "5.64±0.02" in shown
    assert shown.count("± 0.004") == 6, "of which two digits would say nothing"
    assert shown.count("0.031") == 6
    assert "centred" in shown.split("─")[0], "the title takes two lines"


def test_a_line_for_each_number_where_no_columns_fit() -> None:
    shown = text(table(6), 50)
    lines = [line.split() for line in shown.splitlines()]
    assert ["PCC@10", "↑", "0.700", "±", "0.012"] in lines
    assert ["MSE,", "centred", "↓", "5.641", "±", "0.023"] in lines
    for i in range(1, 6):
        assert f"{0.641 + i:.3f} ± 0.023" in shown
    assert "reverse_image_gene" in shown


def test_texts_longer_than_the_terminal_take_several_lines() -> None:
    long = Table("t", "T" * 100, (Column("reference"),), (Row("run", "run", (Cell("word " * 40),)),))
    assert text(long, 80).count("word") == 40
    assert text(long, 80).count("T") == 100


def test_a_table_without_rows() -> None:
    assert "PCC@10" in text(Table("t", "None", (Column("PCC@10"),), ()), 80)
