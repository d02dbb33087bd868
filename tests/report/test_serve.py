"""The live page: loopback alone, behind its token and its own host name."""

import http.client
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from graphopt import graph
from graphopt.errors import UsageError
from graphopt.report.serve import Server


@pytest.fixture
def server():
    texts = iter(f"<p>{n}" for n in range(100))
    with Server(lambda: next(texts)) as opened:
        thread = threading.Thread(target=opened.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


def ask(server, path: str, host: str | None = None, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(*server.server_address, timeout=5)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_address[1]}")
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_who_knows_the_address_gets_the_page_anew_each_time(server):
    assert server.server_address[0] == "127.0.0.1"
    path = f"/{server.token}/"
    assert ask(server, path) == (200, "<p>0")
    assert ask(server, path, host=f"localhost:{server.server_address[1]}") == (200, "<p>1")


@pytest.mark.parametrize("path", ["/", "/favicon.ico", "/x{token}/", "/{token}", "/{token}/..", "/{token}/?q"])
def test_any_other_address_is_refused(server, path):
    status, text = ask(server, path.format(token=server.token))
    assert status == 403
    assert server.token not in text


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil:{port}"]
)
def test_another_host_name_is_refused(server, host):
    assert ask(server, f"/{server.token}/", host=host.format(port=server.server_address[1]))[0] == 403


def test_other_methods_do_nothing(server):
    assert ask(server, f"/{server.token}/", method="POST")[0] == 501


def test_it_may_not_be_framed_or_cached(server):
    with urllib.request.urlopen(server.url) as answer:
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store"


def test_two_servers_have_two_tokens_and_a_taken_port_is_an_error(server):
    with Server(str) as other:
        assert other.token != server.token
    with pytest.raises(UsageError, match="port"):
        Server(str, server.server_address[1])


def test_view_serves_until_ctrl_c(network, tmp_path):
    path = tmp_path / "net.onnx"
    graph.save(graph.normalise(network()), path)
    command = [sys.executable, "-m", "graphopt", "view", str(path), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().split()[0]
        with urllib.request.urlopen(url) as answer:
            assert "conv1" in answer.read().decode()
        path.write_bytes(b"no model")
        with pytest.raises(urllib.error.HTTPError, match="500"):
            urllib.request.urlopen(url)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, "")
    assert "Traceback" not in out
