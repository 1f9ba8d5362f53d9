"""Runs in the guest's own Python while an image is built, never in hako's: only that one knows its modules
and compiles bytecode for them. It stands alone; see interpreter.py for the other side.

    inside.py discover NAME...   import the modules; print as JSON which files that took
    inside.py compile            compile the files listed in the JSON on standard input
    inside.py check NAME...      import the modules and say nothing
    inside.py zstd LIBRARY       compress standard input with the given libzstd
"""

import sys

# The highest levels take ten times as long to gain a tenth of the size, and boot no faster.
ZSTD_LEVEL = 9


def import_all(names):  # type: ignore[no-untyped-def]
    """Import ``names``; return the file name of a shared library that was missing, and the failures."""
    missing, failed = None, {}
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


def discover(names):  # type: ignore[no-untyped-def]
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


def compile_files():  # type: ignore[no-untyped-def]
    """Compile each (source, output, path in the guest, level of optimisation)."""
    import json
    import py_compile

    for source, output, shown, level in json.load(sys.stdin):
        # Unchecked: the guest has no sources, and nothing that depends on times goes into the file.
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(source, output, shown, doraise=True, optimize=level, invalidation_mode=mode)


def zstd(library):  # type: ignore[no-untyped-def]
    """Compress standard input to standard output."""
    import ctypes

    lib = ctypes.CDLL(library)
    lib.ZSTD_compressBound.restype = lib.ZSTD_compress.restype = ctypes.c_size_t
    lib.ZSTD_compressBound.argtypes = [ctypes.c_size_t]
    lib.ZSTD_compress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
    lib.ZSTD_isError.argtypes = [ctypes.c_size_t]
    data = sys.stdin.buffer.read()
    room = ctypes.create_string_buffer(lib.ZSTD_compressBound(len(data)))
    size = lib.ZSTD_compress(room, len(room), data, len(data), ZSTD_LEVEL)
    if lib.ZSTD_isError(size):
        sys.exit("zstd failed")
    sys.stdout.buffer.write(memoryview(room)[:size])


def main():  # type: ignore[no-untyped-def]
    """Do what the first argument says."""
    verb, names = sys.argv[1], sys.argv[2:]
    if verb == "discover":
        discover(names)
    elif verb == "compile":
        compile_files()
    elif verb == "zstd":
        zstd(names[0])
    else:
        missing, failed = import_all(names)
        if missing or failed:
            sys.exit("; ".join([*([f"{missing} is missing"] if missing else []), *failed.values()]))


main()
