"""The transport on raw sockets: framing, smuggling, sizes, deadlines, pipelining (B-HTTP)."""

import json
import re
import socket
import threading
import time

from scripted import ServerCase, main

LIVE = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"


def read_all(connection, deadline=10):
    connection.settimeout(deadline)
    data = b""
    try:
        while chunk := connection.recv(65536):
            data += chunk
    except (ConnectionResetError, socket.timeout):
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
            except (BrokenPipeError, ConnectionResetError):
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


if __name__ == "__main__":
    main()
