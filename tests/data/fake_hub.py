"""A Hub on this machine: the few answers that `datasets` and `huggingface_hub` ask of one, over a folder.

`FOLDER/owner/name/…` is the data set `owner/name` at a single commit.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"


@contextmanager
def fake_hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the paths that were asked for so far."""
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer(body)

        def answer(self, body: bytes = b"", with_body: bool = True) -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append(f"{self.command} {path}")
            words = path.strip("/").split("/")
            if words[:2] == ["api", "datasets"] and (folder / words[2] / words[3]).is_dir():
                deep = "recursive=true" in urlsplit(self.path).query.lower()
                self.say(200, json.dumps(self.about(words[2:], body, deep)).encode(), "application/json")
            elif words[0] == "datasets" and (folder / words[1] / words[2]).is_dir() and words[3] == "resolve":
                file = folder.joinpath(words[1], words[2], *words[5:])
                if file.is_file():
                    self.say(200, file.read_bytes(), "application/octet-stream", with_body)
                else:
                    self.say(404, b"", "text/plain", error="EntryNotFound")
            else:
                self.say(404, b"", "text/plain", error="RepoNotFound")

        def about(self, words: list[str], body: bytes, deep: bool) -> Any:
            root = folder / words[0] / words[1]
            files = sorted(path for path in root.rglob("*") if path.is_file())
            if words[2:3] == ["tree"]:
                place = root.joinpath(*words[4:])
                return [entry(path, root) for path in sorted(place.rglob("*") if deep else place.glob("*"))]
            if words[2:3] == ["paths-info"]:
                text = body.decode()
                wanted = json.loads(text) if text.startswith("{") else parse_qs(text)
                there = [root / path for path in wanted["paths"]]
                return [entry(path, root) for path in there if path.exists()]
            siblings = [{"rfilename": path.relative_to(root).as_posix()} for path in files]
            return {"_id": "0", "id": "/".join(words[:2]), "sha": COMMIT, "siblings": siblings, "tags": []}

        def say(
            self, status: int, content: bytes, kind: str, with_body: bool = True, error: str = ""
        ) -> None:
            span = self.headers.get("Range")
            self_size = len(content)
            if span and status == 200:
                first, last = (span.removeprefix("bytes=").split("-") + [""])[:2]
                end = min(int(last) + 1 if last else self_size, self_size)
                headers = {"Content-Range": f"bytes {first}-{end - 1}/{self_size}"}
                content, status = content[int(first) : end], 206
            else:
                headers = {}
            self.send_response(status)
            headers |= {
                "Content-Type": kind, "Content-Length": str(len(content)), "X-Repo-Commit": COMMIT,
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes",
            }  # fmt: skip
            if error:
                headers["X-Error-Code"] = error
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body and self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def entry(path: Path, root: Path) -> dict[str, Any]:
    name = path.relative_to(root).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40}
    return {
        "type": "file",
        "path": name,
        "size": path.stat().st_size,
        "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
    }
