#!/usr/bin/env python3
"""Send the files of `sae-eval neuronpedia` to Neuronpedia, one request per file.

    export NEURONPEDIA_API_KEY=...
    python3 tools/send_neuronpedia.py DIR              (--dry-run checks the files and sends nothing)

Needs Python 3.9 and nothing else. DIR/sent.json lists what has been sent, so that the same command continues after the last
file. Neuronpedia stores the activations of a file twice if it is sent twice. So the script sends a file again only if it is
certain that the file was not stored: if the server is busy, cannot be reached, or says that it stored nothing. If an answer
is lost, it stops, and --interrupted says how to go on.
"""

import argparse
import hashlib
import http.client
import json
import math
import os
import pathlib
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

URL = "https://www.neuronpedia.org/api/feature/upload-batch"
KEY = "NEURONPEDIA_API_KEY"
FEATURES, TOKENS, INDEX = 128, 1024, 10_000_000  # limits of a request
BUSY = (429, 503)
STORED_NOTHING = "try again"  # the server's words after a transaction that failed
UNKNOWN = (408, 502, 504)  # the answer of something between here and the server
HINTS = {
    401: f"is {KEY} the key of your account?",
    403: f"is {KEY} the key of your account?",
    413: "the file is too large for this server",
    500: "the usual reasons: the source set does not exist, or is not of this account (docs/NEURONPEDIA.md)",
}


class Fault(Exception):
    """Something to tell the user."""


class Lost(Fault):
    """It is not known whether the server has stored a file."""


def expect(holds, path, what):
    if not holds:
        raise Fault(f"{path.name}: {what}")


def check(path, text):
    """Fails if Neuronpedia would refuse the file."""
    try:
        body = json.loads(text)
    except ValueError as error:
        raise Fault(f"{path.name}: no JSON: {error}") from error
    for key in ("modelId", "source"):
        name = body.get(key)
        expect(isinstance(name, str) and name and name == name.lower(), path, f"{key} is {name!r}")
    features = body.get("features")
    expect(isinstance(features, list) and 1 <= len(features) <= FEATURES, path, f"not 1 to {FEATURES} features")
    indices = [feature.get("index") for feature in features]
    expect(all(type(index) is int and 0 <= index <= INDEX for index in indices), path, "an index is no index")
    expect(len(set(indices)) == len(indices), path, "an index comes twice")
    for feature in features:
        where = f"feature {feature['index']}"
        expect(0 <= feature.get("density", 0) <= 1, path, f"{where}: density {feature.get('density')}")
        expect(feature.get("activations"), path, f"{where} has no activations")
        for activation in feature["activations"]:
            tokens, values = activation["tokens"], activation["values"]
            expect(1 <= len(tokens) <= TOKENS, path, f"{where}: {len(tokens)} tokens")
            expect(len(tokens) == len(values), path, f"{where}: {len(tokens)} tokens, {len(values)} values")
            expect(all(isinstance(token, str) and token for token in tokens), path, f"{where}: an empty token")
            expect("\0" not in "".join(tokens), path, f"{where}: a token with U+0000")
            finite = (type(value) in (int, float) and math.isfinite(value) for value in values)
            expect(all(finite), path, f"{where}: a value is no number")


def files_of(directory):
    """The files of a complete directory with their contents' checksums, in order."""
    index = directory / "index.json"
    if not index.is_file():
        raise Fault(f"{index}: no such file; sae-eval neuronpedia writes it at the end, so these files are not complete")
    listed = json.loads(index.read_text(encoding="utf-8"))
    if listed.get("format") != "dynamic-sae.neuronpedia" or listed.get("version") != 1:
        raise Fault(f"{index}: not written by sae-eval neuronpedia")
    found = []
    for entry in listed["files"]:
        path = directory / pathlib.PurePath(entry["file"]).name
        text = path.read_bytes()
        if hashlib.sha256(text).hexdigest() != entry["sha256"]:
            raise Fault(f"{path}: it has changed since it was written")
        check(path, text)
        found.append((path, entry["sha256"], entry["features"]))
    return found


