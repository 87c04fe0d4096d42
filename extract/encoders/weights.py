"""Encoder weights: where they are looked for, how a file is read, and the digest of what was loaded.

The order is the same for every encoder: `--weights PATH`, `$HIST_WEIGHTS_<NAME>`, the Hugging Face cache, a download.
The first three make no network call.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hist_cache.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)

StateDict = dict[str, "Tensor"]


@dataclass(frozen=True)
class WeightsFile:
    """A weights file on this machine."""

    path: Path
    source: str
    """Where it came from, for messages."""


def environment_variable(name: str) -> str:
    """Name the variable that may hold the path of an encoder's weights: `uni2-h` -> `HIST_WEIGHTS_UNI2_H`."""
    return "HIST_WEIGHTS_" + re.sub(r"[^A-Z0-9]", "_", name.upper())


def find_weights(
    name: str, repo: str, files: Sequence[str], weights: Path | None = None, terms: str = ""
) -> WeightsFile:
    """Find an encoder's weights; they are downloaded only if they are nowhere on this machine.

    Args:
        name: Name of the encoder, for messages and for its environment variable.
        repo: Hugging Face repository.
        files: Names that the file may have there, the preferred one first.
        weights: A file, or a folder that contains one of `files`; no other place is searched if it is given.
        terms: Licence and conditions, for the message of a failed download.

    Raises:
        InputError: A given path has no such file, or no place has it and the download failed.
    """
    variable = environment_variable(name)
    if weights is not None:
        path = _inside(Path(weights).expanduser(), files, f"--weights for encoder {name}")
        return WeightsFile(path, str(path))
    if from_environment := os.environ.get(variable):
        path = _inside(Path(from_environment).expanduser(), files, f"${variable}")
        return WeightsFile(path, f"{path} (${variable})")
    if repo and (cached := _in_hub_cache(repo, files)):
        return WeightsFile(cached, f"hub:{repo}")
    return WeightsFile(_download(name, repo, files, terms), f"hub:{repo}")


def _inside(path: Path, files: Sequence[str], option: str) -> Path:
    """Return the weights file at `path`, which is the file itself or its folder."""
    if path.is_file():
        return path
    wanted = " or ".join(files) or "a file with its weights"  # an encoder that is not published has no names of files
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; give {option} the path of {wanted}")
    for file in files:
        if (path / file).is_file():
            return path / file
    raise InputError(f"{path}: {wanted} is not in this folder; give {option} the file itself")


def _in_hub_cache(repo: str, files: Sequence[str]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for file in files:
        cached = try_to_load_from_cache(repo, file)
        if isinstance(cached, str):  # otherwise None, or a marker that the repository has no such file
            return Path(cached)
    return None


def _download(name: str, repo: str, files: Sequence[str], terms: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    if not repo:
        raise InputError(f"encoder {name}: its weights are not published; give --weights or --random-weights")
    log.info(f"encoder {name}: no weights on this machine, downloading from {repo}")
    problem = ""
    for file in files:
        try:
            return Path(hf_hub_download(repo, file))
        except RepositoryNotFoundError:  # a gated repository answers the same to users without access
            problem = "access refused; ask for it there, then log in by hf auth login or $HF_TOKEN"
            break
        except LocalEntryNotFoundError as error:  # the hub could not be reached
            problem = first_line(error)
            break
        except EntryNotFoundError:
            problem = f"the repository has no {' or '.join(files)}"
        except Exception as error:  # a full disk, a broken transfer, a proxy: the advice is the same
            problem = first_line(error)
            break
    raise InputError(
        f"encoder {name}: {' or '.join(files)} of {repo} is not on this machine and could not be downloaded "
        f"({problem}); get it at https://huggingface.co/{repo}" + (f" ({terms})" if terms else "") + ", then "
        f"give its path by --weights, or put the path in ${environment_variable(name)}, or put it in the "
        f"Hugging Face cache (hf download {repo} {files[0]})"
    )


def read_state(path: Path) -> StateDict:
    """Read the tensors of a `.safetensors` file, or of a PyTorch file without running any code in it.

    Raises:
        InputError: The file is damaged, is no weights file, or holds Python objects.
    """
    import torch

    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise InputError(f"{path}: this is a Git LFS pointer, not the weights; run git lfs pull there")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            contents: object = load_file(path)
        else:
            # Mapping avoids a copy of the file in memory. The format before PyTorch 1.6 cannot be mapped.
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file may raise almost any kind of error
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path}: holds Python code ({code[1]}), which is never run; save the weights alone, as "
                "torch.save(model.state_dict(), path), or get them from where they were published"
            ) from error
        raise InputError(
            f"{path}: cannot be read as weights, it is incomplete or of another kind ({first_line(error)}); "
            "copy or download it again"
        ) from error
    for wrapper in ("state_dict", "model"):  # training scripts save the weights beside other things
        if isinstance(contents, Mapping) and isinstance(contents.get(wrapper), Mapping):
            contents = contents[wrapper]
    if not isinstance(contents, Mapping) or not all(isinstance(value, torch.Tensor) for value in contents.values()):
        raise InputError(f"{path}: holds something else than named tensors; save model.state_dict() alone")
    return dict(contents)


def load_strictly(module: nn.Module, state: StateDict, path: Path, name: str) -> None:
    """Copy tensors into a module, if they are exactly the tensors of the module, each of its shape.

    Args:
        module: The module to fill; left as it is if the tensors do not fit.
        state: Named tensors.
        path: The file that they were read from, for the message.
        name: Name of the encoder, for the message.

    Raises:
        InputError: They do not fit; the message names the first tensor of each kind of difference.
    """
    expected = module.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    shared = sorted(expected.keys() & state.keys())
    reshaped = [key for key in shared if expected[key].shape != state[key].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing (first {missing[0]})")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected (first {unexpected[0]})")
    if reshaped:
        shapes = f"{tuple(state[reshaped[0]].shape)} instead of {tuple(expected[reshaped[0]].shape)}"
        problems.append(f"{len(reshaped)} of another shape (first {reshaped[0]}: {shapes})")
    if problems:
        raise InputError(
            f"{path}: not the weights of encoder {name}: tensors {', '.join(problems)}; "
            "give the file that belongs to this encoder, or name the encoder that belongs to the file"
        )
    module.load_state_dict(state)


def weights_digest(module: nn.Module) -> str:
    """Return the SHA-256, as hex digits, of a module's tensors: name, type, shape and bytes of each, sorted by name."""
    return digest_state(module.state_dict())


def digest_state(state: Mapping[str, Tensor]) -> str:
    """Return the digest that `weights_digest` gives for a module with these tensors."""
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


def from_dinov2(state: StateDict) -> StateDict:
    """Rename the tensors of transformers' Dinov2Model as timm's VisionTransformer names them.

    Both compute the same. Query, key and value become one `qkv`; the mask token, which only training uses, is left out.
    """
    import torch

    renamed: StateDict = {}
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


LAYOUTS: dict[str, Callable[[StateDict], StateDict]] = {"timm": dict, "dinov2": from_dinov2}


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, or its type if it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
