"""The few calls of the Kubernetes API that the installer needs, with nothing but Python.

    kube.py label VALUE         mark this node: dev.hako/runtime=VALUE
    kube.py unlabel             take the mark away
    kube.py wanted              exit code 0 when this node is to have hako, 3 when not, 1 when that cannot be learnt
    kube.py remove-daemonset    delete the DaemonSet and wait until all its pods have cleaned up

NODE_NAME, POD_NAMESPACE and DAEMONSET say which ones are meant. Server and credentials are those that a pod has.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

LABEL = "dev.hako/runtime"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
TIMEOUT = 30.0  # seconds for one call
NOT_WANTED = 3


class ApiError(Exception):
    """A call that failed; the text says which and why."""


class Api:
    """The API server, as this pod's service account."""

    def __init__(self) -> None:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        self._server = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        self._account = os.environ.get("HAKO_KUBE_ACCOUNT", ACCOUNT)

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any] | None:
        """The server's answer, None when there is no such object. Raises ApiError."""
        headers = {"Authorization": f"Bearer {self._token()}", "Accept": "application/json"}
        if body is not None:
            merging = method == "PATCH"
            headers["Content-Type"] = "application/merge-patch+json" if merging else "application/json"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._server + path, data, headers, method=method)  # noqa: S310 # our server
        try:
            secure = ssl.create_default_context(cafile=os.path.join(self._account, "ca.crt"))
            straight = urllib.request.ProxyHandler({})  # the node's proxy does not lead to the API server
            opener = urllib.request.build_opener(straight, urllib.request.HTTPSHandler(context=secure))
            with opener.open(request, timeout=TIMEOUT) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    return None
                said = error.read(500).decode(errors="replace")
            raise ApiError(f"{method} {path} was answered with {error.code}: {said}") from error
        except (OSError, ValueError) as error:
            raise ApiError(f"{method} {path} failed: {error}") from error

    def _token(self) -> str:
        """The token of now: it is renewed while we run."""
        try:
            with open(os.path.join(self._account, "token"), encoding="ascii") as file:
                return file.read().strip()
        except OSError as error:
            raise ApiError(f"The pod has no service account: {error}") from error


def node_path() -> str:
    """The path of this node."""
    return f"/api/v1/nodes/{urllib.parse.quote(os.environ['NODE_NAME'], safe='')}"


def daemonset_path() -> str:
    """The path of the DaemonSet that this pod belongs to."""
    namespace, name = (urllib.parse.quote(os.environ[key], safe="") for key in ("POD_NAMESPACE", "DAEMONSET"))
    return f"/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}"


def label(api: Api, value: str | None) -> None:
    """Give this node the label with ``value``, or none. Raises ApiError."""
    if api.call("PATCH", node_path(), {"metadata": {"labels": {LABEL: value}}}) is None and value is not None:
        raise ApiError(f"There is no node {os.environ['NODE_NAME']}.")


def wanted(api: Api) -> bool:
    """Whether the DaemonSet is there to stay and chooses this node. Raises ApiError when that cannot be learnt."""
    daemonset = api.call("GET", daemonset_path())
    if daemonset is None or daemonset["metadata"].get("deletionTimestamp"):
        return False
    node = api.call("GET", node_path())
    if node is None:
        return True  # the machine is going: nothing on it matters
    labels = node["metadata"].get("labels") or {}
    selector = daemonset["spec"]["template"]["spec"].get("nodeSelector") or {}
    return all(labels.get(key) == value for key, value in selector.items())


def remove_daemonset(api: Api, pause: float = 2.0) -> None:
    """Delete the DaemonSet, and wait for its pods: the server keeps it until they are gone. Raises ApiError."""
    options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
    if api.call("DELETE", daemonset_path(), options) is None:
        return
    while api.call("GET", daemonset_path()) is not None:
        time.sleep(pause)


def main(argv: list[str]) -> int:
    """The command line."""
    api = Api()
    try:
        match argv:
            case ["label", value]:
                label(api, value)
            case ["unlabel"]:
                label(api, None)
            case ["wanted"]:
                return 0 if wanted(api) else NOT_WANTED
            case ["remove-daemonset"]:
                remove_daemonset(api)
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except ApiError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
