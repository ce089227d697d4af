"""A push to a hub on loopback: which files arrive, and what is told of a hub that refuses or is not there; never a token."""

import threading

import pytest
from huggingface_hub import constants, errors

from pipeline.errors import ConfigError, DataError
from pipeline.models import hub
from tests.support.fake_hub import FakeHub

TOKEN = "hf_abcdefghijklmnop"


@pytest.fixture
def serve(monkeypatch):
    """Start a hub that answers with a status, and have the library speak with it."""
    servers = []

    def start(status=200):
        server = FakeHub(status)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        return server

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "backbone").mkdir()
    for name in ("README.md", "model.safetensors", "backbone/model.json", "private.txt"):
        (tmp_path / name).write_bytes(name.encode() * 9)
    return tmp_path


def test_the_named_files_arrive_byte_for_byte_and_no_others(serve, folder):
    server, names = serve(), ["README.md", "model.safetensors", "backbone/model.json"]
    assert hub.push(folder, names, "someone/model") == f"{server.address}/someone/model/commit/abc"
    assert server.files == {name: (folder / name).read_bytes() for name in names}
    made = server.made["someone/model"]
    assert (made.get("visibility") == "private" or made.get("private") is True) and server.tokens == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "the hub refused the push (HTTP 401); log in with a token that may write there: hf auth login"),
        (403, "the hub refused the push (HTTP 403); log in with a token that may write there: hf auth login"),
        (400, "the hub refused the push (HTTP 400); try again later"),
    ],
)
def test_a_hub_that_refuses_is_a_line_without_the_token(serve, folder, status, message):
    serve(status)
    with pytest.raises(DataError) as refused:
        hub.push(folder, ["README.md"], "someone/model")
    assert str(refused.value) == f"someone/model: {message}"


def test_without_a_network_the_folder_is_said_to_be_there(monkeypatch, folder, serve):
    server = serve()
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"^someone/model: the hub cannot be reached .*; the folder is written; push it where"):
        hub.push(folder, ["README.md"], "someone/model")


@pytest.mark.parametrize("token", ["hf_ab\tcd\x00ef", "hf_caf\u00e9"])
def test_a_token_that_is_none_is_not_repeated(monkeypatch, folder, serve, token):
    serve()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    with pytest.raises(DataError, match=r"^someone/model: the token of this machine holds characters that no token has; run: hf"):
        hub.push(folder, ["README.md"], "someone/model")


@pytest.mark.parametrize("name", ["", "a/b/c", "with space/x", "..", "a--b/c", "/x"])
def test_a_name_that_is_none_is_refused_before_anything_is_sent(serve, folder, name):
    server = serve()
    with pytest.raises(ConfigError, match=r"^--push takes owner/name, a repository on the hub, got"):
        hub.push(folder, ["README.md"], name)
    assert not server.made and not server.files


def test_what_the_library_raises_of_a_transport_is_told_by_its_kind(monkeypatch, folder, serve):
    serve()

    def fail(*_, **__):
        raise errors.HTTPError(f"Bearer {TOKEN}")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", fail)
    with pytest.raises(DataError) as refused:
        hub.push(folder, ["README.md"], "someone/model")
    assert "HTTPError" in str(refused.value) and TOKEN not in str(refused.value)
