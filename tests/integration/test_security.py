"""Exposed shards for real: TLS, tokens, and the bounds on connections and streams, over sockets."""

from __future__ import annotations

import functools
import itertools
import os
import pickle
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import replay_pb2 as pb
from protos import replay_pb2_grpc as rpc
from qfleet.cli import main as cli
from replay.security import UNPROTECTED, Access, SecurityConfig, is_loopback, make_token_file, new_token
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from replay.wire.channel import NO_STREAM
from replay.wire.connection import HUNG_UP, ShardConnection, open_channel
from replay.wire.guard import Limits
from replay.wire.service import ShardServer
from replay.wire.writer import Writer
from rl.errors import BadInput, RunFault
from tests.conftest import SMALL, make_message, make_segment
from tests.integration.shards import sampler, wait_for

TOKEN = "t0k3n-of-the-tests-and-of-nobody-else-at-all"
HELD = Access(token=TOKEN)


@pytest.fixture
def serve():
    """Start a shard in a thread: ``serve(access, limits)``."""
    running = []

    def start(access=UNPROTECTED, **limits):
        shard = Shard(1000, SMALL, SelectorConfig(), limited=False)
        running.append(ShardServer(shard, access=access, limits=Limits(**limits)))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture
def shard_tls(pem):
    return SecurityConfig(certificate=pem("shard.pem"), key=pem("shard.key"))


@pytest.fixture
def shard_mutual(pem):
    return SecurityConfig(
        certificate=pem("shard.pem"), key=pem("shard.key"), authority=pem("authority.pem"), mutual=True
    )


def insert(stub, rng, *sequences, writer="w", **kwargs):
    requests = [pb.InsertRequest(writer=writer, sequence=s, segment=make_message(rng)) for s in sequences]
    return list(stub.Insert(iter(requests), timeout=5.0, **kwargs))


def stub_of(server):
    return rpc.ReplayStub(grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]))


def silent():
    """A request stream that is open and sends nothing."""
    threading.Event().wait(20.0)
    yield from ()


def round_trip(server, access, rng):
    """A segment through a writer and back through a sampler."""
    writer = Writer([server.address], give_up_after=2.0, access=access)
    source = sampler([server], give_up_after=2.0, access=access)
    try:
        writer.write(make_segment(rng))
        writer.flush(5.0)
        batch = source.sample(5.0)
        assert batch is not None
        source.update_priorities(batch, batch.weights)
        wait_for(lambda: source._updates._value == 64)
        assert source.stats()["lost_updates"] == 0
    finally:
        writer.close()
        source.close()


def last_words(server, access, rng):
    """What a writer that never gets through says in the end."""
    writer = Writer([server.address], give_up_after=0.3, access=access)
    with pytest.raises(RunFault) as fault:
        writer.write(make_segment(rng))
        writer.flush(10.0)
    writer.close()
    return str(fault.value)


WRONG = {
    "none": (),
    "another": (("authorization", "Bearer " + "x" * len(TOKEN)),),
    "its beginning": (("authorization", "Bearer " + TOKEN[:-1]),),
    "more": (("authorization", f"Bearer {TOKEN}x"),),
    "bare": (("authorization", TOKEN),),
    "another scheme": (("authorization", f"Basic {TOKEN}"),),
    "under another name": (("token", TOKEN),),
    "empty": (("authorization", ""),),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_every_method_asks_for_the_token_before_it_reads_a_message(serve, wrong):
    server = serve(HELD)
    stub, metadata = stub_of(server), WRONG[wrong]
    health = health_pb2_grpc.HealthStub(grpc.insecure_channel(server.address))
    calls = {
        "Insert": lambda: list(stub.Insert(silent(), timeout=5.0, metadata=metadata)),
        "Sample": lambda: list(stub.Sample(silent(), timeout=5.0, metadata=metadata)),
        **{
            m.name: functools.partial(getattr(stub, m.name), getattr(pb, m.input_type.name)(), 5.0, metadata)
            for m in pb.DESCRIPTOR.services_by_name["Replay"].methods
            if not m.client_streaming
        },
        "Watch": lambda: list(health.Watch(health_pb2.HealthCheckRequest(), timeout=5.0, metadata=metadata)),
    }
    assert len(calls) == 1 + len(pb.DESCRIPTOR.services_by_name["Replay"].methods)
    for name, call in calls.items():
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED, name
        assert "token" in caught.value.details()
        assert time.monotonic() - began < 2.0
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=5.0).status == 1  # probes need none


