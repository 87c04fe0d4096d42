"""Protocols: what the published sources disagree on, as named sets of defaults.

They are rows of protocols.toml and of the user's own file.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from hist_cache.errors import InputError
from hist_cache.fingerprint import CropRule
from hist_cache.own_tables import own_rows
from hist_cache.texts import did_you_mean
from hist_cache.validation_slides import ValidateOn
from train.expression import NicheProfile
from train.fit.config import FitConfig, Tested
from train.models.configs import HistConfig
from train.models.variants import Variant
from train.options import TrainOptions

PROTOCOLS_FILE = Path(__file__).with_name("protocols.toml")

PanelFrom = Literal["all", "train"]
EdgeSpots = Literal["keep", "drop"]


@dataclass(frozen=True)
class Protocol:
    """The resolved choices; stored with every result. protocols.toml says what each means."""

    name: str
    panel_from: PanelFrom = "all"
    split: str = ""
    edge_spots: EdgeSpots = "keep"
    tested: Tested = "best"
    entail_scale: float = 1.0
    etas: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    min_spot_um: float = 0.0
    niche_profile: NicheProfile = field(default="log_of_mean", metadata={"since": "0.2"})
    validate_on: ValidateOn = field(default="next", metadata={"since": "0.2"})

    def with_options(self, **options: Any) -> Protocol:
        """With those options that were given (not None) in place of the protocol's own."""
        return replace(self, **{k: v for k, v in options.items() if v is not None})

    def apply(self, variant: Variant) -> Variant:
        """The variant with this protocol's weights and cones of entailment."""
        if variant.own_etas:
            return variant
        a, b, c, d = (self.entail_scale * w for w in variant.terms.entail)
        return replace(variant, terms=replace(variant.terms, entail=(a, b, c, d), etas=self.etas))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as config.json holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read back what `as_dict` gave."""
        return cls(**(values | {"etas": tuple(values["etas"])}))


@cache
def _program_rows() -> dict[str, Any]:
    return tomllib.loads(PROTOCOLS_FILE.read_text("utf-8"))


def _rows() -> dict[str, Any]:
    return _program_rows() | own_rows("protocols")


def get_protocol(name: str) -> Protocol:
    """The protocol called `name`; `InputError` listing the names on an unknown one."""
    rows = _rows()
    if name not in rows:
        raise InputError(f"--protocol {name}{did_you_mean(name, rows)}: there are {', '.join(rows)}")
    row = {k: v for k, v in rows[name].items() if k not in ("description", "options")}
    for key in ("entail_scale", "min_spot_um"):
        row |= {key: float(row[key])} if name in own_rows("protocols") and key in row else {}
    return Protocol(name=name, **(row | ({"etas": tuple(map(float, row["etas"]))} if "etas" in row else {})))


def protocol_options(name: str) -> dict[str, Any]:
    """What a protocol sets of the model, of the training loop and of LoRA, by the names of their options.

    `Protocol` does not hold them: config.json has the resolved values where these options are.
    """
    return dict(_rows()[name].get("options", {}))


def protocol_names() -> list[str]:
    """All protocols, in the order of their table."""
    return list(_rows())


def decided_by(name: str) -> dict[str, Any]:
    """The values of all settings that any protocol decides, as they are under this one where nothing else is given."""
    kinds = (HistConfig, FitConfig, TrainOptions)
    defaults = {f.name: f.default for kind in kinds for f in fields(kind)}
    names = dict.fromkeys(option for other in protocol_names() for option in protocol_options(other))
    protocol = get_protocol(name)
    values = {f.name: getattr(protocol, f.name) for f in fields(protocol)} | {"split": protocol.split or "default"}
    return {option: defaults[option] for option in names} | values | protocol_options(name)


def check_crops(protocol: Protocol, rule: CropRule) -> str | None:
    """Return what to say if the spot crops of a cache are not those of the protocol, else None.

    Args:
        protocol: The protocol that a run follows.
        rule: How wide the crops of the cache are.
    """
    expected = CropRule(protocol.min_spot_um)
    if rule == expected:
        return None
    option = f" --min-spot-um {expected.min_spot_um:g}" if expected.min_spot_um else ""
    return f"protocol {protocol.name} has spot crops of {expected}, the cache of {rule}: run hist-extract{option}"
