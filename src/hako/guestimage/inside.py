"""Runs in the guest's own Python while an image is built, never in hako's: only that one knows its modules
and compiles bytecode for them. It stands alone; see interpreter.py for the other side.

    inside.py discover NAME...   import the modules; print as JSON which files that took
    inside.py compile            compile the files listed in the JSON on standard input
    inside.py check NAME...      import the modules and say nothing
    inside.py gzip               compress standard input
"""

from __future__ import annotations

import sys


def import_all(names: list[str]) -> tuple[str | None, dict[str, str]]:
    """Import ``names``; return the file name of a shared library that was missing, and the failures."""
    missing = None
    failed: dict[str, str] = {}
    for name in names:
        # "package?name" is what `from package import name` leaves open: a module, or something in one.
        module, optional, child = name.partition("?")
        try:
            __import__(module)
            if optional and hasattr(sys.modules[module], "__path__") and not hasattr(sys.modules[module], child):
                __import__(f"{module}.{child}")
        except ImportError as error:
            library, marker, _ = str(error).partition(": cannot open shared object file")
            if marker:
                missing = missing or library
            elif not optional or not isinstance(error, ModuleNotFoundError):
                failed[name] = str(error)
    return missing, failed


def discover(names: list[str]) -> None:
    """Print the modules that importing ``names`` brings in, each with its file (null for built-in ones)."""
    missing, failed = import_all(names)
    # Taken before anything is imported for the answer itself.
    modules = {}
    for name, module in list(sys.modules.items()):
        origin = getattr(getattr(module, "__spec__", None), "origin", None)
        if name != "__main__":
            modules[name] = None if origin in ("built-in", "frozen") else origin
    import json

    version = ".".join(str(part) for part in sys.version_info[:3])
    json.dump({"modules": modules, "missing": missing, "failed": failed, "version": version}, sys.stdout)


def compile_files() -> None:
    """Compile each (source, output, path in the guest, level of optimisation)."""
    import json
    import py_compile

    for source, output, shown, level in json.load(sys.stdin):
        # Unchecked: the guest has no sources, and nothing that depends on times goes into the file.
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(source, output, shown, doraise=True, optimize=level, invalidation_mode=mode)


def gzip() -> None:
    """Compress standard input to standard output; no time goes into the result."""
    import zlib

    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    sys.stdout.buffer.write(packer.compress(sys.stdin.buffer.read()) + packer.flush())


def main() -> None:
    """Do what the first argument says."""
    verb, names = sys.argv[1], sys.argv[2:]
    if verb == "discover":
        discover(names)
    elif verb == "compile":
        compile_files()
    elif verb == "gzip":
        gzip()
    else:
        missing, failed = import_all(names)
        if missing or failed:
            sys.exit("; ".join([*([f"{missing} is missing"] if missing else []), *failed.values()]))


if __name__ == "__main__":
    main()