def test_with_the_token_the_clients_work_and_carry_it_along(serve, rng):
    server = serve(HELD)
    round_trip(server, HELD, rng)
    writer = pickle.loads(pickle.dumps(Writer([server.address], access=HELD)))
    writer.write(make_segment(rng))
    writer.flush(5.0)
    assert server.counts().inserted == 8
    connection = pickle.loads(pickle.dumps(ShardConnection(server.address, 1.0, HELD)))
    assert connection.stub.Info(pb.InfoRequest(), timeout=5.0, metadata=connection.metadata).counts.inserted == 8
    for thing in (HELD, writer, connection, server):
        assert TOKEN not in repr(thing) + str(thing)
    writer.close()


def test_clients_without_the_token_stop_at_once_with_the_shards_words(serve, rng):
    server = serve(HELD)
    writer = Writer([server.address], give_up_after=60.0, access=Access(token="x" * 43))
    source = sampler([server], give_up_after=60.0)
    began = time.monotonic()
    with pytest.raises(RunFault, match="refused a request.*token"):
        writer.write(make_segment(rng))
        writer.flush(10.0)
    with pytest.raises(RunFault, match="refused a request.*token"):
        for _ in range(50):
            source.sample(0.2)
    assert time.monotonic() - began < 5.0
    writer.close()
    source.close()


def test_tls(serve, rng, pem, shard_tls):
    server = serve(Access(shard_tls, TOKEN))
    client = SecurityConfig(authority=pem("authority.pem"))
    round_trip(server, Access(client, TOKEN), rng)
    named = SecurityConfig(authority=pem("authority.pem"), name="shard.qfleet")
    round_trip(server, Access(named, TOKEN), rng)
    assert HUNG_UP in last_words(server, HELD, rng)  # not encrypted
    stranger = SecurityConfig(authority=pem("stranger/authority.pem"))
    assert "CERTIFICATE_VERIFY_FAILED" in last_words(server, Access(stranger, TOKEN), rng)
    misnamed = SecurityConfig(authority=pem("authority.pem"), name="shard.elsewhere")
    assert "Hostname Verification" in last_words(server, Access(misnamed, TOKEN), rng)
    assert "WRONG_VERSION_NUMBER" in last_words(serve(), Access(client, TOKEN), rng)  # a shard without TLS
    assert server.counts().inserted == 8
    for half in (shard_tls, SecurityConfig(name="shard.qfleet")):  # never without TLS, unasked
        with pytest.raises(BadInput, match="SecurityConfig.authority"):
            Writer([server.address], access=Access(half))


def test_mutual_tls(serve, rng, pem, shard_mutual):
    server = serve(Access(shard_mutual))

    def client(place):
        return SecurityConfig(
            authority=pem("authority.pem"), certificate=pem(f"{place}client.pem"), key=pem(f"{place}client.key")
        )

    round_trip(server, Access(client("")), rng)
    assert HUNG_UP in last_words(server, Access(SecurityConfig(authority=pem("authority.pem"))), rng)
    assert HUNG_UP in last_words(server, Access(client("stranger/")), rng)
    assert server.counts().inserted == 4


def closed_after(connection, seconds):
    """Seconds until the other side closes a connection on which nothing more is said."""
    began = time.monotonic()
    connection.settimeout(seconds)
    while connection.recv(4096):
        pass
    return time.monotonic() - began


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # with empty settings


@pytest.mark.parametrize("tls", [False, True])
def test_a_connection_that_says_nothing_is_closed(serve, shard_tls, tls):
    server = serve(Access(shard_tls) if tls else UNPROTECTED, handshake=0.4, connection_idle=30.0)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        assert 0.2 < closed_after(connection, 5.0) < 4.0


def test_a_connection_without_calls_is_closed(serve, pem, shard_tls):
    limits = {"handshake": 30.0, "connection_idle": 0.4}
    with socket.create_connection(("127.0.0.1", serve(**limits).port)) as connection:
        connection.sendall(PREFACE)
        assert closed_after(connection, 5.0) < 4.0
    context = ssl.create_default_context(cafile=pem("authority.pem"))
    context.set_alpn_protocols(["h2"])
    raw = socket.create_connection(("127.0.0.1", serve(Access(shard_tls), **limits).port))
    with context.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
        connection.sendall(PREFACE)
        assert closed_after(connection, 5.0) < 4.0


def test_a_peer_that_answers_no_ping_is_cut_off(serve):
    server = serve(keepalive=0.3)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(PREFACE)
        assert closed_after(connection, 5.0) < 4.0


