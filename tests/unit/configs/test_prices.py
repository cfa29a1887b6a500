"""The table of prices: the one that ships, and one of the user's own."""

from pathlib import Path

import pytest

from configs.errors import UserError
from configs.prices import SHIPPED, load_prices

pytestmark = pytest.mark.unit

ENTRY = """cpu_core:
  {usd_per_hour: 0.02, memory_gib: 2, bf16_flops: 1.0e+10, bandwidth_gb_per_s: 5, as_of: 2025-06-01, source: ours}
"""


def test_shipped_table_says_that_its_prices_are_examples() -> None:
    prices = load_prices()
    assert all(price.source.startswith("example") for price in prices.root.values())
    assert "PRICES ARE EXAMPLES" in SHIPPED.read_text()


def test_shipped_table_names_gpus_as_ray_does() -> None:
    """Read as text: importing Ray takes seconds."""
    from importlib.util import find_spec

    ray = find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    names = (Path(ray.origin).parent / "util" / "accelerators" / "accelerators.py").read_text()
    assert [name for name in load_prices().accelerators if f'"{name}"' not in names] == []


def test_own_table_replaces_the_shipped_one(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(ENTRY)
    prices = load_prices(str(path))
    assert prices.cpu_core.usd_per_second == pytest.approx(0.02 / 3600)
    assert prices.find("H100") is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{}", "cpu_core"),
        ("", "the table"),
        ("cpu_core: [", "not valid YAML"),
        (ENTRY + "H100: {usd_per_hour: -1}", "H100"),
        (ENTRY + ENTRY.replace("cpu_core", "H100").replace("0.02", "-1"), "H100.usd_per_hour"),
    ],
)
def test_wrong_table_is_refused_by_entry_and_rule(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=named) as caught:
        load_prices(str(path))
    assert str(caught.value).startswith("cluster.prices: ")


def test_missing_table_is_refused_with_the_one_to_copy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"copy .*prices\.yaml"):
        load_prices(str(tmp_path / "none.yaml"))
