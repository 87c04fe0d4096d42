"""Compare recipes on validation slides: nested, with several seeds; no test slide is read.

python benchmarks/bench_recipes.py --cache cache --dataset her2st --width 256
python benchmarks/bench_recipes.py --cache cache --dataset her2st --recipe-file benchmarks/recipes.toml --recipes all

Each slide is a test slide once and is put aside. Of the others each is scored once: by a model that was trained without
it and whose epoch was selected on yet other slides. A score is the mean PCC over all genes within the scored slide.
Beside the model stands ridge on the same inputs and targets. `--keep FILE` holds the scores, so that the same command
goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from results import add_json_option, add_results

from hist_cache.splits import Split
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


def inner_splits(slides: list[str], n_select: int) -> Iterator[Split]:
    """For each test slide, each other slide as the one that is scored; the slides that select are the next ones."""
    for outer, aside in enumerate(slides):
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

    def setting(self, recipe: str, seed: int, split: Split) -> tuple[Setting, SpotData]:
        """The setting of a recipe, and the data of its split."""
        options = self.options.with_values({"recipe": recipe, "seed": seed})
        (point,) = points(options)
        protocol = get_protocol(point.protocol)
        panel = self.workspace.panel(point.genes, point.n_genes, panel_slides(protocol, split, self.workspace))
        setting = make_setting(point, protocol, options, self.workspace, panel)
        key = DataKey(
            *(point.neighbors, tuple(panel), point.transform, protocol.edge_spots == "drop", protocol.niche_profile),
            n_rings=setting.recipe.n_rings,
        )
        return setting, self.workspace.data(key, torch.device("cpu"))

    def score(self, recipe: str, seed: int, split: Split) -> Score:
        """PCC of the model and of ridge on the scored slide, and how training went."""
        setting, data = self.setting(recipe, seed, split)
        train, val, scored = (data.rows(part) for part in (split.train, split.val, split.test))
        config, rule = setting.recipe, setting.fit.select_by

        def components(read: SpotData, count: int) -> Components:
            own = (config.standardize, config.neighbor_rings) if read is not data else ("none", 0)
            key = (*own, count, split.train, data.panel[0])
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
            torch.manual_seed(seed + member)
            model = make_member(setting)
            progress = fit(model, fitted.data, train, val, setting.fit, None)
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


def summary(recipe: str, scores: list[Score], seeds: list[int]) -> dict[str, float]:
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


def main() -> None:
    """Score all recipes and print the table, the best one first."""
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
    parser.add_argument("--keep", type=Path, help="file of the scores, a line of JSON each")
    add_json_option(parser)
    args = parser.parse_args()
    given = {"cache": args.cache, "dataset": args.dataset, "encoder": args.encoder, "recipe_file": args.recipe_file}
    given |= {"width": args.width}
    options = TrainOptions().with_values({name: value for name, value in given.items() if value is not None})
    workspace = open_workspace(options, [6])
    names = args.recipes.split(",")
    if names == ["all"]:
        names = [*recipe_names(), *(read_rows(Path(args.recipe_file)) if args.recipe_file else ())]
    seeds = [int(seed) for seed in args.seeds.split(",")]
    slides = sorted(workspace.slides)
    splits = [s for s in inner_splits(slides, args.select) if s.name in {f"without {t}" for t in slides[: args.folds]}]
    kept = [json.loads(line) for line in args.keep.read_text().splitlines()] if args.keep and args.keep.exists() else []
    scores = {(s["recipe"], s["seed"], s["split"], s["scored"]): s for s in kept}
    scorer = Scorer(workspace, options)
    for seed in seeds:
        for name in names:
            for split in splits:
                key = (name, seed, split.name, split.test[0])
                if key not in scores:
                    scores[key] = dict(zip(("recipe", "seed", "split", "scored"), key, strict=True)) | scorer.score(
                        name, seed, split
                    )
                    if args.keep:
                        with args.keep.open("a") as file:
                            file.write(json.dumps(scores[key]) + "\n")
    wanted = [s for s in scores.values() if s["recipe"] in names and s["seed"] in seeds]
    rows = {name: summary(name, [s for s in wanted if s["recipe"] == name], seeds) for name in names}
    print(f"{args.dataset}: {len(splits)} inner splits, seeds {args.seeds}; mean PCC of all genes on slides put aside")
    print(f"{'recipe':24} {'PCC':>7} {'± seeds':>8} {'ridge*':>7} {'gain':>7} {'worst/ridge':>12} {'MSE':>6}")
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["pcc"]):
        cells = f"{row['pcc']:7.4f} {row['std']:8.4f} {row['ridge']:7.4f} {row['gain']:+7.4f} {row['worst']:12.2f}"
        print(f"{name:24} {cells} {row['mse']:6.3f}")
    print("ridge*: on the same inputs and targets, with the same smoothing")
    add_results(args.json, "recipes", {args.dataset: rows})


if __name__ == "__main__":
    main()
