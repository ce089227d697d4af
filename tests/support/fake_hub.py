"""The part of the Hugging Face hub that takes a push, on loopback: repositories, and commits of files as they were sent."""

import base64
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHub(ThreadingHTTPServer):
    """Answers at ``address``.

    Args:
        status: of every answer; 200 = what was asked for is done.
    """

    def __init__(self, status=200):
        super().__init__(("127.0.0.1", 0), Answer)
        self.status, self.made, self.files, self.tokens = status, {}, {}, set()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    """One request."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.status != 200:
            return self.told({"error": f"refused {self.headers['Authorization']}"}, self.server.status)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self.server.made[f"{asked['organization']}/{asked['name']}"] = asked
            return self.told({"url": f"{self.server.address}/{asked['organization']}/{asked['name']}"})
        if self.path.endswith("/preupload/main"):
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return self.told({"files": [{"path": file["path"], **modes} for file in json.loads(body)["files"]]})
        if self.path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.server.files |= {file["path"]: base64.b64decode(file["content"]) for file in files}
            return self.told({"commitUrl": f"{self.server.address}/someone/model/commit/abc", "commitOid": "abc"})
        return self.told({"errors": [], "warnings": []})  # of the card's head

    def do_GET(self):
        self.told({"id": "someone/model", "siblings": []})

    def told(self, answer, status=200):
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Say nothing."""
