"""What a study is: the options that hold for all its trials, what it searches, by what it judges, and where it lies."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import train.options
from hist_cache.errors import InputError
from hist_cache.fingerprint import short_hash
from sweeps.options import Config
from sweeps.space import Parameter
from train.experiments.grid import points
from train.experiments.jobs import Job, make_jobs
from train.metrics import TOP
from train.workspace import Workspace

LISTS = ("ablation", "neighbors", "genes", "n_genes", "split", "protocol", "transform", "lora_layers")
NOT_OF_A_RUN = ("fold", "table", "resume", "jobs", "genes_to_plot", "dry_run", "debug")


@dataclass(frozen=True)
class Plan:
    """A study, resolved."""

    config: Config
    """What holds for all trials."""
    space: tuple[Parameter, ...]
    objective: str
    """pcc@k, mse or mae, on validation."""
    defaults: dict[str, Any]
    """The parameters' values without a search."""
    settings: dict[str, Any]
    """Flat: two studies with the same ones are the same."""
    folds: int
    """Of each trial."""
    dataset: str
    runs: Path
    name: str
    """In its storage."""
    folder: Path

    @property
    def maximize(self) -> bool:
        return self.objective.startswith("pcc@")

    @property
    def default_is_in_space(self) -> bool:
        return all(p.holds(self.defaults[p.name]) for p in self.space)

    def better(self, value: float, other: float) -> bool:
        return value > other if self.maximize else value < other

    def jobs(self, workspace: Workspace, values: Mapping[str, Any]) -> list[Job]:
        """The folds of a trial with these values; where they would be run for good, their folders say."""
        return jobs_with(self.config, values, workspace, self.runs)

    def final_jobs(self, workspace: Workspace, values: Mapping[str, Any]) -> list[Job]:
        """All folds, also where the trials had one alone."""
        return jobs_with(dataclasses.replace(self.config, fold=None), values, workspace, self.runs)

    def command(self, values: Mapping[str, Any]) -> str:
        """The hist-train command that these values amount to."""
        words = ["hist-train", "--dataset", self.dataset]
        for field in dataclasses.fields(train.options.Config):
            value = values.get(field.name, getattr(self.config, field.name))
            if field.name in ("dataset", *NOT_OF_A_RUN) or value == field.default:
                continue
            words.append("--" + field.name.replace("_", "-"))
            words += [] if value is True else [str(value)]
        return shlex.join(words)


def jobs_with(config: Config, values: Mapping[str, Any], workspace: Workspace, runs: Path) -> list[Job]:
    chosen = dataclasses.replace(config, **values)
    return make_jobs(points(chosen), chosen, workspace, runs)


def check_single(config: Config) -> None:
    """`InputError` for an option with several values: outside of the space a study has one of each."""
    for name in LISTS:
        value = getattr(config, name)
        if "," in str(value) or (name == "ablation" and value == "all"):
            flag = name.replace("_", "-")
            raise InputError(
                f"--{flag} {value}: a study has one value of each option; search it (--space {name},...) or give one"
            )


def make_plan(config: Config, space: tuple[Parameter, ...], workspace: Workspace, runs: Path) -> Plan:
    """Resolve what is asked for; `InputError` for a value in the space that hist-train would refuse."""
    jobs = jobs_with(config, {}, workspace, runs)
    setting = jobs[0].setting
    sizes = [setting.n_genes]
    for parameter in space:
        for value in parameter.ends:
            found = jobs_with(config, {parameter.name: value}, workspace, runs)[0].setting
            sizes.append(found.n_genes)
    known = vars(config) | vars(setting.model) | vars(setting.loop) | {"neighbors": setting.neighbors}
    known |= {"lora_layers": setting.tuning.lora.layers if setting.tuning else 0}
    objective = objective_named(config.objective, min(sizes))
    settings = flat(
        setting.as_dict()
        | {"space": {p.name: p.as_dict() for p in space}, "objective": objective, "pruner": config.pruner}
        | {"splits": {str(job.fold): dataclasses.asdict(job.split) for job in jobs}, "seed": config.seed}
    )
    name = config.name or short_hash(settings)
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise InputError(f"--name {name}: letters, digits, hyphens, dots and underscores only")
    return Plan(
        config=config,
        space=space,
        objective=objective,
        defaults={p.name: known[p.name] for p in space},
        settings=settings,
        folds=len(jobs),
        dataset=workspace.dataset,
        runs=runs,
        name=f"{workspace.dataset}-{name}",
        folder=runs / workspace.dataset / f"sweep-{name}",
    )


def objective_named(asked: str | None, n_genes: int) -> str:
    """The metric: as asked, else pcc@200, or the largest pcc@k that a panel of `n_genes` has; `InputError`."""
    there = [f"pcc@{k}" for k in TOP if k <= n_genes]
    if asked is None:
        return "pcc@200" if "pcc@200" in there else there[-1] if there else "mse"
    if asked not in (*there, "mse", "mae"):
        raise InputError(f"--objective {asked}: a panel of {n_genes} genes has {', '.join([*there, 'mse', 'mae'])}")
    return asked


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names, as JSON gives them back."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = json.loads(json.dumps(value))
    return found
