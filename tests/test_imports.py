"""Imports point one way: down the stairs of each package, and hist_cache <- extract <- train <- sweeps."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGES = ("hist_cache", "extract", "train", "sweeps")

# The stairs inside a package: a room, which is a folder or a file, imports only from itself and from rooms before it.
STAIRS = {
    "hist_cache.cluster": (
        *(
            "facts",
            "checks",
            "settings",
            "ray_cluster",
            "room",
            "courier",
            "seats",
            "processes",
            "inbox",
            "executor",
            "gang",
            "engine",
        ),
    ),
    "extract": (
        *(
            "encoders",
            "slides",
            "identity",
            "plan",
            "clock",
            "pipeline",
            "loading",
            "leftovers",
            "claims",
            "scheduler",
            "embeddings",
            "virtual_slides",
            "spot_blocks",
            "virtual_embeddings",
            "tokens",
            "adapted",
            "chosen_encoder",
            "shared_precision",
            "workers",
            "extraction",
            "status",
            "imports",
            "options",
            "cli",
        ),
    ),
    "extract.encoders": (
        "adapter_slides",
        "encoder",
        "weights",
        "lora",
        *("attention", "dropout", "tuned_forward"),
        "adapters",
        "registry",
    ),
    "extract.slides": (
        "image",
        "colors",
        "codestreams",
        "directories",
        *("ome", "tiff_level", "tiff", "ome_zarr", "openslide_program", "czi_program", "vendors", "dicom_series"),
        "readers",
        "crops",
        "batches",
        *("tissue", "masks", "virtual_spots", "given_spots", "focus", "pixel_size", "listing"),
    ),
    "extract.imports": (
        *(
            "options",
            "sample",
            "given_image",
            "pitch",
            "pseudo_spots",
            "tenx_matrix",
            "matrix_rows",
            "parquet",
            "alignment",
        ),
        *("space_ranger", "visium_hd", "xenium_points", "xenium", "legacy_st", "h5ad_table", "hest_slide"),
        *("element_image", "spatial_data", "readers"),
        *("placement", "checks", "overlay", "layout", "dataset_entry", "work", "cli"),
    ),
    "train": (
        *(
            "distributed",
            "expression",
            "rings",
            "parts",
            "depth",
            "data",
            "shared_data",
            "assembly",
            "twins",
            "workspace",
            "leaks",
        ),
        *("relative_values", "metrics", "pathways", "selection", "figures", "models", "recipes", "fit", "finetune"),
        *("loggers", "options", "experiments", "report", "predict", "export", "cli"),
    ),
    "train.models": (
        *("configs", "numerics", "lorentz", "exponential", "lorentz_losses", "alignment", "variants", "projection"),
        *("base", "registry", "components", "ridge", "baselines", "interpolation", "ensemble", "streams", "hist"),
        *("stnet", "bleep", "istar", "coordinates", "gaussians", "stevs", "diffusion", "stem"),
        *("slide_spots", "attention_blocks", "triplex"),
    ),
    "train.recipes": ("config", "table", "inputs", "targets", "fitted", "restored"),
    "train.fit": ("config", "allocation", "adamw", "average", "batches", "step", "graph", "checkpoints", "loop"),
    "train.finetune": ("memory", "inputs", "token_inputs", "crop_inputs", "encoder"),
    "train.experiments": (
        *(
            "protocols",
            "own_rows",
            "grid",
            "setting",
            "within",
            "fold_files",
            "run_folders",
            "claims",
            "jobs",
            "precision",
        ),
        *(
            "quick_axes",
            "fold_maps",
            "fold_figures",
            "outputs",
            "members",
            "cautions",
            "memory_limits",
            "controls",
            "fold",
        ),
        *("logged_folds", "announcements", "runner", "adapted"),
    ),
    "train.loggers": ("fold_log", "tensorboard_log", "mlflow_log", "wandb_log"),
    "train.report": (
        *("table", "terminal", "published", "run_settings", "fold_result", "fold_values", "results", "reading"),
        *("comparable", "selection", "alike", "significance", "resampling", "analysis", "baseline_rows"),
        *("against_ridge", "seeds", "checklist", "paper_tables", "ridge_table", "analysis_tables"),
        *("effects_table", "pathway_tables", "ensemble_tables", "plots", "forest", "map_codes", "map_data", "figures"),
        *("context", "page", "auroc", "classify_labels", "classify_data", "classify", "classify_tables"),
        *("classify_plots", "classify_output", "model_table", "paper_figures", "sections", "index_tables"),
        *("index", "cli"),
    ),
    "train.report.paper_figures": (
        "style",
        "map_grid",
        "tissue_maps",
        "scatter",
        "comparison",
        "gene_spread",
        "written",
    ),
    "train.predict": (
        *("predicted", "viewer", "gene_maps", "geojson", "spatialdata", "options", "folds", "inputs", "embedding"),
        *(
            "slide_data",
            "models",
            "fold_model",
            "reference",
            "truth",
            "outputs",
            "slides",
            "extras",
            "work",
            "summary",
            "cli",
        ),
    ),
    "train.export": ("names", "bundle", "card", "cli"),
    "sweeps": (
        *("options", "space", "study", "sampling", "waiting", "storage", "journal", "file_study", "database"),
        *("postgres", "opening", "precision", "trials", "objective", "display", "workers", "final_test"),
        *("figures", "report", "cli"),
    ),
}


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file of all modules of a package."""
    files = (REPOSITORY / package.replace(".", "/")).rglob("*.py")
    return {".".join(f.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


EVERY_MODULE = {name: file for package in PACKAGES for name, file in modules(package).items()}


def imports(file: Path) -> set[str]:
    """Modules of ours that a file imports anywhere: at its head, in functions, and under TYPE_CHECKING."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = members & EVERY_MODULE.keys()
            names |= submodules or {node.module}
    return {name for name in names if name.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package: str) -> None:
    allowed = set(PACKAGES[: PACKAGES.index(package) + 1])
    for name, file in modules(package).items():
        if name != "hist_cache.commands":  # the entry points name all packages
            assert {module.split(".")[0] for module in imports(file)} <= allowed, name


@pytest.mark.parametrize("package", STAIRS)
def test_rooms_import_from_rooms_above_them(package: str) -> None:
    rooms = STAIRS[package]
    depth = package.count(".") + 1

    def room(module: str) -> str | None:
        inside = module.startswith(f"{package}.")
        return module.split(".")[depth] if inside else None

    found = {room(name) for name in modules(package)} - {None}
    assert found == set(rooms), "every file and folder has its place on the stairs"
    for name, file in modules(package).items():
        own = room(name)
        for imported in imports(file):
            above = room(imported)
            if own and above:
                assert rooms.index(above) <= rooms.index(own), f"{name} imports {imported}, which stands below it"


def test_there_is_no_circle() -> None:
    """Counts imports in functions and under TYPE_CHECKING too."""
    graph = {name: {m for m in imports(file) if m in EVERY_MODULE} - {name} for name, file in EVERY_MODULE.items()}
    graph["hist_cache.commands"] = set()
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_public_names_mean_one_thing() -> None:
    """No function, class or constant of one module has the name of another's; each command has a main."""
    homes: dict[str, str] = {}
    shared = {"main", "DESCRIPTION", "log"}
    for module, file in EVERY_MODULE.items():
        for node in ast.parse(file.read_text()).body:
            names = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            for name in names:
                if not name.startswith("_") and name not in shared:
                    assert homes.setdefault(name, module) == module, f"{name} is in {homes[name]} and in {module}"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("hist_extract", "--dataset"),
        ("hist_import", "--image"),
        ("hist_train", "--dataset"),
        ("hist_sweep", "--trials"),
        ("hist_report", "--against"),
        ("hist_predict", "--wsi"),
        ("hist_export", "--out"),
    ],
)
def test_commands_work_beside_the_users_own_train_and_extract(command: str, option: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('the wrong train')")
    (tmp_path / "extract").mkdir()
    (tmp_path / "extract/__init__.py").write_text("raise SystemExit('the wrong extract')")
    script = "import sys; sys.argv = ['x', '--help']\n"
    script += f"from hist_cache.commands import {command}; raise SystemExit({command}())"
    environment = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert option in done.stdout


@pytest.mark.parametrize(
    "module",
    [
        "extract.cli",
        "extract.imports.cli",
        "train.cli",
        "train.report.cli",
        "train.predict.cli",
        "train.export.cli",
        "sweeps.cli",
    ],
)
def test_help_imports_nothing_heavy(module: str) -> None:
    script = f"import sys; from {module} import main\n"
    script += "try: main(['--help'])\nexcept SystemExit: pass\n"
    script += (
        "heavy = {'torch', 'timm', 'anndata', 'scipy', 'pandas', 'matplotlib', 'h5py', 'optuna'} & set(sys.modules)\n"
    )
    script += "assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_file_alone_imports_ray() -> None:
    def roots(file: Path) -> set[str]:
        nodes = list(ast.walk(ast.parse(file.read_text())))
        plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        return {name.split(".")[0] for name in plain | {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}}

    assert {name for name, file in EVERY_MODULE.items() if "ray" in roots(file)} == {"hist_cache.cluster.ray_cluster"}


def test_files_stay_about_one_thing() -> None:
    for package in PACKAGES:
        for file in (REPOSITORY / package).rglob("*.py"):
            assert len(file.read_text().splitlines()) <= 330, file
