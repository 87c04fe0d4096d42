"""Where weights are looked for, what is read, what is refused."""

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from extract.encoders.weights import (
    environment_variable,
    find_weights,
    from_dinov2,
    load_strictly,
    read_state,
    weights_digest,
)
from hist_cache.errors import InputError

REPO, FILES = "MahmoodLab/UNI", ["pytorch_model.bin"]


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty Hugging Face cache, a download that fails, and a network that records who calls it."""
    calls = []

    def refuse(*args, **kwargs):
        calls.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.delenv("HIST_WEIGHTS_UNI", raising=False)
    return SimpleNamespace(folder=tmp_path / "hub", calls=calls)


def put_in_cache(folder: Path, content: bytes = b"cached", file: str = FILES[0]) -> Path:
    """A repository as huggingface_hub lays it out: the snapshot holds links into blobs."""
    repo = folder / "models--MahmoodLab--UNI"
    blob, link = repo / "blobs" / "abc", repo / "snapshots" / "0123" / file
    for path in (blob, link, repo / "refs" / "main"):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    link.symlink_to(os.path.relpath(blob, link.parent))
    (repo / "refs" / "main").write_text("0123")
    return link


def write(path: Path, content: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_order_of_lookup(hub, tmp_path, monkeypatch):
    given = write(tmp_path / "given" / "mine.bin")
    by_variable = write(tmp_path / "variable" / FILES[0])
    cached = put_in_cache(hub.folder)
    monkeypatch.setenv("HIST_WEIGHTS_UNI", str(by_variable))

    found = find_weights("uni", REPO, FILES, given)
    assert (found.path, found.source) == (given, str(given))
    found = find_weights("uni", REPO, FILES)
    assert (found.path, found.source) == (by_variable, f"{by_variable} ($HIST_WEIGHTS_UNI)")
    monkeypatch.delenv("HIST_WEIGHTS_UNI")
    found = find_weights("uni", REPO, FILES)
    assert (found.path, found.source) == (cached, "hub:MahmoodLab/UNI")
    assert hub.calls == [], "a local file must not cause a network call"

    cached.unlink()
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, file: str(by_variable))
    found = find_weights("uni", REPO, FILES)
    assert (found.path, found.source) == (by_variable, "hub:MahmoodLab/UNI")


def test_the_real_cache_is_found_by_hf_home(tmp_path):
    cached = put_in_cache(tmp_path / "home" / "hub")
    code = (
        "import sys; from extract.encoders.weights import find_weights;"
        f"print(find_weights('uni', {REPO!r}, {FILES!r}).path); assert 'torch' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HIST_", "HUGGINGFACE_"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(cached)


@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_folder_holds_one_of_the_names(by, tmp_path, monkeypatch):
    files = ["model.safetensors", "pytorch_model.bin"]
    second = write(tmp_path / "w" / files[1])
    monkeypatch.setenv("HIST_WEIGHTS_UNI", str(tmp_path / "w"))
    option = tmp_path / "w" if by == "option" else None
    assert find_weights("uni", REPO, files, option).path == second
    first = write(tmp_path / "w" / files[0])
    assert find_weights("uni", REPO, files, option).path == first


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_wrong_path_is_not_passed_over(name, hub, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    put_in_cache(hub.folder)
    with pytest.raises(
        InputError, match=rf"{name}.*--weights.*pytorch_model\.bin|{name}.*pytorch_model\.bin.*--weights"
    ):
        find_weights("uni", REPO, FILES, tmp_path / name)
    monkeypatch.setenv("HIST_WEIGHTS_UNI", str(tmp_path / name))
    with pytest.raises(InputError, match=r"\$HIST_WEIGHTS_UNI"):
        find_weights("uni", REPO, FILES)


def test_a_failed_download_says_what_to_do(hub, monkeypatch):
    with pytest.raises(InputError) as caught:
        find_weights("uni", REPO, FILES, terms="licence: X")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in (
        "pytorch_model.bin",
        REPO,
        f"https://huggingface.co/{REPO}",
        "licence: X",
        "no network in this test",
    ):
        assert part in message
    for place in ("--weights", "$HIST_WEIGHTS_UNI", "Hugging Face cache"):
        assert place in message


def test_an_encoder_that_nobody_publishes(hub):
    with pytest.raises(InputError, match="not published; give --weights or --random-weights"):
        find_weights("timm:some_model", "", FILES)
    assert hub.calls == []


def test_a_gated_repository_and_an_absent_file(monkeypatch):
    from huggingface_hub.utils import EntryNotFoundError, GatedRepoError

    asked = []

    def gated(repo, file):
        asked.append(file)
        raise GatedRepoError.__new__(GatedRepoError)

    def absent(repo, file):
        asked.append(file)
        raise EntryNotFoundError("404")

    files = ["model.safetensors", "pytorch_model.bin"]
    monkeypatch.setattr("huggingface_hub.hf_hub_download", gated)
    with pytest.raises(InputError, match="access refused"):
        find_weights("uni", REPO, files)
    assert asked == files[:1]
    monkeypatch.setattr("huggingface_hub.hf_hub_download", absent)
    with pytest.raises(InputError, match=r"has no model\.safetensors or pytorch_model\.bin"):
        find_weights("uni", REPO, files)
    assert asked[1:] == files


def test_variable_names():
    assert environment_variable("uni2-h") == "HIST_WEIGHTS_UNI2_H"
    assert environment_variable("timm:vit_a.b_c") == "HIST_WEIGHTS_TIMM_VIT_A_B_C"


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {"a.weight": torch.randn(40, 30, generator=generator), "b": torch.arange(5)}


def same(got, expected):
    return got.keys() == expected.keys() and all(torch.equal(got[k], expected[k]) for k in expected)


def test_kinds_of_files(state, tmp_path):
    torch.save(state, tmp_path / "now.bin")
    torch.save(state, tmp_path / "before_1.6.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "training.pth")
    save_file(state, tmp_path / "s.safetensors")
    for path in tmp_path.iterdir():
        if path.is_file():
            assert same(read_state(path), state), path.name


@pytest.mark.parametrize("name", ["now.bin", "before_1.6.pth", "s.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file(name, kept, state, tmp_path):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=path.suffix == ".bin")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(InputError, match="incomplete") as caught:
        read_state(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(zipped, tmp_path):
    mark, path = tmp_path / "ran", tmp_path / "evil.bin"
    if zipped:
        torch.save({"a": _Evil(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"a": _Evil(mark)}, protocol=2))
    with pytest.raises(InputError, match=r"evil\.bin: holds Python code \(.*mkdir\), which is never run") as caught:
        read_state(path)
    assert not mark.exists()
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_are_no_weights(tmp_path):
    pointer = write(tmp_path / "p.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    with pytest.raises(InputError, match="Git LFS pointer"):
        read_state(pointer)
    torch.save({"lr": 0.1}, tmp_path / "optimiser.bin")
    with pytest.raises(InputError, match="something else than named tensors"):
        read_state(tmp_path / "optimiser.bin")
    torch.save(nn.Linear(2, 2), tmp_path / "module.bin")
    with pytest.raises(InputError, match=r"Linear\), which is never run"):
        read_state(tmp_path / "module.bin")


def test_loading_is_strict(tmp_path):
    module, path = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), tmp_path / "w.bin"
    good = {key: torch.ones_like(value) for key, value in module.state_dict().items()}
    before = weights_digest(module)
    missing = {key: value for key, value in good.items() if key != "1.bias"}
    cases = [
        (missing, r"1 missing \(first 1\.bias\)"),
        (good | {"extra": torch.ones(1)}, r"1 unexpected \(first extra\)"),
        (
            good | {"0.weight": torch.ones(4, 5)},
            r"another shape \(first 0\.weight: \(4, 5\) instead of \(4, 3\)\)",
        ),
    ]
    for state, problem in cases:
        with pytest.raises(InputError, match=rf"w\.bin: not the weights of encoder uni: .*{problem}"):
            load_strictly(module, state, path, "uni")
        assert weights_digest(module) == before, "nothing may be loaded from a file that does not fit"
    load_strictly(module, good, path, "uni")
    assert same(module.state_dict(), good)


def test_digest_tells_every_difference():
    module = nn.Linear(3, 2)
    start = weights_digest(module)
    assert start == weights_digest(module)
    assert len(start) == 64
    with torch.no_grad():
        module.weight[1, 2] = torch.nextafter(module.weight[1, 2], torch.tensor(9.0))
    changed = weights_digest(module)
    assert len({start, changed, weights_digest(module.bfloat16()), weights_digest(nn.Sequential(module))}) == 4
    flat, square = nn.Module(), nn.Module()
    flat.register_buffer("x", torch.zeros(4))
    square.register_buffer("x", torch.zeros(2, 2))
    assert weights_digest(flat) != weights_digest(square)
    scalar = nn.Module()
    scalar.register_buffer("x", torch.tensor(1.5, dtype=torch.bfloat16))
    assert len(weights_digest(scalar)) == 64


def test_dinov2_layout_is_the_same_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    from timm.models.vision_transformer import VisionTransformer

    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    torch.manual_seed(0)
    theirs = transformers.Dinov2Model(transformers.Dinov2Config(image_size=32, patch_size=8, **size)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # fresh ones hide mistakes: zero biases, unit scales
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    theirs.save_pretrained(tmp_path)
    ours = VisionTransformer(32, 8, embed_dim=24, depth=2, num_heads=3, init_values=1e-5, num_classes=0).eval()
    load_strictly(ours, from_dinov2(read_state(tmp_path / "model.safetensors")), tmp_path, "phikon-v2")
    crops = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = theirs(crops).last_hidden_state
        torch.testing.assert_close(ours.forward_features(crops), expected, rtol=1e-4, atol=1e-5)
