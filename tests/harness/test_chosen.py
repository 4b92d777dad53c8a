"""Cells named by their axes on the command line."""

from __future__ import annotations

import pytest

from harness.chosen import choose
from harness.errors import UserError

CELLS = [
    {"mask": mask, "sparsity": sparsity, "seed": seed}
    for mask in ("snip", "snip(control=shuffled)", "file:./theirs.pt")
    for sparsity in ("90%", "98%")
    for seed in ("0", "1")
]


def chosen(given: str, families: bool = False) -> list[tuple[str, ...]]:
    kept = choose(given, "--only", CELLS, families)
    return [tuple(labels.values()) for labels, keep in zip(CELLS, kept, strict=True) if keep]


def test_all_axes_named_must_match_and_a_value_given_twice_widens() -> None:
    assert chosen("mask=snip,sparsity=0.9,seed=1") == [("snip", "90%", "1")]
    assert chosen(" mask = snip , sparsity=98%, seed=0, seed=1,") == [("snip", "98%", "0"), ("snip", "98%", "1")]
    assert chosen("mask=snip(control=shuffled),sparsity=90%,seed=0") == [("snip(control=shuffled)", "90%", "0")]


def test_a_masks_name_means_its_variants_only_where_that_is_wanted() -> None:
    assert {mask for mask, _, _ in chosen("mask=snip", families=True)} == {"snip", "snip(control=shuffled)"}
    assert {mask for mask, _, _ in chosen("mask=file", families=True)} == {"file:./theirs.pt"}
    assert {mask for mask, _, _ in chosen("mask=snip")} == {"snip"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("snip", "--only 'snip': write AXIS=VALUE,... with axes of mask, sparsity, seed"),
        ("masks=snip", "did you mean 'mask'?"),
        (
            "mask=snap",
            "no cell has it; there are snip, snip(control=shuffled), file:./theirs.pt (did you mean 'snip'?)",
        ),
        ("sparsity=lots", "--only sparsity: "),
        ("mask=snip,seed=0,sparsity=50%", "--only sparsity=50%: no cell has it; there are 90%, 98%"),
    ],
)
def test_a_mistake_says_what_is_there(given: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        chosen(given)
    assert said in str(raised.value)


def test_values_that_no_cell_has_together_are_told() -> None:
    cells = [*CELLS, {"mask": "dense", "sparsity": "0%", "seed": "0"}]
    with pytest.raises(UserError, match="no cell has all of these together; leave one out"):
        choose("mask=dense,seed=1", "--why", cells)
