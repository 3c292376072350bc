"""Tests tools/send_neuronpedia.py against a server on this machine that has the rules of Neuronpedia's upload-batch.

    python3 sae-eval/tests/python/test_send_neuronpedia.py            (the standard library only)
"""

import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest

SEND = pathlib.Path(__file__).resolve().parents[3] / "tools/send_neuronpedia.py"
KEY = "a key"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the server's list `answers` says, one entry per request, and afterwards stores."""

    def do_POST(self):
        server = self.server
        text = self.rfile.read(int(self.headers["Content-Length"]))
        server.requests.append(self.headers)
        answer = server.answers.pop(0) if server.answers else "store"
        if answer == "drop":
            self.close_connection = True
            return
        if answer == "store, then drop":
            server.stored.append(json.loads(text))
            self.close_connection = True
            return
        if answer != "store":
            code, headers, body = answer
            self.reply(code, body, headers)
        elif self.headers["X-Api-Key"] != KEY:
            self.reply(401, {"error": "This endpoint requires authorization."})
        else:
            server.stored.append(json.loads(text))
            self.reply(200, {"message": f"{len(server.stored[-1]['features'])} features created."})

    def do_GET(self):
        self.server.requests.append(self.headers)
        self.reply(200, {"message": "a page"})

    def reply(self, code, body, headers=()):
        data = json.dumps(body).encode()
        self.send_response(code)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(*answers):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.stored, server.requests = list(answers), [], []
    server.url = f"http://127.0.0.1:{server.server_port}/api/feature/upload-batch"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def feature(index, **other):
    return {"index": index, "density": 0.5, "activations": [{"tokens": [" a", "\n"], "values": [0.0, 1.5]}]} | other


