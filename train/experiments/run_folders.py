"""The folder of a run, which holds no fold that was made from slides with other contents.

The name of a run is a hash of its options. Counts may be corrected, or slides be extracted again, under the same
options. Then the run that is there keeps its folder, and the same options on the new contents get one of their own,
`<name>-<8 hex digits of the contents>`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hist_cache.checked import is_of
from hist_cache.errors import InputError
from hist_cache.fingerprint import short_hash
from hist_cache.runs import CONFIG, RUN_ANEW, Fold, fold_folders
from train.experiments.setting import Setting, read_setting

Digests = dict[str, dict[str, str]]


def run_folder(parent: Path, setting: Setting) -> Path:
    """The folder of a setting's run: that of its name, unless folds on other contents are in it.

    Args:
        parent: Folder of the dataset's runs.
        setting: With the digests of the slides that it reads.
    """
    plain, own = parent / setting.name, parent / f"{setting.name}-{short_hash(setting.digests)}"
    if own.is_dir():
        return own
    return own if any(digests not in ({}, setting.digests) for _, digests in recorded_digests(plain)) else plain


def recorded_digests(run: Path) -> Iterator[tuple[str, Digests]]:
    """Name of each fold with a result or a checkpoint, and the digests of its slides; {} where version 0.1 made it."""
    for fold in map(Fold, fold_folders(run)):
        if fold.finished or fold.stopped:
            digests = fold.config.get("digests", {})
            if not is_of(digests, Digests):
                raise InputError(f"{fold.folder / CONFIG}: 'digests' are none of slides; {RUN_ANEW}")
            yield fold.folder.name, digests


def changed_contents(runs: Sequence[tuple[Path, Setting]]) -> list[str]:
    """What to say of runs on other contents of the same slides, and of folds that do not know theirs.

    Args:
        runs: Folder and setting of each run.
    """
    sentences = []
    for folder, setting in runs:
        if folder.name != setting.name:
            plain = folder.with_name(setting.name)
            changes = [describe_changes(old, setting.digests) for _, old in recorded_digests(plain)]
            what = ", ".join(dict.fromkeys(text for of_fold in changes for text in of_fold)) or "other slides"
            sentences.append(f"{plain}: made before its slides changed ({what}), so it is run again, in {folder.name}")
        elif not any(recorded_digests(folder)):
            sentences += [
                f"{other}: made before its slides changed ({', '.join(changes)}), and the gene panel with them, so "
                f"it is run again, in {folder.name}"
                for other, changes in _with_other_panel(folder, setting)
            ]
        if unknown := [name for name, digests in recorded_digests(folder) if not digests]:
            sentences.append(
                f"{folder}: {', '.join(unknown)} made by version 0.1, which did not record what its slides held: "
                "whether they have changed since is not known (delete the folder to run it again)"
            )
    return sentences


def _with_other_panel(folder: Path, setting: Setting) -> Iterator[tuple[Path, list[str]]]:
    """Runs with the same options as a new one whose genes were chosen from other contents, and what has changed."""
    options = _options_hash(setting)
    for other in sorted(folder.parent.glob(f"{setting.method}-*")):
        finished = [fold for fold in map(Fold, fold_folders(other)) if fold.finished]
        if other == folder or not finished:
            continue
        try:
            theirs = read_setting(finished[0].folder / CONFIG, finished[0].config)
        except InputError:
            continue  # hist-report says what is wrong with it
        changes = describe_changes(theirs.digests, setting.digests)
        if changes and _options_hash(theirs) == options:
            yield other, changes


def _options_hash(setting: Setting) -> str:
    return short_hash(setting.identity() | {"panel": ""})


def describe_changes(old: Digests, new: Digests) -> list[str]:
    """Which slides have other counts or other embeddings; empty where the old ones are not recorded."""
    texts = []
    for slide in [s for s in old if old[s] != new.get(s, old[s])]:
        parts = [part for part in old[slide] if old[slide][part] != new[slide].get(part)]
        texts.append(f"{slide} has other {' and '.join(parts)}")
    return texts + [f"{slide} was not there" for slide in new if old and slide not in old]