def test_connections_are_bounded(serve):
    server = serve(connections=2)
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
    assert all(connection.recv(1) for connection in held)
    with socket.create_connection(("127.0.0.1", server.port)) as third:
        assert closed_after(third, 5.0) < 4.0
    for connection in held:
        connection.close()
    channel = stub_of(server)
    wait_for(lambda: channel.Info(pb.InfoRequest(), timeout=5.0, wait_for_ready=True).capacity == 1000)


def test_a_silent_stream_is_ended_in_words_and_a_talking_one_is_not(serve, rng):
    server = serve(stream_idle=0.5)
    for method in ("Insert", "Sample"):
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            list(getattr(stub_of(server), method)(silent(), timeout=10.0))
        assert caught.value.code() == grpc.StatusCode.ABORTED
        assert "nothing for 0.5 s" in caught.value.details()
        assert time.monotonic() - began < 3.0

    def talking():
        for sequence in range(1, 6):
            yield pb.InsertRequest(writer="w", sequence=sequence, segment=make_message(rng))
            time.sleep(0.25)

    assert [r.acknowledged for r in stub_of(server).Insert(talking(), timeout=10.0)] == [1, 2, 3, 4, 5]


def test_clients_that_were_silent_go_on_without_loss_or_outage(serve, rng):
    """The one stream that the shard allows is free while the writer is silent, and the writer has it back after."""
    server = serve(streams=1, stream_idle=0.3)
    writer = Writer([server.address], give_up_after=0.2)
    for k in range(3):
        writer.write(make_segment(rng))
        writer.flush(5.0)
        assert server.counts().inserted == 4 * (2 * k + 1)
        time.sleep(0.8)
        insert(stub_of(server), rng, 1, writer=f"another {k}")
    assert not writer._streams[0].connection.gone
    writer.close()
    other = serve(stream_idle=0.3)
    source = sampler([other], give_up_after=0.2)
    insert(stub_of(other), rng, 1)
    for _ in range(3):
        assert source.sample(5.0) is not None
        time.sleep(0.8)
    assert source.stats()["shards_gone"] == 0
    source.close()


def test_streams_are_bounded_and_come_free(serve, rng):
    server = serve(streams=2)
    asked = [itertools.chain([pb.SampleRequest()], silent()) for _ in range(2)]
    held = [stub_of(server).Sample(requests, timeout=20.0) for requests in asked]
    for call in held:
        next(call)  # it is open
    third = stub_of(server)

    def refused():
        try:
            insert(third, rng, 1)
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and error.details().startswith(NO_STREAM)
        return False

    assert refused()
    inserted = server.counts().inserted
    assert NO_STREAM in last_words(server, UNPROTECTED, rng)
    assert third.Info(pb.InfoRequest(), timeout=5.0).counts.inserted == inserted  # what is no stream is answered
    patient = Writer([server.address], give_up_after=30.0)
    patient.write(make_segment(rng))
    time.sleep(0.3)
    assert patient.in_flight == 1
    held.pop().cancel()
    patient.flush(10.0)
    patient.close()
    for k in range(12):  # however early it is cancelled, a stream is not counted for ever
        wait_for(lambda: not refused())
        call = stub_of(server).Insert(silent(), timeout=20.0)
        time.sleep(0.02 * (k % 3))
        call.cancel()
    held.pop().cancel()
    wait_for(lambda: not refused())


def too_long(rng, items):
    message = make_message(rng, items=items, n=1)
    return pb.InsertRequest(writer="w", sequence=1, segment=message)


def test_what_is_above_the_bounds_is_refused_and_leaves_no_trace(serve, rng):
    server = serve()
    stub, before = stub_of(server), server.counts()
    doubled = too_long(rng, 5_001)  # two items a step
    for name in ("item_step", "item_length", "r_t", "discount_t", "td_abs"):
        setattr(doubled.segment, name, getattr(doubled.segment, name) * 2)
    many = pb.UpdatePrioritiesRequest(keys=bytes(8 * 65_537), td_abs=bytes(4 * 65_537))
    calls = {
        "10001 and 10001": lambda: list(stub.Insert(iter([too_long(rng, 10_001)]), timeout=5.0)),
        "5001 and 10002": lambda: list(stub.Insert(iter([doubled]), timeout=5.0)),
        "65537 items": lambda: stub.UpdatePriorities(many, timeout=5.0),
        "for 65537 items": lambda: list(stub.Sample(iter([pb.SampleRequest(counts=[65_536, 1])]), timeout=5.0)),
    }
    for words, call in calls.items():
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, words
        assert words in caught.value.details()
    with pytest.raises(grpc.RpcError) as caught:
        stub.UpdatePriorities(pb.UpdatePrioritiesRequest(keys=bytes(70 * 2**20)), timeout=5.0)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in caught.value.details()
    assert server.counts() == before


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
def test_what_only_this_machine_reaches(host, loopback):
    assert is_loopback(host) == loopback


