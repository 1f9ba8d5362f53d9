"""A Kubernetes API server with one node and one DaemonSet, as far as the installer asks for them."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

TOKEN = "token-of-the-pod"
NODE, NAMESPACE, DAEMONSET = "worker-1", "hako-system", "hako-installer"
_NODE_PATH = f"/api/v1/nodes/{NODE}"
_DAEMONSET_PATH = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{DAEMONSET}"


class KubeApi:
    """The server, over TLS, and what it holds; a context manager. ``base`` is a directory for its certificate."""

    def __init__(self, base: Path) -> None:
        #: The node's labels.
        self.labels = {"dev.hako/install": "true"}
        #: Whether the DaemonSet is there, and whether it is being deleted.
        self.daemonset, self.deleting = True, False
        #: How often it can still be seen after that.
        self.pods = 2
        #: What every call is answered with instead.
        self.broken: int | None = None
        self.calls: list[str] = []
        self._account = base / "account"
        self._account.mkdir()
        (self._account / "token").write_text(f"{TOKEN}\n")
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", self._account / "key"]
        name = ["-subj", "/CN=kubernetes", "-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run(
            ["openssl", "req", "-x509", *key, *name, "-out", self._account / "ca.crt"], check=True, capture_output=True
        )
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._account / "ca.crt", self._account / "key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What the pod of the DaemonSet is given."""
        host, port = self._server.server_address[:2]
        return {
            **os.environ,
            "KUBERNETES_SERVICE_HOST": str(host),
            "KUBERNETES_SERVICE_PORT": str(port),
            "HAKO_KUBE_ACCOUNT": str(self._account),
            "NODE_NAME": NODE,
            "POD_NAMESPACE": NAMESPACE,
            "DAEMONSET": DAEMONSET,
        }

    def answer(self, method: str, path: str, kind: str, body: Any) -> tuple[int, Any]:
        """Status and body of the answer to one call."""
        self.calls.append(f"{method} {path}")
        if self.broken:
            return self.broken, {"message": "not today"}
        match method, path:
            case "GET", p if p == _NODE_PATH:
                return 200, {"metadata": {"labels": self.labels}}
            case "PATCH", p if p == _NODE_PATH and kind == "application/merge-patch+json":
                for key, value in body["metadata"]["labels"].items():
                    self.labels.pop(key, None)
                    self.labels |= {} if value is None else {key: value}
                return 200, {"metadata": {"labels": self.labels}}
            case "GET", p if p == _DAEMONSET_PATH and self.daemonset:
                self.pods -= self.deleting
                self.daemonset = self.pods > 0
                return 200, self._daemonset_object()
            case "DELETE", p if p == _DAEMONSET_PATH and self.daemonset:
                self.deleting = body["propagationPolicy"] == "Foreground"
                return 200, self._daemonset_object()
        return 404, {"message": "not found"}

    def _daemonset_object(self) -> dict[str, Any]:
        metadata = {"name": DAEMONSET} | ({"deletionTimestamp": "2030-01-01T00:00:00Z"} if self.deleting else {})
        pod = {"nodeSelector": {"dev.hako/install": "true"}}
        return {"metadata": metadata, "spec": {"template": {"spec": pod}}}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def _reply(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    status, found = 401, {"message": "who are you"}
                else:
                    status, found = api.answer(self.command, self.path, self.headers["Content-Type"] or "", body)
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PATCH = do_DELETE = _reply

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
