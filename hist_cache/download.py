"""Fetch a dataset's slides from Hugging Face: exactly the files it lacks, file by file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from hist_cache.console import Meter, duration, say, size, warn
from hist_cache.errors import HistError, InputError

HEST = "MahmoodLab/hest"


def needed_files(ids: Iterable[str]) -> list[str]:
    """Paths in the repository (and below a data root) of the slides' three files each."""
    return [file for slide in ids for file in (f"metadata/{slide}.json", f"st/{slide}.h5ad", f"wsis/{slide}.tif")]


def missing_files(ids: Iterable[str], root: Path) -> list[str]:
    """Those of `needed_files` that are not below `root`; a file appears there only when it is whole."""
    return [file for file in needed_files(ids) if not (root / file).is_file()]


def download(
    ids: Iterable[str],
    root: Path,
    repo_id: str = HEST,
    revision: str | None = None,
    endpoint: str | None = None,
) -> list[Path]:
    """Fetch what is missing of the slides into `root`, and return the files fetched.

    revision: branch, tag or commit; endpoint: a server with the Hub's protocol (default: $HF_ENDPOINT).
    `InputError` where access has to be asked for, or where files are not in the repository (the others are
    fetched first); `HistError` where the server cannot be reached or the disk is full. Fetched files stay.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    slides = list(ids)
    files = missing_files(slides, root)
    if not files:
        say(f"all {len(needed_files(slides))} files of {len(slides)} slides are in {root}")
        return []
    sizes = remote_sizes(repo_id, files, revision, endpoint)
    say(_plan(files, sizes, len(needed_files(slides)), repo_id, root))
    fetched: list[Path] = []
    absent: list[str] = []
    meter = Meter("download", sum(sizes.values()), "B")
    for i, file in enumerate(files):
        say(_line(meter, i, len(files), file, sizes))
        try:
            hf_hub_download(repo_id, file, repo_type="dataset", revision=revision, local_dir=root, endpoint=endpoint)
        except _network_errors() as error:
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                warn(f"{file} is not in {repo_id}")
                absent.append(file)
                continue
            done = f"{len(fetched)} of {len(files)} files are fetched; the same command goes on from there"
            raise explain(error, repo_id, root / file, done) from error
        fetched.append(root / file)
        meter.advance(sizes.get(file, 0))
    say(f"{len(fetched)} files fetched into {root} in {duration(time.monotonic() - meter.started)}")
    if absent:
        raise InputError(f"{repo_id} has no {', '.join(absent)}; check the slide ids, the other files are in {root}")
    return fetched


def remote_sizes(repo_id: str, files: list[str], revision: str | None, endpoint: str | None) -> dict[str, int]:
    """Bytes of each file, for those whose size the repository states (nothing depends on it)."""
    from huggingface_hub import HfApi

    try:
        infos = HfApi(endpoint=endpoint).get_paths_info(repo_id, files, revision=revision, repo_type="dataset")
    except _network_errors():
        return {}
    return {info.path: info.size for info in infos if hasattr(info, "size")}


def _network_errors() -> tuple[type[BaseException], ...]:
    """What the Hub's client raises: its own errors and those of its HTTP library, whichever that is."""
    from huggingface_hub.utils import HfHubHTTPError

    return (OSError, *HfHubHTTPError.__bases__)


def explain(error: BaseException, repo_id: str, file: Path, done: str) -> HistError:
    """The error of a failed download of `file` as one line that says what to do."""
    from huggingface_hub.utils import (
        GatedRepoError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/datasets/{repo_id}"
    chain = list(_chain(error))
    status = next((e.response.status_code for e in chain if getattr(e, "response", None) is not None), None)  # type: ignore[attr-defined]

    def any_is(*kinds: type[BaseException]) -> bool:
        return any(isinstance(e, kinds) for e in chain)

    if any_is(RevisionNotFoundError):
        return InputError(f"{repo_id} has no such revision; see {page}/commits/main")
    if any_is(LocalTokenNotFoundError) or status == 401:
        return InputError(
            f"{repo_id} is gated and you are not logged in: request access at {page}, then run "
            "`hf auth login` (or set HF_TOKEN) and repeat the command"
        )
    if any_is(GatedRepoError) or status == 403:
        return InputError(
            f"{repo_id} is gated and your Hugging Face account or token may not read it: request "
            f"access at {page}, see `hf auth whoami`, and let the token read gated repositories"
        )
    if any_is(RepositoryNotFoundError):
        return InputError(
            f"there is no dataset {repo_id} that you may see; check its name at {page}, and `hf auth whoami`"
        )
    if any_is(OfflineModeIsEnabled):
        return InputError(
            f"HF_HUB_OFFLINE is set, so nothing is fetched: unset it, or put {file.name} into {file.parent} by hand"
        )
    if isinstance(error, OSError) and error.errno and not any_is(ConnectionError, TimeoutError):
        return HistError(f"{file}: {error.strerror}; make room or choose another --data-root. {done}")
    why = f"the server answered {status}" if status else (str(chain[-1]).splitlines() or ["no answer"])[0]
    return HistError(
        f"{file.name} could not be fetched from {repo_id}: {why}; check the connection (and proxy). {done}"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it came from, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _plan(files: list[str], sizes: dict[str, int], needed: int, repo_id: str, root: Path) -> str:
    known = size(sum(sizes.values())) if sizes else "size unknown"
    known += " or more" if 0 < len(sizes) < len(files) else ""
    there = f"; the other {needed - len(files)} are there" if needed > len(files) else ""
    return f"fetching {len(files)} files ({known}) from {repo_id} into {root}{there}"


def _line(meter: Meter, i: int, n: int, file: str, sizes: dict[str, int]) -> str:
    text = f"{i + 1}/{n} files: {file}" + (f" ({size(sizes[file])})" if file in sizes else "")
    if meter.done:
        text += f"; {size(meter.done)} so far, {size(meter.rate)}/s, ETA {duration(meter.eta_s)}"
    return text
