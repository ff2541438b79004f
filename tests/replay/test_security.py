"""TLS files and tokens: loopback addresses, creation of token files, and errors for bad files."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from replay.security import Access, SecurityConfig, is_loopback, make_token_file, new_token
from rl.errors import BadInput

TOKEN = "t0k3n-of-the-tests-and-of-nobody-else-at-all"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.7", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_is_loopback(host, loopback):
    assert is_loopback(host) == loopback


def test_a_token_file_is_created_once_and_private(tmp_path, monkeypatch):
    path = tmp_path / "token"
    threads = [threading.Thread(target=make_token_file, args=(str(path),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["token"]
    token = Access.load(SecurityConfig(token_file=str(path))).token
    assert len(token) == len(new_token()) == 43
    assert make_token_file(str(path)) is False
    assert Access.load(SecurityConfig(token_file=str(path))).token == token
    assert Access.load(SecurityConfig()).token == ""
    monkeypatch.setenv("QFLEET_TOKEN", TOKEN)
    assert Access.load(SecurityConfig()).token == TOKEN
    assert Access.load(SecurityConfig(token_file=str(path))).token == token


BAD_FILES = {
    "a certificate that is not there": (
        {"certificate": "nowhere.pem", "key": "shard.key"},
        "nowhere.pem cannot be read",
    ),
    "a certificate that is a folder": ({"certificate": "stranger", "key": "shard.key"}, "directory"),
    "a certificate without its key": ({"certificate": "shard.pem"}, "without key"),
    "a key without its certificate": ({"key": "shard.key"}, "without certificate"),
    "another's key": ({"certificate": "shard.pem", "key": "client.key"}, "(?i)mismatch"),
    "a key under a password": ({"certificate": "shard.pem", "key": "locked.key"}, "without a password"),
    "a file that is not a certificate": ({"certificate": "shard.csr", "key": "shard.key"}, "shard.csr"),
    "an authority that is none": ({"authority": "shard.key"}, "holds no certificate"),
    "an authority that is not there": ({"authority": "nowhere.pem"}, "authority .*nowhere.pem"),
    "mutual without an authority": ({"certificate": "shard.pem", "key": "shard.key", "mutual": True}, "authority"),
    "a token that is not there": ({"token_file": "nowhere"}, "token_file .*nowhere cannot be read"),
    "an empty token": ({"token_file": "empty"}, "holds no valid token"),
    "a token of two words": ({"token_file": "words"}, "holds no valid token"),
    "a token of no text": ({"token_file": "bytes"}, "holds no valid token"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_the_error_names_the_bad_file_in_one_line(case, pem):
    Path(pem("empty")).write_text("\n")
    Path(pem("words")).write_text("correct horse battery staple\n")
    Path(pem("bytes")).write_bytes(bytes(range(128, 255)))
    locked = ["openssl", "ec", "-in", pem("shard.key"), "-aes256", "-passout", "pass:word", "-out", pem("locked.key")]
    subprocess.run(locked, check=True, capture_output=True)
    settings, words = BAD_FILES[case]
    with pytest.raises(BadInput, match=words) as refused:
        Access.load(SecurityConfig(**{k: pem(v) if isinstance(v, str) else v for k, v in settings.items()}))
    assert "\n" not in str(refused.value)
    assert "horse" not in str(refused.value)
