"""Compare recipes on validation slides: nested, with several seeds.

python benchmarks/bench_recipes.py --cache cache --dataset her2st --width 256
python benchmarks/bench_recipes.py --cache cache --dataset her2st --recipe-file benchmarks/recipes.toml --recipes all

Each slide is a test slide once and is put aside. Of the others each is scored once: by a model that was trained without
it and whose epoch was selected on yet other slides. A score is the mean PCC over all genes within the scored slide.
Beside the model stands ridge on the same inputs and targets. `--keep FILE` holds the scores, so that the same command
goes on.

The gene panel is chosen on all slides, as protocol `paper` does, those put aside and scored included; it is the same
for all recipes. Nothing else of a slide that is put aside enters a score. With `--panel-from train` the panel of each
split is chosen on its train slides.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from results import add_json_option, add_results

from hist_cache.errors import HistError, InputError
from hist_cache.fingerprint import short_hash
from hist_cache.splits import SPLIT_PARTS, Split
from train.data import SpotData
from train.experiments.announcements import open_workspace
from train.experiments.grid import points
from train.experiments.jobs import make_setting, panel_slides
from train.experiments.outputs import make_member
from train.experiments.protocols import get_protocol
from train.experiments.setting import Setting
from train.fit.loop import fit, predict
from train.models.baselines import COMPONENTS, TUNED_COMPONENTS
from train.models.components import Components, principal_components
from train.options import TrainOptions
from train.recipes.fitted import fit_recipe
from train.recipes.table import read_rows, recipe_names
from train.selection import slide_pcc
from train.workspace import DataKey, Workspace

Score = dict[str, Any]
MIN_SLIDES = 4
GIVEN = ("cache", "dataset", "encoder", "recipe_file", "width", "panel_from")  # options that hist-train has too
SEED_COUNT = 2**32  # seeds of members begin anew at 0 after the last one


def inner_splits(slides: list[str], n_select: int, n_aside: int | None = None) -> Iterator[Split]:
    """For each test slide, each other slide as the one that is scored; the slides that select are the next ones.

    Args:
        slides: All there are.
        n_select: How many select the epoch; fewer where none would be left to train on.
        n_aside: Put only the first so many slides aside; None: each once.
    """
    if len(slides) < MIN_SLIDES:
        raise InputError(
            f"{len(slides)} slides in the cache: {MIN_SLIDES} at least are needed, one each to put aside, to score, to "
            "select the epoch and to train on"
        )
    for outer, aside in enumerate(slides[:n_aside]):
        rest = [*slides[outer + 1 :], *slides[:outer]]
        for i, scored in enumerate(rest):
            others = [*rest[i + 1 :], *rest[:i]]
            count = min(n_select, len(others) - 1)
            yield Split(tuple(others[count:]), tuple(others[:count]), (scored,), f"without {aside}")


class Scorer:
    """Trains and scores settings on the splits of one dataset; components are computed once for each split."""

    def __init__(self, workspace: Workspace, options: TrainOptions) -> None:
        self.workspace, self.options = workspace, options
        self._components: dict[tuple[object, ...], Components] = {}

    def setting(self, recipe: str, seed: int, split: Split) -> tuple[Setting, DataKey]:
        """The setting of a recipe, and what data it reads."""
        options = self.options.with_values({"recipe": recipe, "seed": seed})
        (point,) = points(options)
        protocol = get_protocol(point.protocol).with_options(panel_from=options.panel_from)
        panel = self.workspace.panel(point.genes, point.n_genes, panel_slides(protocol, split, self.workspace))
        setting = make_setting(point, protocol, options, self.workspace, panel)
        key = DataKey(
            *(point.neighbors, tuple(panel), point.transform, protocol.edge_spots == "drop", protocol.niche_profile),
            n_rings=setting.recipe.n_rings,
        )
        return setting, key

    def key(self, recipe: str, seed: int, split: Split) -> str:
        """What a score depends on: the setting, the contents of the slides, and which of them are for what."""
        setting, _ = self.setting(recipe, seed, split)
        parts = {part: sorted(getattr(split, part)) for part in SPLIT_PARTS}
        return f"{setting.name} {short_hash({'split': parts, 'digests': setting.digests})}"

    def score(self, recipe: str, seed: int, split: Split) -> Score:
        """PCC of the model and of ridge on the scored slide, and how training went."""
        setting, data_key = self.setting(recipe, seed, split)
        data = self.workspace.data(data_key, torch.device("cpu"))
        train, val, scored = (data.rows(part) for part in (split.train, split.val, split.test))
        config, rule = setting.recipe, setting.fit.select_by

        def components(read: SpotData, count: int) -> Components:
            own = (config.standardize, config.neighbor_rings) if read is not data else ("none", 0)
            key = (*own, count, split.train)
            if key not in self._components:
                self._components[key] = principal_components(read, train, count)
            return self._components[key]

        fitted = fit_recipe(
            *(config, data, train, val, rule),
            lambda cached: components(cached, COMPONENTS),
            lambda seen: components(seen, TUNED_COMPONENTS),
            compared=scored,
        )
        outputs, best = [], []
        for member in range(config.ensemble):
            loop = replace(setting.fit, seed=(seed + member) % SEED_COUNT)
            torch.manual_seed(loop.seed)
            model = make_member(setting)
            model.look_around(fitted.data.surroundings)
            model.prepare(fitted.data, train, val, loop.seed)
            progress = fit(model, fitted.data, train, val, loop, None)
            outputs.append(predict(model, fitted.data, scored))
            best.append((progress.best_epoch, progress.epoch))
        predicted = fitted.complete(torch.stack(outputs).mean(0), scored)
        assert fitted.ridge is not None
        ridge = fitted.complete(fitted.ridge[scored], scored)
        truth, slide = data.expression[scored], data.slide[scored]
        return {
            "model": slide_pcc(predicted, truth, slide).item(),
            "ridge": slide_pcc(ridge, truth, slide).item(),
            "mse": (predicted - truth).square().mean().item(),
            "epochs": best,
        }


def summary(scores: list[Score], seeds: list[int]) -> dict[str, float]:
    """Means over splits, then mean and standard deviation over seeds."""
    by_seed = [[s for s in scores if s["seed"] == seed] for seed in seeds]
    means = [statistics.mean(s["model"] for s in rows) for rows in by_seed if rows]
    ridge = statistics.mean(s["ridge"] for s in scores)
    worst = min(s["model"] / max(s["ridge"], 1e-9) for s in scores)
    return {
        "pcc": statistics.mean(means),
        "std": statistics.stdev(means) if len(means) > 1 else 0.0,
        "ridge": ridge,
        "gain": statistics.mean(means) - ridge,
        "worst": worst,
        "mse": statistics.mean(s["mse"] for s in scores),
    }


def read_scores(file: Path | None) -> dict[str, Score]:
    """The scores that were kept, by key; a last line that a kill has cut off is removed from the file."""
    if file is None or not file.exists():
        return {}
    text = file.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole)
    try:
        scores = [json.loads(line) for line in whole.splitlines()]
        return {score["key"]: score for score in scores if "key" in score}
    except (ValueError, TypeError) as error:
        raise InputError(f"--keep {file}: it does not hold scores ({error}); give another file") from None


def keep_score(file: Path | None, score: Score) -> None:
    """Add a score to the file of those that are kept."""
    if file is not None:
        with file.open("a") as opened:
            opened.write(json.dumps(score) + "\n")


def all_scores(
    scorer: Scorer, recipes: Sequence[str], seeds: Sequence[int], splits: Sequence[Split], keep: Path | None
) -> list[Score]:
    """The score of every recipe under every seed on every split, those that were kept among them."""
    kept, scores = read_scores(keep), []
    for seed, recipe, split in product(seeds, recipes, splits):
        key = scorer.key(recipe, seed, split)
        if key not in kept:
            names = {"key": key, "recipe": recipe, "seed": seed, "split": split.name, "scored": split.test[0]}
            kept[key] = names | scorer.score(recipe, seed, split)
            keep_score(keep, kept[key])
        scores.append(kept[key])
    return scores


def print_table(rows: dict[str, dict[str, float]]) -> None:
    """A line for each recipe, the best one first."""
    print(f"{'recipe':24} {'PCC':>7} {'± seeds':>8} {'ridge*':>7} {'gain':>7} {'worst/ridge':>12} {'MSE':>6}")
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["pcc"]):
        cells = f"{row['pcc']:7.4f} {row['std']:8.4f} {row['ridge']:7.4f} {row['gain']:+7.4f} {row['worst']:12.2f}"
        print(f"{name:24} {cells} {row['mse']:6.3f}")
    print("ridge*: on the same inputs and targets, with the same smoothing")


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", default="cache")
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--encoder")
    parser.add_argument("--recipes", default=",".join(recipe_names()), help="names, or all")
    parser.add_argument("--recipe-file")
    parser.add_argument("--seeds", default="42,43,44")
    parser.add_argument("--width", type=int)
    parser.add_argument("--select", type=int, default=1, help="slides that select the epoch (default: 1)")
    parser.add_argument("--folds", type=int, help="put only the first so many slides aside")
    parser.add_argument("--panel-from", choices=("all", "train"), help="slides that choose the genes (default: all)")
    parser.add_argument("--keep", type=Path, help="file of the scores, a line of JSON each")
    add_json_option(parser)
    return parser


def main() -> None:
    """Score all recipes and print the table."""
    args = make_parser().parse_args()
    given = {name: getattr(args, name) for name in GIVEN}
    options = TrainOptions().with_values({name: value for name, value in given.items() if value is not None})
    workspace = open_workspace(options, [6])
    names = args.recipes.split(",")
    if names == ["all"]:
        names = [*recipe_names(), *(read_rows(Path(args.recipe_file)) if args.recipe_file else ())]
    seeds = [int(seed) for seed in args.seeds.split(",")]
    splits = list(inner_splits(sorted(workspace.slides), args.select, args.folds))
    scores = all_scores(Scorer(workspace, options), names, seeds, splits, args.keep)
    rows = {name: summary([s for s in scores if s["recipe"] == name], seeds) for name in names}
    print(f"{args.dataset}: {len(splits)} inner splits, seeds {args.seeds}; mean PCC of all genes on slides put aside")
    print_table(rows)
    add_results(args.json, "recipes", {args.dataset: rows})


if __name__ == "__main__":
    try:
        main()
    except HistError as error:
        raise SystemExit(f"error: {error}") from None
