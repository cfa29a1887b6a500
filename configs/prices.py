"""What accelerators cost and can do: ``configs/prices.yaml``, or a table of the user's own (``cluster.prices``).

Read by `stillhouse plan`, by the budget, and by the report's costs. The prices that ship are examples.
"""

from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, PositiveFloat, RootModel, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from configs.errors import UserError
from configs.section import Section

SHIPPED = Path(__file__).with_name("prices.yaml")
CPU_CORE = "cpu_core"


class Price(Section):
    """One kind of accelerator, or one CPU core."""

    usd_per_hour: Annotated[float, Field(ge=0.0)]
    """Of one (US dollars)."""
    memory_gib: PositiveFloat
    """Its memory; of a CPU, what belongs to one core (GiB)."""
    bf16_flops: PositiveFloat
    """Dense bfloat16 operations/s with float32 sums."""
    bandwidth_gb_per_s: PositiveFloat
    """Of its memory (10⁹ bytes/s)."""
    as_of: date
    """When the price was looked up."""
    source: str
    """Where the price is from."""

    @property
    def usd_per_second(self) -> float:
        """US dollars."""
        return self.usd_per_hour / 3600


class PriceTable(RootModel[dict[str, Price]]):
    """Prices by Ray's accelerator type, such as H100, and ``cpu_core``."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="after")
    def _check(self) -> "PriceTable":
        if CPU_CORE not in self.root:
            raise ValueError(f"needs an entry {CPU_CORE}, one logical CPU")
        return self

    @property
    def cpu_core(self) -> Price:
        """Of one logical CPU."""
        return self.root[CPU_CORE]

    @property
    def accelerators(self) -> dict[str, Price]:
        """By Ray's accelerator type."""
        return {name: price for name, price in self.root.items() if name != CPU_CORE}

    def find(self, accelerator_type: str) -> Price | None:
        """The entry of an accelerator type; None where the table has none."""
        return self.accelerators.get(accelerator_type)


def load_prices(path: str | None = None) -> PriceTable:
    """Read a table of prices; the one that ships without a path.

    Raises:
        UserError: there is no such file, or it is no table of prices; names the entry and the rule.
    """
    file = SHIPPED if path is None else Path(path).expanduser()
    try:
        tree = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
        return PriceTable.model_validate(tree)
    except OSError as error:
        raise UserError(
            f"cluster.prices: {file} cannot be read ({error.strerror}); copy {SHIPPED} and put in your own prices"
        ) from None
    except YAMLError as error:
        raise UserError(f"cluster.prices: {file} is not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the table"
        raise UserError(
            f"cluster.prices: {file}: {place}: {first['msg']}; {SHIPPED} shows the form of an entry"
        ) from None