def test_a_shard_that_others_reach_needs_a_token_also_from_python():
    shard = Shard(10, SMALL, SelectorConfig(), limited=False)
    with pytest.raises(BadInput, match="asks for no token"):
        ShardServer(shard, "0.0.0.0")
    for access in (HELD, Access(SecurityConfig(require_token=False))):
        ShardServer(shard, "0.0.0.0", access=access).stop()
    if socket.has_dualstack_ipv6():
        server = ShardServer(shard, "::1")
        assert server.address == f"[::1]:{server.port}"
        assert stub_of(server).Info(pb.InfoRequest(), timeout=5.0).capacity == 10
        server.stop()


def test_a_token_file_is_made_once_for_its_owner(tmp_path, monkeypatch):
    path = tmp_path / "token"
    threads = [threading.Thread(target=make_token_file, args=(str(path),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["token"]
    token = Access.of(SecurityConfig(token_file=str(path))).token
    assert len(token) == len(new_token()) == 43
    assert make_token_file(str(path)) is False
    assert Access.of(SecurityConfig(token_file=str(path))).token == token
    assert Access.of(SecurityConfig()).token == ""
    monkeypatch.setenv("QFLEET_TOKEN", TOKEN)
    assert Access.of(SecurityConfig()).token == TOKEN
    assert Access.of(SecurityConfig(token_file=str(path))).token == token


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
    "a certificate that is none": ({"certificate": "shard.csr", "key": "shard.key"}, "shard.csr"),
    "an authority that is none": ({"authority": "shard.key"}, "holds no certificate"),
    "an authority that is not there": ({"authority": "nowhere.pem"}, "authority .*nowhere.pem"),
    "mutual without an authority": ({"certificate": "shard.pem", "key": "shard.key", "mutual": True}, "authority"),
    "a token that is not there": ({"token_file": "nowhere"}, "token_file .*nowhere cannot be read"),
    "an empty token": ({"token_file": "empty"}, "holds no token"),
    "a token of two words": ({"token_file": "words"}, "holds no token"),
    "a token of no text": ({"token_file": "bytes"}, "holds no token"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named_in_one_line(case, pem):
    Path(pem("empty")).write_text("\n")
    Path(pem("words")).write_text("correct horse battery staple\n")
    Path(pem("bytes")).write_bytes(bytes(range(128, 255)))
    locked = ["openssl", "ec", "-in", pem("shard.key"), "-aes256", "-passout", "pass:word", "-out", pem("locked.key")]
    subprocess.run(locked, check=True, capture_output=True)
    settings, words = BAD_FILES[case]
    with pytest.raises(BadInput, match=words) as refused:
        Access.of(SecurityConfig(**{k: pem(v) if isinstance(v, str) else v for k, v in settings.items()}))
    assert "\n" not in str(refused.value)
    assert "horse" not in str(refused.value)


SERVE = ["replay", "serve", "--port", "0", "--frame-shape", "2", "--dtype", "float32", "--stack", "1"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "0.0.0.0"], "--security.token-file"),
        (["--host", "::"], "--security.token-file"),
        (["--host", "203.0.113.7", "--security.no-require-token"], "no address of this machine"),
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
def test_serve_refuses_in_one_line(flags, words, capsys):
    assert cli.main([*SERVE, *flags]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert words in lines[0]


def test_serve_makes_its_token_and_asks_for_it(tmp_path, rng):
    path = tmp_path / "token"
    command = [sys.executable, "-m", "qfleet", *SERVE, "--host", "0.0.0.0", "--security.token-file", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = [process.stdout.readline() for _ in range(2)]
    assert f"a new token is in {path}" in said[0]
    port = int(re.match(r"replay shard on 0\.0\.0\.0:(\d+): ", said[1])[1])
    server = SimpleNamespace(address=f"127.0.0.1:{port}")
    access = Access.of(SecurityConfig(token_file=str(path)))
    with open_channel(server.address, access) as channel:
        assert insert(rpc.ReplayStub(channel), rng, 1, metadata=access.metadata)
        with pytest.raises(grpc.RpcError, match="token"):
            insert(rpc.ReplayStub(channel), rng, 2)
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=20)
    assert process.returncode == 143
    assert access.token not in "".join([*said, *rest])
    assert os.environ.get("QFLEET_TOKEN") is None
