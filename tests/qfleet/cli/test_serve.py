"""`qfleet replay serve`: bad input."""

from __future__ import annotations

import pytest

from qfleet.cli import main as cli

SERVE = ["replay", "serve", "--port", "0", "--frame-shape", "2", "--dtype", "float32", "--stack", "1"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "0.0.0.0"], "--security.token-file"),
        (["--host", "::"], "--security.token-file"),
        (["--host", "203.0.113.7", "--security.no-require-token"], "not an address of this machine"),
        (["--host", "no such host"], "--host no such host"),
        (["--host", ""], "--host is '': write an address"),
        (["--host", "0.0.0.0", "--security.token-file", "/proc/none/token"], "/proc/none/token cannot be written"),
        (["--security.authority", "a.pem"], "--security.mutual"),
        (["--security.certificate", "a.pem", "--security.key", "a.key"], "a.pem cannot be read"),
        (["--limits.streams", "0"], "--limits.streams is 0"),
        (["--limits.handshake", "nan"], "--limits.handshake is nan"),
        (["--limits.stream-idle", "inf"], "--limits.stream-idle is inf"),
        (["--insert-timeout", "700"], "--limits.stream-idle"),
    ],
)
def test_serve_rejects_bad_input_in_one_line(flags, words, capsys):
    assert cli.main([*SERVE, *flags]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert words in lines[0]
