"""The plan of a study: options of all its trials, what it searches, its objective, and where it is stored."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hist_cache.errors import InputError
from hist_cache.fingerprint import short_hash
from hist_cache.options import all_option_names, flag, number_lists
from sweeps.options import SweepOptions
from sweeps.space import Parameter
from train.experiments.grid import points, used_options
from train.experiments.jobs import Job, make_jobs
from train.metrics import TOP_K
from train.models.registry import get_model
from train.options import TrainOptions
from train.workspace import Workspace

LIST_OPTIONS = (
    *("model", "ablation", "neighbors", "genes", "n_genes", "split", "protocol", "recipe", "transform", "lora_layers"),
)
RUNNING = (
    "jobs",
    "device",
    "engine",
    "address",
    "workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "insecure",
)  # change no number
NOT_IN_COMMAND = ("fold", "table", "resume", *RUNNING, "genes_to_plot", "logger", "dry_run", "debug")


@dataclass(frozen=True)
class StudyPlan:
    """A study, with everything that the options leave open decided."""

    options: SweepOptions
    """Options that hold for all trials."""
    space: tuple[Parameter, ...]
    objective: str
    """The metric on the validation slides: pcc@k, mse or mae."""
    defaults: dict[str, Any]
    """Each parameter's value without a search."""
    settings: dict[str, Any]
    """By dotted names, in one level; two studies with the same settings are the same study."""
    folds: int
    """Number of folds of each trial."""
    dataset: str
    runs: Path
    name: str
    """Name of the study in its storage."""
    folder: Path
    digests: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    """Of the slides that its trials read; no part of its name, but trials on other contents are another study's."""

    @property
    def maximize(self) -> bool:
        """Whether a higher objective is better."""
        return self.objective.startswith("pcc@")

    @property
    def default_is_in_space(self) -> bool:
        """Whether the search could draw the default setting."""
        return all(p.holds(self.defaults[p.name]) for p in self.space)

    def jobs(self, workspace: Workspace, values: Mapping[str, Any]) -> list[Job]:
        """Return the folds of a trial with these values; their folders are those of an ordinary run."""
        return jobs_with(self.options, values, workspace, self.runs)

    def final_jobs(self, workspace: Workspace, values: Mapping[str, Any]) -> list[Job]:
        """Return all folds with these values, also where each trial has only one fold."""
        return jobs_with(dataclasses.replace(self.options, fold=None), values, workspace, self.runs)

    def command(self, values: Mapping[str, Any]) -> str:
        """Return the hist-train command that runs these values."""
        words = ["hist-train", "--dataset", self.dataset]
        given = self.options.given_values() | dict(values)
        for name in all_option_names(TrainOptions):
            value = given.get(name)
            if name in ("dataset", *NOT_IN_COMMAND) or value is None or value is False:
                continue
            words += [flag(name)] if value is True else [flag(name), str(value)]
        return shlex.join(words)


def jobs_with(options: SweepOptions, values: Mapping[str, Any], workspace: Workspace, runs: Path) -> list[Job]:
    """Return the folds of hist-train for these options, with the values of a trial in place of theirs."""
    chosen = options.with_values(values)
    return make_jobs(points(chosen), chosen, workspace, runs)


def check_single(options: SweepOptions, searchable: Collection[str]) -> None:
    """Check that every option has one value, because only the options in the space may have several.

    Args:
        options: Of the command.
        searchable: Names that --space knows.

    Raises:
        InputError: Where an option has several values.
    """
    given = {name: getattr(options, name) for name in LIST_OPTIONS}
    given |= {name: value for name, value in options.config_values.items() if name in number_lists(type(options))}
    for name, value in given.items():
        if "," in str(value) or value == "all":
            searched = f"search it (--space {name}) or " * (name in searchable)
            raise InputError(f"{flag(name)} {value}: a study has one value of each option; {searched}give one")


def make_study_plan(options: SweepOptions, space: tuple[Parameter, ...], workspace: Workspace, runs: Path) -> StudyPlan:
    """Make the plan of a study.

    Args:
        options: Options of the command.
        space: The parameters to search.
        workspace: The cached slides.
        runs: Folder of all runs.

    Raises:
        InputError: Where hist-train would refuse a value in the space, or the study's name is not valid.
    """
    jobs = jobs_with(options, {}, workspace, runs)
    setting = jobs[0].setting
    defaults = {"neighbors": setting.neighbors} | vars(setting.model) | vars(setting.recipe) | vars(setting.fit)
    searchable = {"neighbors", "n_genes"} | used_options(get_model(setting.model_name))
    for name in (parameter.name for parameter in space):
        if name not in searchable:
            raise InputError(
                f"{name} is no option of --model {setting.model_name}: give --space with the names of others"
            )
    sizes = [setting.n_genes]
    for parameter in space:
        for value in parameter.ends:
            sizes.append(jobs_with(options, {parameter.name: value}, workspace, runs)[0].setting.n_genes)
    objective = objective_named(options.objective, min(sizes))
    settings = flat(
        setting.identity()
        | {"space": {p.name: p.as_dict() for p in space}, "objective": objective, "pruner": options.pruner}
        | {"splits": {str(job.fold): dataclasses.asdict(job.split) for job in jobs}, "seed": options.seed}
    )
    name = options.name or short_hash(settings)
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise InputError(f"--name {name}: letters, digits, hyphens, dots and underscores only")
    return StudyPlan(
        options=options,
        space=space,
        objective=objective,
        defaults={p.name: defaults[p.name] for p in space},
        settings=settings,
        folds=len(jobs),
        dataset=workspace.dataset,
        runs=runs,
        name=f"{workspace.dataset}-{name}",
        folder=runs / workspace.dataset / f"sweep-{name}",
        digests=setting.digests,
    )


def objective_named(name: str | None, n_genes: int) -> str:
    """Choose the metric by which trials are judged.

    Args:
        name: As given; None for pcc@200, or the largest pcc@k of a smaller panel.
        n_genes: Size of the smallest panel of the study.

    Raises:
        InputError: Where a panel of this size has no such metric.
    """
    metrics = [f"pcc@{k}" for k in TOP_K if k <= n_genes]
    if name is None:
        return "pcc@200" if "pcc@200" in metrics else metrics[-1] if metrics else "mse"
    if name not in (*metrics, "mse", "mae"):
        raise InputError(f"--objective {name}: a panel of {n_genes} genes has {', '.join([*metrics, 'mse', 'mae'])}")
    return name


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Put nested settings into one level, by dotted names, with values as JSON reads them back."""
    flattened: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flattened |= flat(value, f"{prefix}{key}.")
        else:
            flattened[f"{prefix}{key}"] = json.loads(json.dumps(value))
    return flattened
