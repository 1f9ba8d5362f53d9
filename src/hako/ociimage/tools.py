"""Runs the programs that fetch and unpack: skopeo, umoci and what they need; turns their complaints into sentences."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

from hako import paths, proc
from hako.errors import HakoError, HostError, ImageError, NotFoundError

#: What skopeo needs of the caller's environment: credentials, proxies, certificates.
_PASSED_ON = (
    "HOME",
    "XDG_RUNTIME_DIR",
    "REGISTRY_AUTH_FILE",
    "DOCKER_CONFIG",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)

_BULLETS = "\u2a2f\u2022 "  # with which umoci starts its lines
_FATAL = re.compile(r'level=fatal msg="((?:[^"\\]|\\.)*)"')


def run(
    program: str,
    args: Sequence[str],
    *,
    package: str,
    cwd: str | None = None,
    timeout: float | None = None,
    on_line: Callable[[str], None] | None = None,
) -> bytes:
    """Run ``program`` and return its standard output (nothing with ``on_line``, which gets both streams' lines).

    The program dies with this process: an orphan would go on writing into a directory that the next call
    removes. Raises proc.CommandFailedError, or HostError when the Debian ``package`` is not installed.
    """
    import shutil

    path = shutil.which(program, path=proc.BASE_ENV["PATH"])
    if path is None:
        raise HostError(f"{program} is not installed, and container images need it: apt-get install {package}")
    env = {**proc.BASE_ENV, **{key: os.environ[key] for key in _PASSED_ON if key in os.environ}}
    argv = ["setpriv", "--pdeathsig", "KILL", path, *args]
    done = proc.run(argv, cwd=cwd, env=env, timeout=timeout, on_line=on_line, merge=on_line is not None)
    return done.stdout


def message(output: str) -> str:
    """The last complaint in the output of skopeo or umoci, without its decoration."""
    found = _FATAL.findall(output)
    if found:
        return str(found[-1]).replace('\\"', '"').replace("\\\\", "\\")
    lines = [line.strip().lstrip(_BULLETS).strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


# What is looked for in the complaint, and the sentence: {image}, {where}, {said} and {root} are filled in.
_SENTENCES: tuple[tuple[str, type[HakoError], str], ...] = (
    (
        r"no space left on device",
        HostError,
        "No disk space left while fetching or unpacking {image}: free some under {root} and try again.",
    ),
    (
        r"manifest unknown|name unknown|name not known|no descriptor found|Tag .* not found|tag is not found",
        NotFoundError,
        "There is no image {image} in {where}.",
    ),
    (
        r"unauthorized|authentication required|denied|no basic auth|invalid username/password",
        ImageError,
        "{where} does not give out {image}: it does not exist there, or you must log in first (skopeo login {where}).",
    ),
    (
        r"server gave HTTP response to HTTPS client",
        ImageError,
        "{where} speaks plain HTTP, and {image} is fetched from HTTPS registries only: if you trust that network, "
        "add {where} to image.insecure_registries in the configuration.",
    ),
    (
        r"x509: ([^:]+)",
        ImageError,
        "The certificate of {where} cannot be trusted (needed to fetch {image}): {said}.",
    ),
    (
        r"(no such host|connection refused|i/o timeout|network is unreachable|no route to host|TLS handshake timeout"
        r"|connection reset by peer|deadline exceeded)",
        ImageError,
        "Cannot reach {where} to fetch {image}: {said}.",
    ),
    (
        r"toomanyrequests|429 Too Many",
        ImageError,
        "{where} refuses to give out {image} because of too many requests: wait, or log in (skopeo login {where}).",
    ),
    (
        r"more than one image|expected 1 item, got",
        ImageError,
        "{image} holds more than one image: name one of them by adding :TAG to the path.",
    ),
    (
        r"did not match|mismatch|unexpected EOF|invalid tar header|invalid header|invalid checksum|corrupt"
        r"|unexpected end of JSON|invalid character|flate:|verify|no such file or directory|Size mismatch",
        ImageError,
        "{image} is damaged: {said}.",
    ),
)


def explain(error: proc.CommandFailedError, image: str, where: str) -> HakoError:
    """The sentence for a failed fetch or unpack of ``image`` from ``where``."""
    said = message(error.stderr)
    for pattern, kind, sentence in _SENTENCES:
        match = re.search(pattern, said)
        if match:
            detail = match[1] if match.lastindex else _short(said)
            return kind(sentence.format(image=image, where=where, said=detail, root=paths.data_root()))
    return ImageError(f"Cannot use the image {image} from {where}: {_short(said)}.")


def _short(said: str) -> str:
    """The innermost two reasons of a chain ``outer: inner: innermost``; the outer ones are the tools' own steps."""
    return ": ".join(said.rstrip(".").split(": ")[-2:])
