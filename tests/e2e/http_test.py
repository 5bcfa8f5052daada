"""The transport on raw sockets: framing, smuggling, sizes, deadlines, pipelining (B-HTTP)."""

import json
import re
import select
import shutil
import socket
import ssl
import tempfile
import threading
import time
import unittest

from scripted import ServerCase, main, make_certificate

LIVE = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"


def read_all(connection, deadline=10):
    connection.settimeout(deadline)
    data = b""
    try:
        while chunk := connection.recv(65536):
            data += chunk
    except (ConnectionResetError, socket.timeout, ssl.SSLError):
        pass
    return data


def statuses(data):
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


class Raw(ServerCase):
    CONFIG = {"header_deadline": 1.0, "keep_alive_idle": 2.0, "max_body": 1 << 20,
              "ping_interval": 0.5, "write_stall": 1.5}

    def send(self, data, close=True):
        with self.server.connect() as connection:
            try:
                connection.sendall(data)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                pass
            return read_all(connection) if close else connection

    def refused(self, data, *expected):
        reply = self.send(data)
        found = statuses(reply)
        self.assertEqual(len(found), 1, (data[:200], reply[:400]))
        self.assertIn(found[0], expected, (data[:200], reply[:400]))
        self.assertIn(b"connection: close", reply)
        self.assertIn("error", json.loads(reply.split(b"\r\n\r\n", 1)[1]))

    def test_malformed(self):
        for request in (
                b"GET /livez\r\n\r\n", b"GET  /livez HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET livez HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET /livez HTTP/1.1\r\nHost : a\r\n\r\n", b"GET /livez HTTP/1.1\r\n Host: a\r\n\r\n",
                b"GET /livez HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n",
                b"GET /livez HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
                b"GET /livez HTTP/1.1\r\n\r\n", b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 5 + b"\r\n\r\n",
                b"G\x00T /livez HTTP/1.1\r\nHost: a\r\n\r\n"):
            self.refused(request, 400)
        self.refused(b"GET /livez HTTP/1.1\nHost: a\n\n", 400, 505)
        self.refused(b"GET /livez HTTP/2.0\r\nHost: a\r\n\r\n", 400, 505)
        self.refused(b"GET /livez HTTP/1.2\r\nHost: a\r\n\r\n", 400, 505)

    def test_smuggling(self):
        head = b"POST /ping HTTP/1.1\r\nHost: a\r\n"
        body = b"5\r\nhello\r\n0\r\n\r\n"
        for fields in (
                b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
                b"Content-Length: 5\r\nContent-Length: 6\r\n",
                b"Content-Length: 5\r\nContent-Length: 5\r\n",
                b"Content-Length: 5, 5\r\n", b"Content-Length: +5\r\n", b"Content-Length: -5\r\n",
                b"Content-Length: 0x5\r\n", b"Content-Length: 5 5\r\n",
                b"Content-Length: 99999999999999999999\r\n",
                b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                b"Transfer-Encoding: chunked, identity\r\n", b"Transfer-Encoding: xchunked\r\n",
                b"Transfer-Encoding: identity, chunked\r\n", b"Transfer-Encoding : chunked\r\n",
                b"Transfer-Encoding:\x0bchunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n"):
            self.refused(head + fields + b"\r\n" + body, 400, 413, 501)
        self.refused(b"POST /ping HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + body, 400)

    def test_chunks(self):
        head = b"POST /ping HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        for size in (b"-2", b"0x10", b"fffffffffffffffff", b"g", b"", b" 5", b"5 "):
            self.refused(head + size + b"\r\nhello\r\n0\r\n\r\n", 400, 413)
        self.refused(head + b"7fffffffffffffff\r\n", 400, 413)
        self.refused(head + b"5\r\nhelloX\r\n0\r\n\r\n", 400)
        self.refused(head + b"5;" + b"a" * 100_000 + b"\r\nhello\r\n0\r\n\r\n", 400)
        self.refused(head + b"0\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", 400, 431)
        chunk = b"%x\r\n%s\r\n" % (65536, b" " * 65536)
        self.refused(head + chunk * 17, 413)
        good = self.send(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
                         + b"1\r\nx\r\n" * 200_000 + b"0\r\n\r\n")
        self.assertEqual(statuses(good), [200])

    def test_sizes(self):
        get = b"GET /livez HTTP/1.1\r\nHost: a\r\n"
        self.refused(get + b"X: " + b"a" * 9000 + b"\r\n\r\n", 431)
        self.refused(get + b"X: a\r\n" * 101 + b"\r\n", 431)
        self.refused(get + b"X: " + b"a" * 7000 + b"\r\n" * 1 + b"Y: " + b"b" * 40_000, 431)
        self.refused(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, 431)
        self.refused(b"POST /ping HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\n", 413)

    # ---- one request after another on one connection: nothing may be read as what it is not

    def conversation(self, data):
        """Statuses of all answers, then whether the connection was closed by the server."""
        with self.server.connect() as connection:
            try:
                connection.sendall(data)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                pass
            connection.settimeout(1.5)
            reply = b""
            try:
                while chunk := connection.recv(65536):
                    reply += chunk
                return statuses(reply), True
            except socket.timeout:
                return statuses(reply), False
            except (ConnectionResetError, ssl.SSLError):
                return statuses(reply), True

    def refuses_and_closes(self, request, *expected):
        """What follows a request whose end is unsure is not read."""
        found, closed = self.conversation(request + LIVE.replace(b"/livez", b"/smuggled"))
        self.assertEqual(len(found), 1, (request, found))
        self.assertIn(found[0], expected or (400,), request)
        self.assertTrue(closed, request)

    def test_ambiguous_lines(self):
        get, end = b"GET /livez HTTP/1.1\r\nHost: a\r\n", b"\r\n"
        for header in (
                b"X: a\r\n folded\r\n", b"X: a\r\n\tfolded\r\n", b": no name\r\n", b"X\r\n",
                b"X Y: a\r\n", b"X\t: a\r\n", b"X\x00Y: a\r\n", b"X: a\x00\r\n", b"X: a\rb\r\n",
                b"X: a\x7f\r\n", b"X[: a\r\n", b"X: a\x01\r\n", b" X: a\r\n", b"\r: a\r\n"):
            self.refuses_and_closes(get + header + end, 400)
        for request in (
                b"GET /livez HTTP/1.1\nHost: a\r\n\r\n", b"GET /livez HTTP/1.1\r\nHost: a\n\r\n",
                b"GET\t/livez\tHTTP/1.1\r\nHost: a\r\n\r\n", b"GET /livez  HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET /livez HTTP/1.1 \r\nHost: a\r\n\r\n", b" GET /livez HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET /li vez HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /livez\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET /livez http/1.1\r\nHost: a\r\n\r\n", b"GET /livez HTTP/01.1\r\nHost: a\r\n\r\n",
                b"GET /livez HTTP/1\r\nHost: a\r\n\r\n", b"GET /livez HTTP/1.1.1\r\nHost: a\r\n\r\n",
                b"GET /livez HTTX/1.1\r\nHost: a\r\n\r\n", b"G[T /livez HTTP/1.1\r\nHost: a\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /\x80 HTTP/1.1\r\nHost: a\r\n\r\n"):
            self.refuses_and_closes(request, 400, 505)

    def test_ambiguous_ends(self):
        post = b"POST /ping HTTP/1.1\r\nHost: a\r\n"
        for fields in (
                b"Content-Length: 5\r\nContent-Length: 5\r\n", b"Content-Length: 5,5\r\n",
                b"Content-Length:\r\n", b"Content-Length: 5_0\r\n", b"Content-Length: 5;\r\n",
                b"Content-Length: 5.0\r\n", b"Content-Length: 5e0\r\n", b"Content-Length: a\r\n",
                b"Content-Length : 5\r\n", b"Content-Length: \x0b5\r\n", b"Content-Length: 18446744073709551621\r\n",
                b"Content-Length\x00: 5\r\n", b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
                b"Transfer-Encoding: chunked, chunked\r\n", b"Transfer-Encoding: chunked;q=1\r\n",
                b"Transfer-Encoding: \"chunked\"\r\n", b"Transfer-Encoding: chun ked\r\n",
                b"Transfer-Encoding:\r\n chunked\r\n", b"Transfer-Encoding: identity\r\n",
                b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
                b"Transfer-Encoding\t: chunked\r\n", b"Transfer_Encoding: chunked\r\nTransfer-Encoding: x\r\n"):
            self.refuses_and_closes(post + fields + b"\r\n" + b"0\r\n\r\n", 400, 413, 501)
        chunked = post + b"Transfer-Encoding: chunked\r\n\r\n"
        for body in (b"5\nhello\r\n0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n", b"5\rhello\r\n0\r\n\r\n",
                     b"5\r\nhello0\r\n\r\n", b"+5\r\nhello\r\n0\r\n\r\n", b"0x5\r\nhello\r\n0\r\n\r\n",
                     b"5_\r\nhello\r\n0\r\n\r\n", b"10000000000000005\r\nhello\r\n0\r\n\r\n",
                     b"5;\n\r\nhello\r\n0\r\n\r\n", b"-0\r\n\r\n", b"\r\n5\r\nhello\r\n0\r\n\r\n",
                     b"0\r\nContent-Length: 7\r\n\r\n", b"0\r\nTransfer-Encoding: x\r\n\r\n", b"0\r\nno colon\r\n\r\n"):
            self.refuses_and_closes(chunked + body, 400, 413)

    def test_clear_ends(self):
        """Bodies that are framed well leave the next request where it is."""
        post = b"POST /ping HTTP/1.1\r\nHost: a\r\n"
        for request in (
                post + b"Content-Length: 5\r\n\r\nhello", post + b"Content-Length:   5  \r\n\r\nhello",
                post + b"Content-Length: 0\r\n\r\n", post + b"\r\n",
                post + b"Transfer-Encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                post + b"Transfer-Encoding: chunked\r\n\r\n5;a=b;c=\"d\"\r\nhello\r\n000\r\nX: y\r\n\r\n",
                post + b"Transfer-Encoding: chunked\r\n\r\n0000005\r\nhello\r\n0\r\n\r\n",
                b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
                b"GET http://b/livez?x=1#f HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET /livez HTTP/1.1\r\nHost: a\r\nX:\r\nY: \xff\r\n\r\n",
                b"\r\nGET /livez HTTP/1.1\r\nHost: a\r\n\r\n"):
            found, _ = self.conversation(
                request + b"GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            self.assertEqual(found, [200, 404], request)

    def test_methods_and_targets(self):
        for line, status in ((b"TRACE /livez", 405), (b"CONNECT a:443", 400), (b"PUT /livez", 405),
                             (b"BREW /livez", 405), (b"OPTIONS *", 200), (b"GET *", 404),
                             (b"get /livez", 405), (b"GET /livez/../v1/models", 404),
                             (b"GET //livez", 404), (b"GET /LIVEZ", 404), (b"GET /livez%00", 404),
                             (b"GET /%6civez", 404), (b"GET /livez?a=%zz", 200), (b"HEAD /livez", 200),
                             (b"M" * 9000 + b" /livez", 400)):
            found, _ = self.conversation(line + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            self.assertEqual(found, [status], line[:60])

    def test_upgrades_and_expectations(self):
        get = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close"
        for extra in (b", Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
                      b", Upgrade\r\nUpgrade: websocket", b"\r\nExpect: 100-continue"):
            self.assertEqual(self.conversation(get + extra + b"\r\n\r\n")[0], [200], extra)

    def test_many_headers_leave_no_memory_behind(self):
        """Headers without end cost the connection its bound and no more."""
        def resident():
            with open(f"/proc/{self.server.process.pid}/statm") as file:
                return int(file.read().split()[1]) * 4096
        before = resident()
        for line in (b"X: " + b"a" * (64 << 20), b"X: a\r\n" * 4_000_000, b"a" * (32 << 20)):
            found, closed = self.conversation(b"GET /livez HTTP/1.1\r\nHost: a\r\n" + line)
            self.assertIn(found, ([431], [400], []))
            self.assertTrue(closed)
        self.assertLess(resident() - before, 8 << 20)

    def test_slow_header_and_body(self):
        for start in (b"GET /livez HT", b"POST /ping HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab"):
            with self.server.connect() as connection:
                began = time.time()
                connection.sendall(start)
                self.assertEqual(statuses(read_all(connection)), [408])
                self.assertLess(time.time() - began, 5)

    def test_idle_connection_ends(self):
        with self.server.connect() as connection:
            connection.sendall(LIVE)
            self.assertEqual(statuses(read_all(connection, 6)), [200])

    def test_pipelining_and_keep_alive(self):
        with self.server.connect() as connection:
            connection.sendall(LIVE * 20 + LIVE.replace(b"/livez", b"/nothing"))
            time.sleep(0.2)
            connection.sendall(LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            self.assertEqual(statuses(read_all(connection)), [200] * 20 + [404, 200])

    def test_byte_by_byte(self):
        body = json.dumps({"prompt": "script:plain;<fim_middle>", "max_tokens": 2}).encode()
        request = (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                   b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        with self.server.connect() as connection:
            for i in range(len(request)):
                connection.sendall(request[i:i + 1])
            self.assertIn(b'"one two"', read_all(connection))

    def test_expect_continue(self):
        with self.server.connect() as connection:
            connection.sendall(b"POST /ping HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
                               b"Connection: close\r\nExpect: 100-continue\r\n\r\n")
            self.assertEqual(connection.recv(100), b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.sendall(b"ok")
            self.assertEqual(statuses(read_all(connection)), [200])

    def test_http10(self):
        with self.server.connect() as connection:
            connection.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            self.assertEqual(statuses(read_all(connection)), [200])
        body = b'{"prompt":"script:plain;<fim_middle>","max_tokens":2,"stream":true}'
        reply = self.send(b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
                          b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.assertNotIn(b"transfer-encoding", reply)
        self.assertTrue(reply.endswith(b"data: [DONE]\n\n"))

    def test_refusal_after_a_stream(self):
        """Nothing of a stream's framing is left for the answer behind it."""
        body = b'{"prompt":"script:plain;<fim_middle>","max_tokens":2,"stream":true}'
        reply = self.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
                          b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                          b"GET /livez HTTP/1.1\r\n\r\n" % (len(body), body))
        self.assertEqual(statuses(reply), [200, 400])
        head, refusal = reply[reply.rindex(b"HTTP/1.1 "):].split(b"\r\n\r\n", 1)
        length = int(re.search(rb"content-length: (\d+)", head)[1])
        self.assertEqual(refusal[length:], b"")

    def test_content_type_and_encoding(self):
        for headers in ({"Content-Type": "text/plain"}, {"Content-Type": ""},
                        {"Content-Type": "application/json", "Content-Encoding": "gzip"}):
            status, _, text = self.server.request("POST", "/v1/completions", "{}", headers)
            self.assertEqual((status, json.loads(text)["error"]["code"]), (400, 400), headers)

    def test_pings_while_silent(self):
        status, _, text = self.server.request("POST", "/v1/completions", {
            "prompt": "script:quiet;<fim_middle>", "max_tokens": 2, "stream": True})
        self.assertEqual(status, 200)
        self.assertGreaterEqual(text.count(": ping\n\n"), 2)
        status, _, text = self.server.request("POST", "/v1/messages", {
            "model": "scripted", "max_tokens": 2, "stream": True,
            "messages": [{"role": "user", "content": "script:quiet;"}]})
        self.assertEqual(status, 200)
        self.assertGreaterEqual(text.count('event: ping\ndata: {"type": "ping"}\n\n'), 2)
        self.assertNotIn(": ping\n\n", text.replace("event: ping", ""))

    def test_client_that_reads_nothing_is_dropped(self):
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", self.server.port))
            prompt = "text " * 7000 + "script:long;<fim_middle>"
            body = json.dumps({"prompt": [prompt] * 16, "max_tokens": 1000, "stream": True,
                               "echo": True}).encode()
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            deadline = time.time() + 30
            while self.server.metric("vllm:num_requests_running") == 0 and time.time() < deadline:
                time.sleep(0.05)
            while self.server.metric("vllm:num_requests_running") > 0 and time.time() < deadline:
                time.sleep(0.2)
            self.assertEqual(self.server.metric("vllm:num_requests_running"), 0)

    def test_many_slow_connections_harm_nobody(self):
        slow = [self.server.connect() for _ in range(200)]
        for connection in slow:
            connection.sendall(b"GET /livez HTTP/1.1\r\nX: ")
        began = time.time()
        status, _ = self.server.complete("plain", max_tokens=2)
        self.assertEqual(status, 200)
        self.assertLess(time.time() - began, 5)
        results = []
        threads = [threading.Thread(target=lambda c=c: results.append(statuses(read_all(c))))
                   for c in slow]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(results, [[408]] * 200)
        for connection in slow:
            connection.close()


class LargeBodies(ServerCase):
    """What all bodies may hold together, beyond the 64 KiB that each has for itself."""

    CONFIG = {"max_all_bodies": 1 << 20, "max_num_seqs": 1}

    def begin(self, size, sent):
        connection = self.server.connect()
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
                           b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % size
                           + b" " * sent)
        return connection

    def ask(self, size, stream=False):
        body = json.dumps({"prompt": "script:slow;<fim_middle>", "max_tokens": 20 if stream else 1,
                           "stream": stream}).encode()
        connection = self.begin(size, size - len(body))
        connection.sendall(body)
        return connection

    def status(self, connection):
        with connection:
            return statuses(read_all(connection))

    def until(self, expected, size):
        found = None
        for _ in range(100):
            found = self.status(self.ask(size))
            if found == expected:
                break
            time.sleep(0.05)
        self.assertEqual(found, expected)

    def stall(self):
        """A client that stops in the middle of its body. What was answered a moment ago may still
        hold its room: then this one is refused, and comes again."""
        for _ in range(100):
            connection = self.begin(1 << 20, 900 << 10)
            if not select.select([connection], [], [], 0.2)[0]:
                return connection
            connection.close()
        self.fail("no room for one body")

    def test_large_bodies_share_their_room(self):
        with self.stall():
            self.until([503], 300 << 10)
            self.assertEqual(self.status(self.ask(60 << 10)), [200])
        self.until([200], 300 << 10)

    def test_a_body_that_is_read_leaves_room(self):
        with self.ask(900 << 10, stream=True) as streaming:
            self.assertIn(b"data: ", streaming.recv(65536) + streaming.recv(65536))
            self.assertEqual(self.status(self.ask(900 << 10)), [200])


@unittest.skipUnless(shutil.which("openssl"), "needs the openssl command")
class OverTls(Raw):
    """What frames and parses is the same within TLS; what watches sockets is tested without."""

    test_idle_connection_ends = test_pings_while_silent = None
    test_client_that_reads_nothing_is_dropped = test_many_slow_connections_harm_nobody = None
    test_many_headers_leave_no_memory_behind = test_content_type_and_encoding = None

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        certificate, key = make_certificate(folder.name, "server")
        cls.CONFIG = {**Raw.CONFIG, "ssl_certfile": certificate, "ssl_keyfile": key}
        super().setUpClass()
        cls.server.tls = ssl.create_default_context(cafile=certificate)
        cls.server.tls.check_hostname = False

    def test_a_client_that_leaves_without_a_word_frees_its_request(self):
        """FIN and RST instead of a close of TLS."""
        body = b'{"prompt":"script:words;<fim_middle>","max_tokens":7000,"stream":true}'
        for reset in (False, True):
            connection = self.server.connect()
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: "
                               b"application/json\r\nContent-Length: %d\r\n\r\n%s"
                               % (len(body), body))
            self.assertIn(b"200 OK", connection.recv(1000))
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            raw = socket.socket(fileno=connection.detach())
            raw.close()
            for _ in range(100):
                if self.server.metric("vllm:num_requests_running") == 0:
                    break
                time.sleep(0.05)
            self.assertEqual(self.server.metric("vllm:num_requests_running"), 0)


if __name__ == "__main__":
    main()
