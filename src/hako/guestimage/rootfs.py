"""The guest's root file system: Python with the modules that the agent imports, crun, libraries, the agent."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence

from hako.arch import current
from hako.errors import ImageError
from hako.guestimage import requested
from hako.guestimage.agentcode import ENTRY, AgentCode
from hako.guestimage.cpio import Tree
from hako.guestimage.elfedit import without_library
from hako.guestimage.interpreter import Discovery, GuestPython, Source, guest_command
from hako.guestimage.kerneltree import KernelTree
from hako.guestimage.packages import Apt, Package
from hako.guestimage.userland import Userland
from hako.named import NamedTuple
from hako.proc import BASE_ENV, run

CRUN = "usr/bin/crun"
AGENT_DIR = "usr/lib/hako/python"
MODULES_DIR = "usr/lib/modules/hako"
MODULES_LIST = "usr/lib/hako/modules.json"
#: Whatever it is called by in its package: modprobe is one of its names.
_MODPROBE_PACKAGE = "busybox-static"
_MODPROBE = "usr/bin/busybox"
#: An initrd is compressed only when it is larger than this, and may not be larger then: unpacking costs a guest
#: under software emulation 0.3 s with zstd or gzip and 0.1 s with lz4; copying 20 MB costs next to nothing.
MAX_INITRD = 25_000_000

#: Needed to start the interpreter itself, whether or not the agent imports them. os is how it finds its library.
_BASE_MODULES = ("os", "encodings.aliases", "encodings.ascii", "encodings.latin_1", "encodings.utf_8")
#: crun calls it when systemd manages cgroups, never in a guest. With the five libraries that only it needs it takes
#: 3.4 MB, and under software emulation 35 ms of each command of crun's.
_UNUSED_BY_CRUN = "libsystemd.so.0"
_PYTHON_PACKAGE = re.compile(r"(python3\.[0-9]+)-minimal")
_DIRECTORIES = {
    "dev": 0o755,
    "etc": 0o755,
    "mnt": 0o755,
    "newroot": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "usr/sbin": 0o755,
    "var": 0o755,
}
_LINKS = {name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64")} | {"var/run": "/run"}
_ETC = {
    "etc/passwd": "root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


class Rootfs(NamedTuple):
    """A finished root file system."""

    initrd: bytes
    modprobe: bytes  #: a program that needs no library
    compression: str  #: "none" or "gzip"
    unpacked_size: int
    root: str  #: the unpacked packages it is from
    packages: list[Package]
    asked: list[Package]  #: packages that only named others
    python_version: str
    python_modules: list[str]


def build_rootfs(
    scratch: str, apt: Apt, code: AgentCode, kernel: KernelTree, progress: Callable[[str], None]
) -> Rootfs:
    """Build the initrd in the empty directory ``scratch``. Raises ImageError when a part is missing."""
    userland = Userland(os.path.join(scratch, "root"), apt)
    meta = apt.get("python3-minimal")
    python = _python_name(meta)
    names = [f"{python}-minimal", f"lib{python}-minimal", f"lib{python}-stdlib", "crun", _MODPROBE_PACKAGE]
    userland.add([apt.get(name) for name in names])
    program = f"usr/bin/{python}"
    _slim_crun(userland, progress)
    libraries = userland.libraries([program, CRUN])
    interpreter = GuestPython(userland.root, program)
    progress("finding the Python modules that the agent needs")
    found = _discover(userland, interpreter, code, f"usr/lib/{python}")
    extensions = [path for path in _relative(found, userland.root).values() if path.endswith(".so")]
    libraries |= userland.libraries(extensions)
    progress("compiling the agent")
    out = os.path.join(scratch, "python")
    bytecode = _compile(userland, interpreter, found, code, out)
    _add_extensions_for_check(userland, extensions, out)
    interpreter.check(out, AGENT_DIR, sorted(code.modules))

    tree = _skeleton(program)
    loader = os.path.basename(current().loader)
    loader_path = libraries.pop(loader, None) or userland.find_library(loader, program)
    tree.add_file(f"usr{current().loader}", userland.read(loader_path), executable=True)
    for path in sorted({program, CRUN, *extensions, *libraries.values()}):
        tree.add_file(path, userland.read(path), executable=True)
    for path in bytecode:
        with open(os.path.join(out, path), "rb") as file:
            tree.add_file(path, file.read())
    _add_modules(tree, kernel)
    _add_modprobe(tree, kernel)
    initrd, compression = tree.to_cpio(), "none"
    if len(initrd) > MAX_INITRD:
        progress("compressing the initrd")
        initrd, compression = interpreter.gzip(initrd), "gzip"
    if len(initrd) > MAX_INITRD:
        raise ImageError(f"The initrd has {len(initrd)} bytes, more than the {MAX_INITRD} allowed; name fewer modules.")
    return Rootfs(
        initrd=initrd,
        modprobe=userland.read(_MODPROBE),
        compression=compression,
        unpacked_size=tree.size(),
        root=userland.root,
        packages=list(userland.packages.values()),
        asked=[meta],
        python_version=found.version,
        python_modules=sorted(found.modules),
    )


def modules_list(kernel: KernelTree) -> dict[str, object]:
    """What the agent reads: paths of the modules to load at boot in order, and the chain of each other one.

    Those are not in the initrd, which stays in memory, but among what the guest reads from the host.
    """
    plan = kernel.plan
    loaded = dict.fromkeys([*plan.builtin, *plan.boot], ())
    chains: Mapping[str, Sequence[str]] = {**loaded, **plan.demand}
    demand = {name: [f"{requested.GUEST_DIRECTORY}/{step}.ko" for step in chain] for name, chain in chains.items()}
    return {"boot": [f"/{MODULES_DIR}/{name}.ko" for name in plan.boot], "demand": demand}


def _slim_crun(userland: Userland, progress: Callable[[str], None]) -> None:
    """Take from crun the library that it does not use, where that works; else it stays as it is."""
    whole = userland.read(CRUN)
    slim = without_library(whole, f"/{CRUN}", _UNUSED_BY_CRUN)
    if slim == whole:
        return
    if slim is not None:
        userland.replace(CRUN, slim)
        userland.libraries([CRUN])
        # Every symbol is looked up, so that none of the library's can be left over.
        argv = [*guest_command(userland.root, CRUN), "--version"]
        if run(argv, env={**BASE_ENV, "LD_BIND_NOW": "1"}, timeout=60, check=False).returncode == 0:
            return
        userland.replace(CRUN, whole)
    progress(f"crun keeps {_UNUSED_BY_CRUN}, which cannot be taken from this version of it")


def _python_name(meta: Package) -> str:
    """The current interpreter's name, such as python3.11, out of the package python3-minimal."""
    for name in meta.depends:
        match = _PYTHON_PACKAGE.fullmatch(name)
        if match:
            return match[1]
    raise ImageError(f"The package {meta.name} {meta.version} does not name a version of Python.")