class Sending(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.write([[feature(0), feature(3)], [feature(4)], [feature(9)]])

    def write(self, files, index=True):
        listed = []
        for i, features in enumerate(files):
            name = f"features-{i:05}.json"
            text = json.dumps({"modelId": "gpt2-small", "source": "5-set", "features": features}).encode()
            (self.directory / name).write_bytes(text)
            listed.append({"file": name, "features": len(features), "sha256": hashlib.sha256(text).hexdigest()})
        if index:
            about = {"format": "dynamic-sae.neuronpedia", "version": 1, "files": listed}
            (self.directory / "index.json").write_text(json.dumps(about))

    def send(self, server, *arguments, key=KEY):
        environment = {k: v for k, v in os.environ.items() if k != "NEURONPEDIA_API_KEY"}
        if key:
            environment["NEURONPEDIA_API_KEY"] = key
        url = ("--url", server.url) if server else ()
        command = [sys.executable, SEND, self.directory, *url, "--pause", "0", *arguments]
        return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=60)

    def indices(self, server):
        return [[feature["index"] for feature in body["features"]] for body in server.stored]

    def test_every_file_is_sent_once(self):
        with serving() as server:
            first = self.send(server)
            second = self.send(server)
        self.assertEqual(first.returncode, 0, first.stderr)
        self.assertEqual(self.indices(server), [[0, 3], [4], [9]])
        self.assertEqual(server.stored[0]["modelId"], "gpt2-small")
        self.assertEqual(server.stored[0]["features"][0], feature(0))
        self.assertIn("features-00000.json: 2 features created.", first.stdout)
        self.assertIn("3 files were sent before", second.stdout)
        self.assertTrue(all(headers["X-Api-Key"] == KEY for headers in server.requests))

    def test_a_dry_run_sends_nothing_and_needs_no_key(self):
        with serving() as server:
            result = self.send(server, "--dry-run", key=None)
        self.assertEqual((result.returncode, server.requests), (0, []), result.stderr)
        self.assertIn("3 files with 4 features", result.stdout)
        self.assertFalse((self.directory / "sent.json").exists())

    def test_a_busy_server_is_asked_again(self):
        rolled_back = {"error": "Failed to create features. Please try again or contact support."}
        answers = [(500, [], rolled_back), (429, [("Retry-After", "0")], {}), (503, [("Retry-After", "0")], {})]
        with serving(*answers) as server:
            result = self.send(server)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(self.indices(server), [[0, 3], [4], [9]])
        self.assertEqual(result.stderr.count("trying again in"), 3, result.stderr)

    def test_a_server_that_stays_busy_ends_it_and_the_next_run_continues(self):
        busy = (429, [("Retry-After", "0")], {"error": "slow\x1b[2J down"})
        with serving("store", busy, busy) as server:
            result = self.send(server, "--tries", "2")
            self.assertEqual(result.returncode, 1)
            self.assertIn("features-00001.json: the server refuses it: 429 slow [2J down", result.stderr)
            self.assertEqual(self.send(server).returncode, 0)
        self.assertEqual(self.indices(server), [[0, 3], [4], [9]])

    def test_a_refusal_is_told_and_not_repeated(self):
        with serving((400, [], {"error": "too many", "path": "features"})) as server:
            result = self.send(server)
        self.assertEqual((result.returncode, len(server.requests)), (1, 1))
        self.assertIn("400 too many features", result.stderr)
        with serving() as server:
            self.write([[feature(1)]])
            (self.directory / "sent.json").unlink()
            result = self.send(server, key="another")
        self.assertIn("401 This endpoint requires authorization.; is NEURONPEDIA_API_KEY", result.stderr)

    def test_a_lost_answer_is_settled_by_hand(self):
        for stored, how in ((True, "skip"), (False, "again")):
            with self.subTest(how), serving("store", "store, then drop" if stored else "drop") as server:
                result = self.send(server)
                self.assertEqual(result.returncode, 1)
                self.assertIn("not known whether the file was stored", result.stderr)
                result = self.send(server)
                self.assertIn("features-00001.json: it is not known", result.stderr)
                self.assertEqual(len(server.requests), 2)
                result = self.send(server, "--interrupted", how)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertEqual(self.indices(server), [[0, 3], [4], [9]])
                (self.directory / "sent.json").unlink()
        with serving((504, [], {})) as server:
            self.assertIn("the server's answer is lost (504", self.send(server).stderr)

    def test_the_key_stays_here(self):
        with serving() as other, serving((302, [("Location", other.url)], {})) as server:
            result = self.send(server)
        self.assertEqual((result.returncode, other.requests), (1, []))
        self.assertIn("has moved to", result.stderr)
        result = self.send(None, "--url", "http://example.invalid/api")
        self.assertIn("use https", result.stderr)
        self.assertNotIn(KEY, result.stderr)
        with serving() as server:
            self.assertIn("NEURONPEDIA_API_KEY is not set", self.send(server, key=None).stderr)

    def test_nobody_listens(self):
        with serving() as server:
            pass
        result = self.send(server, "--tries", "1")
        self.assertIn("cannot be reached", result.stderr)
        with serving() as server:
            (self.directory / "sent.json").unlink()
            self.assertEqual(self.send(server).returncode, 0, "a file that never left is no lost one")

    def test_files_that_would_be_refused_are_not_sent(self):
        tokens = {"tokens": ["a"] * 1025, "values": [0.0] * 1025}
        wrong = {
            "no activations": [feature(0, activations=[])],
            "1025 tokens": [feature(0, activations=[tokens])],
            "1 tokens, 2 values": [feature(0, activations=[{"tokens": ["a"], "values": [1, 2]}])],
            "an empty token": [feature(0, activations=[{"tokens": [""], "values": [1]}])],
            "U+0000": [feature(0, activations=[{"tokens": ["\0"], "values": [1]}])],
            "no number": [feature(0, activations=[{"tokens": ["a"], "values": [float("nan")]}])],
            "density 2": [feature(0, density=2)],
            "comes twice": [feature(0), feature(0)],
            "no index": [feature(-1)],
            "not 1 to 128 features": [feature(i) for i in range(129)],
        }
        for words, features in wrong.items():
            with self.subTest(words), serving() as server:
                self.write([features])
                result = self.send(server)
                self.assertEqual((result.returncode, server.requests), (1, []))
                self.assertIn(words, result.stderr)

    def test_a_directory_that_is_not_whole_is_not_sent(self):
        with serving() as server:
            (self.directory / "features-00001.json").write_text("{}")
            self.assertIn("it has changed", self.send(server).stderr)
            (self.directory / "index.json").unlink()
            self.assertIn("not complete", self.send(server).stderr)
            (self.directory / "index.json").write_text('{"format": "x"}')
            self.assertIn("not written by sae-eval", self.send(server).stderr)
            self.assertEqual(server.requests, [])


if __name__ == "__main__":
    unittest.main()