class Journal:
    """Remembers the files that have been sent, and the one that was being sent."""

    def __init__(self, path, url):
        self.path, self.url = path, url
        self.sent, self.sending = {}, None
        if path.exists():
            state = json.loads(path.read_text(encoding="utf-8"))
            if state["url"] != url:
                raise Fault(f"{path}: these files were sent to {state['url']}; remove it to send them to {url} as well")
            self.sent, self.sending = state["sent"], state["sending"]

    def write(self):
        state = {"url": self.url, "sent": self.sent, "sending": self.sending}
        temporary = self.path.with_name(self.path.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(state, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)

    def begin(self, name):
        self.sending = name
        self.write()

    def end(self, name, checksum):
        """Notes that a file was stored, or with no checksum that it was not."""
        self.sending = None
        if checksum:
            self.sent[name] = checksum
        self.write()


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A request that is led elsewhere would arrive without its body, and the key with it."""

    def redirect_request(self, request, file, code, message, headers, to):
        raise Fault(f"{request.full_url} has moved to {to}; name that with --url if you trust it")


def error_of(error):
    """The server's words about its refusal, in one line."""
    text = error.read(2000).decode("utf-8", "replace")
    try:
        found = json.loads(text)
        text = " ".join(str(found[key]) for key in ("error", "message", "path") if found.get(key)) or text
    except (ValueError, AttributeError, TypeError):
        pass
    return "".join(c if c.isprintable() else " " for c in text)[:500].strip()


def wait_for(error, attempt):
    """Seconds that the server asks for, at most ten minutes; otherwise twice as long each time."""
    asked = error.headers.get("Retry-After", "") if isinstance(error, urllib.error.HTTPError) else ""
    return min(600, int(asked)) if asked.isdigit() else 2**attempt


def never_arrived(reason):
    return isinstance(reason, ConnectionRefusedError) or type(reason).__name__ == "gaierror"


def post(url, key, text, timeout):
    """Sends one request; returns the server's message."""
    headers = {"Content-Type": "application/json", "X-Api-Key": key, "User-Agent": "dynamic-sae"}
    request = urllib.request.Request(url, data=text, headers=headers, method="POST")
    opener = urllib.request.build_opener(NoRedirect)
    with opener.open(request, timeout=timeout) as answer:
        text = answer.read(2000).decode("utf-8", "replace")
    try:
        return str(json.loads(text).get("message", "stored"))
    except (ValueError, AttributeError):
        return "stored"


def send(path, args, key):
    """Sends a file until the server has stored or refused it; returns the server's message."""
    for attempt in range(args.tries):
        last = attempt + 1 == args.tries
        try:
            return post(args.url, key, path.read_bytes(), args.timeout)
        except urllib.error.HTTPError as error:
            said, code = error_of(error), error.code
            if code in UNKNOWN:
                raise Lost(f"{path.name}: the server's answer is lost ({code} {said})") from error
            again = code in BUSY or (code == 500 and STORED_NOTHING in said.lower())
            reason = f"{code} {said}"
            if last or not again:
                hint = f"; {HINTS[code]}" if code in HINTS else ""
                raise Fault(f"{path.name}: the server refuses it: {reason}{hint}") from error
            seconds = wait_for(error, attempt)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if not never_arrived(reason):
                raise Lost(f"{path.name}: the connection broke ({reason})") from error
            if last:
                raise Fault(f"{args.url}: cannot be reached: {reason}") from error
            seconds = wait_for(error, attempt)
        print(f"{path.name}: {reason}; trying again in {seconds} s", file=sys.stderr, flush=True)
        time.sleep(seconds)
    raise AssertionError("the last attempt returns or fails")


def settle(journal, files, how):
    """Decides about a file that was being sent when the script ended."""
    name = journal.sending
    if name is None:
        return
    if how is None:
        raise Fault(
            f"{name}: it is not known whether Neuronpedia has stored this file. Look at the page of its first feature, then add "
            "--interrupted again if there is none, or --interrupted skip if there is one"
        )
    checksum = next((checksum for path, checksum, _ in files if path.name == name), None)
    journal.end(name, checksum if how == "skip" else None)


def run(args):
    url = urllib.parse.urlsplit(args.url)
    if url.scheme != "https" and url.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise Fault(f"--url {args.url}: the API key would be readable on its way; use https")
    files = files_of(args.directory)
    if args.dry_run:
        features = sum(count for _, _, count in files)
        print(f"{args.directory}: {len(files)} files with {features} features are as Neuronpedia wants them; nothing was sent")
        return
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise Fault(f"{KEY} is not set; it is the API key of your Neuronpedia account")
    journal = Journal(args.directory / "sent.json", args.url)
    settle(journal, files, args.interrupted)
    waiting = [(path, checksum) for path, checksum, _ in files if journal.sent.get(path.name) != checksum]
    if len(waiting) < len(files):
        print(f"{len(files) - len(waiting)} files were sent before")
    for i, (path, checksum) in enumerate(waiting):
        if i:
            time.sleep(args.pause)
        journal.begin(path.name)
        try:
            message = send(path, args, key)
        except Lost as lost:
            raise Fault(f"{lost}; it is not known whether the file was stored. See --interrupted in --help") from lost
        except Fault:
            journal.end(path.name, None)
            raise
        journal.end(path.name, checksum)
        print(f"{path.name}: {message}", flush=True)
    print(f"all {len(files)} files are sent")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="More: docs/NEURONPEDIA.md.")
    option = parser.add_argument
    option("directory", type=pathlib.Path, metavar="DIR", help="the directory that sae-eval neuronpedia wrote")
    option("--dry-run", action="store_true", help="check the files and send nothing; needs no key")
    option("--url", default=URL, help=f"where to send to (default {URL})")
    option("--pause", type=float, default=1.0, metavar="S", help="seconds between two requests (default 1)")
    option("--timeout", type=float, default=300.0, metavar="S", help="longest wait for an answer (default 300)")
    option("--tries", type=int, default=6, metavar="N", help="attempts per file while the server is busy (default 6)")
    option("--interrupted", choices=("again", "skip"), help="what to do with a file whose answer was lost")
    args = parser.parse_args()
    if args.tries < 1 or args.pause < 0 or args.timeout <= 0:
        parser.error("--tries is at least 1, --pause at least 0, --timeout more than 0")
    try:
        run(args)
    except (Fault, OSError, KeyError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; a file that was being sent may have been stored")


if __name__ == "__main__":
    main()