def _discover(userland: Userland, interpreter: GuestPython, code: AgentCode, library: str) -> Discovery:
    """Import what the agent imports, bringing in the libraries of extension modules as they are missed."""
    asking = next((p for p in _paths_below(userland, f"{library}/lib-dynload")), None)
    wanted = [*_BASE_MODULES, *code.imports]
    missed: set[str] = set()
    while True:
        found = interpreter.discover(wanted)
        if found.missing is None:
            return found
        if asking is None or found.missing in missed:
            raise ImageError(f"The guest's Python does not find the library {found.missing}.")
        missed.add(found.missing)
        userland.find_library(found.missing, asking)


def _paths_below(userland: Userland, directory: str) -> list[str]:
    names = os.listdir(os.path.join(userland.root, directory))
    paths = sorted(f"{directory}/{name}" for name in names)
    # Those of the larger library package, whose dependencies name all the libraries that extensions use.
    return [path for path in paths if userland.owner(path).endswith("-stdlib")]


def _relative(found: Discovery, root: str) -> dict[str, str]:
    """The files of the discovered modules, relative to ``root``."""
    paths = {}
    for name, path in found.modules.items():
        if path is not None:
            if not path.startswith(f"{root}/"):
                raise ImageError(f"The guest's Python took its module {name} from {path} on the host.")
            paths[name] = os.path.relpath(path, root)
    return paths


def _compile(userland: Userland, interpreter: GuestPython, found: Discovery, code: AgentCode, out: str) -> list[str]:
    """Compile Python's modules and the agent's to ``out``; return the paths of the bytecode."""
    sources: list[Source] = []
    library = _relative(found, userland.root)
    os_path = next(path for name, path in library.items() if name == "encodings").replace("encodings/__init__", "os")
    paths = sorted({os_path, *(path for path in library.values() if path.endswith(".py"))})
    sources += [Source(f"{userland.root}/{path}", f"{out}/{path}c", f"/{path}", 2) for path in paths]
    for name, file in sorted(code.modules.items()):
        path = f"{AGENT_DIR}/{name.replace('.', '/')}"
        path += "/__init__.py" if os.path.basename(file) == "__init__.py" else ".py"
        sources.append(Source(file, f"{out}/{path}c", f"/{path}", 0))
    interpreter.compile(sources)
    return [os.path.relpath(source.output, out) for source in sources]


def _add_extensions_for_check(userland: Userland, extensions: Sequence[str], out: str) -> None:
    for path in extensions:
        target = os.path.join(out, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(os.path.join(userland.root, path), target)


def _skeleton(program: str) -> Tree:
    """Directories, links, the first device nodes, /etc, and /init."""
    tree = Tree()
    for path, mode in _DIRECTORIES.items():
        tree.add_directory(path, mode)
    for path, target in _LINKS.items():
        tree.add_link(path, target)
    for path, text in _ETC.items():
        tree.add_file(path, text.encode())
    # The kernel opens the console before anything is mounted, and the agent starts with it as its stderr.
    tree.add_character_device("dev/console", 5, 1, 0o600)
    tree.add_character_device("dev/null", 1, 3, 0o666)
    # Appended: Python's own modules are found first, without a look into the agent's directory for each.
    start = f"#!/{program} -IS\nimport sys\nsys.path.append('/{AGENT_DIR}')\nfrom {ENTRY} import main\nmain()\n"
    tree.add_file("init", start.encode(), executable=True)
    return tree


def _add_modules(tree: Tree, kernel: KernelTree) -> None:
    """The kernel modules that are loaded at boot, and the list of all."""
    for name in kernel.plan.boot:
        tree.add_file(f"{MODULES_DIR}/{name}.ko", kernel.modules[name])
    text = json.dumps(modules_list(kernel), separators=(",", ":"))
    tree.add_file(MODULES_LIST, text.encode())


def _add_modprobe(tree: Tree, kernel: KernelTree) -> None:
    """Links to what the kernel calls when it wants a module, and to the modules, both of which are on the host."""
    if kernel.requested.needs:
        tree.add_link("usr/sbin/modprobe", f"{requested.GUEST_DIRECTORY}/{requested.MODPROBE}")
        tree.add_link(f"usr/lib/modules/{kernel.version}", requested.GUEST_DIRECTORY)
