"""Encoder weights: where they are looked for, how a file is read, what was really loaded.

The order, the same for every encoder: `--weights PATH`, `$HIST_WEIGHTS_<NAME>`, the Hugging Face cache, a
download. The first three make no network call.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hist_cache.console import say
from hist_cache.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

State = dict[str, "Tensor"]


@dataclass(frozen=True)
class WeightsFile:
    """A weights file on this machine, and in words where it came from."""

    path: Path
    source: str


def environment_variable(name: str) -> str:
    """The variable that may hold the path of an encoder's weights: `uni2-h` -> `HIST_WEIGHTS_UNI2_H`."""
    return "HIST_WEIGHTS_" + re.sub(r"[^A-Z0-9]", "_", name.upper())


def find_weights(
    name: str, repo: str, files: Sequence[str], weights: Path | None = None, terms: str = ""
) -> WeightsFile:
    """Find an encoder's weights, downloading them only where nothing on this machine has them.

    Parameters
    ----------
    name
        The encoder, for messages and for its environment variable.
    repo, files
        Hugging Face repository, and the names the file has there, best first.
    weights
        A file, or a folder that holds one of `files`; looked at before anything else.
    terms
        Licence and conditions, shown where a download fails.

    Raises
    ------
    InputError
        A path that was given holds no such file, or nothing was found and the download failed.
    """
    variable = environment_variable(name)
    if weights is not None:
        path = _inside(Path(weights).expanduser(), files, f"--weights for encoder {name}")
        return WeightsFile(path, str(path))
    if given := os.environ.get(variable):
        path = _inside(Path(given).expanduser(), files, f"${variable}")
        return WeightsFile(path, f"{path} (${variable})")
    if repo and (cached := _in_hub_cache(repo, files)):
        return WeightsFile(cached, f"hub:{repo}")
    return WeightsFile(_download(name, repo, files, terms), f"hub:{repo}")


def _inside(path: Path, files: Sequence[str], asked_by: str) -> Path:
    """The weights file at `path`, which is the file or its folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; give {asked_by} the path of {' or '.join(files)}")
    for file in files:
        if (path / file).is_file():
            return path / file
    raise InputError(f"{path}: this folder has no {' or '.join(files)}; give {asked_by} the file itself")


def _in_hub_cache(repo: str, files: Sequence[str]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for file in files:
        cached = try_to_load_from_cache(repo, file)
        if isinstance(cached, str):  # otherwise None, or a marker for a file known not to exist
            return Path(cached)
    return None


def _download(name: str, repo: str, files: Sequence[str], terms: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    if not repo:
        raise InputError(f"encoder {name}: its weights are not published; give --weights or --random-weights")
    say(f"encoder {name}: no weights on this machine, downloading from {repo}")
    problem = ""
    for file in files:
        try:
            return Path(hf_hub_download(repo, file))
        except RepositoryNotFoundError:  # also what a gated repository answers to a stranger
            problem = "access refused; ask for it there, then log in by hf auth login or $HF_TOKEN"
            break
        except LocalEntryNotFoundError as error:  # its way to say that the hub was not reached
            problem = first_line(error)
            break
        except EntryNotFoundError:
            problem = f"the repository has no {' or '.join(files)}"
        except Exception as error:  # a full disk, a broken transfer, a proxy: the way out is the same
            problem = first_line(error)
            break
    raise InputError(
        f"encoder {name}: {' or '.join(files)} of {repo} is not on this machine and could not be downloaded "
        f"({problem}); get it at https://huggingface.co/{repo}" + (f" ({terms})" if terms else "") + ", then "
        f"give its path by --weights, or put the path in ${environment_variable(name)}, or put it in the "
        f"Hugging Face cache (hf download {repo} {files[0]})"
    )


def read_state(path: Path) -> State:
    """Read the tensors of a `.safetensors` file, or of a PyTorch one without running any code in it.

    Raises
    ------
    InputError
        The file is damaged, is not a weights file, or holds Python objects.
    """
    import torch

    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise InputError(f"{path}: this is a Git LFS pointer, not the weights; run git lfs pull there")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: object = load_file(path)
        else:
            # Mapping spares a copy of the file in memory; PyTorch's format of before 1.6 cannot be mapped.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file makes its reader fail in a dozen ways
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path}: holds Python code ({code[1]}), which is never run; save the weights alone, as "
                "torch.save(model.state_dict(), path), or get them from where they were published"
            ) from error
        raise InputError(
            f"{path}: cannot be read as weights, it is incomplete or of another kind ({first_line(error)}); "
            "copy or download it again"
        ) from error
    for wrapper in ("state_dict", "model"):  # training scripts put the weights beside their own state
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: holds something else than named tensors; save model.state_dict() alone")
    return dict(state)


def load_strictly(module: nn.Module, state: State, path: Path, name: str) -> None:
    """Copy `state` into `module`: every tensor of the module, none besides, each of its shape.

    Raises
    ------
    InputError
        They differ; names the first tensor of each kind of difference.
    """
    expected = module.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    shared = sorted(expected.keys() & state.keys())
    reshaped = [key for key in shared if expected[key].shape != state[key].shape]
    found = []
    if missing:
        found.append(f"{len(missing)} missing (first {missing[0]})")
    if unexpected:
        found.append(f"{len(unexpected)} unexpected (first {unexpected[0]})")
    if reshaped:
        shapes = f"{tuple(state[reshaped[0]].shape)} instead of {tuple(expected[reshaped[0]].shape)}"
        found.append(f"{len(reshaped)} of another shape (first {reshaped[0]}: {shapes})")
    if found:
        raise InputError(
            f"{path}: not the weights of encoder {name}: tensors {', '.join(found)}; "
            "give the file that belongs to this encoder, or name the encoder that belongs to the file"
        )
    module.load_state_dict(state)


def digest(module: nn.Module) -> str:
    """SHA-256, as hex, of a module's tensors: name, type, shape and bytes of each, sorted by name."""
    return digest_state(module.state_dict())


def digest_state(state: Mapping[str, Tensor]) -> str:
    """The same of named tensors."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


_DINOV2_NAMES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.query\.", ".attn.qkv."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)


def from_dinov2(state: State) -> State:
    """Rename the tensors of transformers' Dinov2Model to those of timm's VisionTransformer (same arithmetic).

    Query, key and value become one `qkv`; the mask token, which only training uses, is left out.
    """
    import torch

    renamed: State = {}
    for key, value in state.items():
        if key == "embeddings.mask_token" or re.search(r"\.attention\.attention\.(key|value)\.", key):
            continue
        if ".query." in key:
            parts = [key, key.replace(".query.", ".key."), key.replace(".query.", ".value.")]
            value = torch.cat([state[part] for part in parts if part in state])
        for pattern, replacement in _DINOV2_NAMES:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


LAYOUTS: dict[str, Callable[[State], State]] = {"timm": dict, "dinov2": from_dinov2}


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
