"""Download slides from Hugging Face, only the files that are missing, one after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from hist_cache.console import Meter, duration, size
from hist_cache.errors import HistError, InputError

log = logging.getLogger(__name__)

HEST = "MahmoodLab/hest"


def needed_files(ids: Iterable[str]) -> list[str]:
    """List the three files of each slide, as paths in the repository, which are also the paths below a data root."""
    return [file for slide in ids for file in (f"metadata/{slide}.json", f"st/{slide}.h5ad", f"wsis/{slide}.tif")]


def missing_files(ids: Iterable[str], root: Path) -> list[str]:
    """List those of `needed_files` that are not below `root`, where only complete files have their names."""
    return [file for file in needed_files(ids) if not (root / file).is_file()]


def download(
    ids: Iterable[str],
    root: Path,
    repo_id: str = HEST,
    revision: str | None = None,
    endpoint: str | None = None,
) -> list[Path]:
    """Download the missing files of some slides. Files that were downloaded before an error are kept.

    Args:
        ids: Slide IDs.
        root: The data root to download into.
        repo_id: The dataset repository on Hugging Face.
        revision: Branch, tag or commit; None means the main branch.
        endpoint: A server with the protocol of the Hugging Face Hub; None means $HF_ENDPOINT or the Hub itself.

    Returns:
        The downloaded files.

    Raises:
        InputError: The user needs access to the repository, or the repository lacks files (the others are downloaded).
        HistError: The server cannot be reached, or the disk is full.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    slides = list(ids)
    files = missing_files(slides, root)
    if not files:
        log.info(f"all {len(needed_files(slides))} files of {len(slides)} slides are in {root}")
        return []
    sizes = remote_sizes(repo_id, files, revision, endpoint)
    log.info(_plan(files, sizes, len(needed_files(slides)), repo_id, root))
    new_files: list[Path] = []
    unavailable: list[str] = []
    meter = Meter("download", sum(sizes.values()), "B")
    for i, file in enumerate(files):
        log.info(_line(meter, i, len(files), file, sizes))
        try:
            hf_hub_download(repo_id, file, repo_type="dataset", revision=revision, local_dir=root, endpoint=endpoint)
        except _network_errors() as error:
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                log.warning(f"{file} is not in {repo_id}")
                unavailable.append(file)
                continue
            progress = f"{len(new_files)} of {len(files)} files are fetched; the same command goes on from there"
            raise download_error(error, repo_id, root / file, progress) from error
        new_files.append(root / file)
        meter.advance(sizes.get(file, 0))
    log.info(f"{len(new_files)} files fetched into {root} in {duration(time.monotonic() - meter.started)}")
    if unavailable:
        files_text = ", ".join(unavailable)
        raise InputError(f"{repo_id} has no {files_text}; check the slide ids, the other files are in {root}")
    return new_files


def remote_sizes(repo_id: str, files: list[str], revision: str | None, endpoint: str | None) -> dict[str, int]:
    """Ask the repository for the sizes of files. They are only shown, so missing ones do no harm.

    Args:
        repo_id: The dataset repository on Hugging Face.
        files: Paths in the repository.
        revision: Branch, tag or commit; None means the main branch.
        endpoint: A server with the protocol of the Hugging Face Hub; None means the default.

    Returns:
        File -> bytes, without the files whose size is not known.
    """
    from huggingface_hub import HfApi

    try:
        infos = HfApi(endpoint=endpoint).get_paths_info(repo_id, files, revision=revision, repo_type="dataset")
    except _network_errors():
        return {}
    return {info.path: info.size for info in infos if hasattr(info, "size")}


def _network_errors() -> tuple[type[BaseException], ...]:
    """Return the errors that the Hub's client raises: its own ones and those of the HTTP library that it uses."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *HfHubHTTPError.__bases__)


def download_error(error: BaseException, repo_id: str, file: Path, progress: str) -> HistError:
    """Turn the error of a failed download into one line that tells the user what to do.

    Args:
        error: The error of the Hub's client.
        repo_id: The dataset repository on Hugging Face.
        file: Where the file would have been written.
        progress: A text about what is downloaded so far.

    Returns:
        An `InputError` if the user can solve the problem with another option or login, else a `HistError`.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/datasets/{repo_id}"
    chain = list(_chain(error))
    responses = [getattr(link, "response", None) for link in chain]
    status = next((response.status_code for response in responses if response is not None), None)

    def any_is(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

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
        return HistError(f"{file}: {error.strerror}; make room or choose another --data-root. {progress}")
    reason = f"the server answered {status}" if status else (str(chain[-1]).splitlines() or ["no answer"])[0]
    return HistError(
        f"{file.name} could not be fetched from {repo_id}: {reason}; check the connection (and proxy). {progress}"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, the error that caused it, and so on."""
    visited: set[int] = set()
    while error is not None and id(error) not in visited:
        visited.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _plan(files: list[str], sizes: dict[str, int], needed: int, repo_id: str, root: Path) -> str:
    total = size(sum(sizes.values())) if sizes else "size unknown"
    total += " or more" if 0 < len(sizes) < len(files) else ""
    rest = f"; the other {needed - len(files)} are there" if needed > len(files) else ""
    return f"fetching {len(files)} files ({total}) from {repo_id} into {root}{rest}"


def _line(meter: Meter, i: int, n: int, file: str, sizes: dict[str, int]) -> str:
    text = f"{i + 1}/{n} files: {file}" + (f" ({size(sizes[file])})" if file in sizes else "")
    if meter.done:
        text += f"; {size(meter.done)} so far, {size(meter.rate)}/s, ETA {duration(meter.eta_s)}"
    return text
