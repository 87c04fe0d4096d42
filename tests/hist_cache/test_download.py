"""Downloading, against a stand-in for the Hub on 127.0.0.1: nothing else is contacted."""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

import pytest

from hist_cache.download import download, missing_files, needed_files
from hist_cache.errors import HistError, InputError

IDS = ["SPA138", "SPA139"]
RESOLVE = "/datasets/MahmoodLab/hest/resolve/main/"


class Hub(ThreadingHTTPServer):
    """Serves `files` as the Hub does; `refusal` is (status, X-Error-Code) for all; `cut` files break off."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {file: f"content of {file} ".encode() * 500 for file in needed_files(IDS)}
        self.refusal: tuple[int, str] | None = None
        self.cut: set[str] = set()
        self.api_works = True
        self.fetched: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.resolve(with_body=False)

    def do_GET(self):
        self.resolve(with_body=True)

    def resolve(self, with_body):
        file = unquote(self.path).removeprefix(RESOLVE)
        if self.server.refusal:
            return self.answer(*self.server.refusal)
        if file not in self.server.files:
            return self.answer(404, "EntryNotFound")
        body = self.server.files[file]
        self.send_response(200)
        self.send_header("ETag", f'"{file.replace("/", "-")}"')
        self.send_header("X-Repo-Commit", "0123456789" * 4)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.server.fetched.append(file)
            self.wfile.write(body[: len(body) // 2] if file in self.server.cut else body)

    def do_POST(self):
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if self.server.refusal or not self.server.api_works:
            return self.answer(*(self.server.refusal or (500, "")))
        assert self.path == "/api/datasets/MahmoodLab/hest/paths-info/main"
        files = [file for file in form["paths"] if file in self.server.files]
        infos = [{"type": "file", "path": f, "size": len(self.server.files[f]), "oid": "0"} for f in files]
        self.answer(200, "", json.dumps(infos).encode())

    def answer(self, status, code, body=b""):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda s: sleep(min(s, 0.01)))  # the Hub's client waits between attempts
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_three_files_a_slide():
    assert needed_files(["A"]) == ["metadata/A.json", "st/A.h5ad", "wsis/A.tif"]


def test_fetches_exactly_the_slides_files(hub, tmp_path, caplog):
    caplog.set_level("INFO")
    hub.files["wsis/SPA140.tif"] = b"not asked for"
    fetched = download(IDS, tmp_path, endpoint=hub.url)
    assert fetched == [tmp_path / file for file in needed_files(IDS)]
    assert sorted(hub.fetched) == sorted(needed_files(IDS))
    assert all((tmp_path / file).read_bytes() == hub.files[file] for file in needed_files(IDS))
    out = caplog.text
    total = sum(len(hub.files[file]) for file in needed_files(IDS))
    assert f"fetching 6 files ({total / 1000:.1f} kB) from MahmoodLab/hest" in out
    assert "6/6 files: wsis/SPA139.tif" in out
    assert "ETA" in out


def test_a_second_call_fetches_nothing(hub, tmp_path, caplog):
    caplog.set_level("INFO")
    download(IDS, tmp_path, endpoint=hub.url)
    hub.fetched.clear()
    assert download(IDS, tmp_path, endpoint=hub.url) == []
    assert hub.fetched == []
    assert "all 6 files of 2 slides are in" in caplog.text


def test_only_what_is_missing_is_fetched(hub, tmp_path):
    (tmp_path / "st").mkdir()
    (tmp_path / "st" / "SPA138.h5ad").write_bytes(b"the user's own")
    assert len(missing_files(IDS, tmp_path)) == 5
    download(IDS, tmp_path, endpoint=hub.url)
    assert "st/SPA138.h5ad" not in hub.fetched
    assert (tmp_path / "st" / "SPA138.h5ad").read_bytes() == b"the user's own"


def test_a_file_that_is_not_there_does_not_cost_the_others(hub, tmp_path):
    del hub.files["st/SPA138.h5ad"]
    with pytest.raises(InputError, match=r"MahmoodLab/hest has no st/SPA138\.h5ad; check the slide ids"):
        download(IDS, tmp_path, endpoint=hub.url)
    assert missing_files(IDS, tmp_path) == ["st/SPA138.h5ad"]


def test_sizes_are_not_needed(hub, tmp_path, caplog):
    caplog.set_level("INFO")
    hub.api_works = False
    assert len(download(IDS, tmp_path, endpoint=hub.url)) == 6
    assert "fetching 6 files (size unknown)" in caplog.text


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (
            (401, "GatedRepo"),
            "not logged in: request access at https://huggingface.co/datasets/MahmoodLab/hest",
        ),
        ((401, "RepoNotFound"), "run `hf auth login`"),
        (
            (403, "GatedRepo"),
            "may not read it: request access at https://huggingface.co/datasets/MahmoodLab/hest",
        ),
        ((403, ""), "let the token read gated repositories"),
        ((404, "RepoNotFound"), "there is no dataset MahmoodLab/hest"),
        ((404, "RevisionNotFound"), "no such revision"),
    ],
)
def test_refusals_say_what_to_do(hub, tmp_path, refusal, message):
    hub.refusal = refusal
    with pytest.raises(InputError) as error:
        download(IDS, tmp_path, endpoint=hub.url)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_broken_transfer_leaves_no_half_file_and_can_be_repeated(hub, tmp_path):
    broken = needed_files(IDS)[2]
    hub.cut.add(broken)
    with pytest.raises(HistError, match="2 of 6 files are fetched; the same command goes on from there") as error:
        download(IDS, tmp_path, endpoint=hub.url)
    assert "\n" not in str(error.value)
    assert not (tmp_path / broken).exists()
    hub.cut.clear()
    assert len(download(IDS, tmp_path, endpoint=hub.url)) == 4
    assert (tmp_path / broken).read_bytes() == hub.files[broken]


def test_a_server_that_does_not_answer(hub, tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as gone:
        port = gone.server_port
    with pytest.raises(HistError, match="check the connection") as error:
        download(IDS, tmp_path, endpoint=f"http://127.0.0.1:{port}")
    assert "\n" not in str(error.value)
    assert "0 of 6 files are fetched" in str(error.value)


def test_a_data_root_that_cannot_be_written(hub, tmp_path):
    (tmp_path / "metadata").write_text("a file where a folder should be")
    with pytest.raises(HistError, match="choose another --data-root"):
        download(IDS, tmp_path, endpoint=hub.url)


def in_a_new_process(hub, root, **environment):
    """Run `download` with the Hub's own environment variables, which are read at import."""
    code = (
        "import sys; from pathlib import Path; from hist_cache.download import download; "
        "from hist_cache.options import run; "
        f"sys.exit(run(lambda _: download({IDS!r}, Path(sys.argv[1])) and None, None, False))"
    )
    home = Path(__file__).resolve().parents[2]
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(root / "hf"), "PYTHONPATH": str(home)}
    result = subprocess.run(
        [sys.executable, "-c", code, str(root)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return result.returncode, result.stdout, result.stderr


def test_the_hubs_environment_variables_are_heeded(hub, tmp_path):
    code, out, err = in_a_new_process(hub, tmp_path)
    assert code == 0, err
    assert "6 files fetched" in out
    assert missing_files(IDS, tmp_path) == []


def test_offline_mode_is_an_answer_not_a_traceback(hub, tmp_path):
    code, _, err = in_a_new_process(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert code == 2
    assert "HF_HUB_OFFLINE is set" in err
    assert "Traceback" not in err
    assert hub.fetched == []
