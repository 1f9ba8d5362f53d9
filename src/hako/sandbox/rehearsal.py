"""Making a container and taking it away again, in a VM that has time, so that the first real one is made quicker.

Under software emulation the first container takes more than twice as long as the next: most of its time goes into
translating code of crun and of the guest's kernel that runs for the first time. Nothing of anybody's is run.
"""

from __future__ import annotations

import os

from hako import store
from hako.agent_client import AgentClient
from hako.oci import spec as oci_spec
from hako.sandbox import translate
from hako.sandbox.container import Container
from hako.sandbox.process_io import ProcessIO
from hako.sandbox.trace import Trace
from hako.storage.tree import SharedTree

_NAME = "rehearsal"
_PROGRAM = "init"


async def rehearse(agent: AgentClient, tree: SharedTree, directory: str) -> None:
    """Have the guest make a container that never starts, and delete it. Raises HakoError.

    ``directory`` is where the container's root is made for that time.
    """
    root = store.ensure_dir(os.path.join(directory, _NAME), 0o755)
    try:
        # crun wants to see the program; it is not run.
        os.close(os.open(os.path.join(root, _PROGRAM), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o755))
        spec = oci_spec.build(
            {}, oci_spec.RunOptions(args=[f"/{_PROGRAM}"]), rootfs=root, container_id=_NAME, root_path=root
        )
        container = Container(agent, _NAME, Trace())
        container.held.callback(tree.remove, _NAME)
        tree.add_rootfs(_NAME, root)
        try:
            call = {"container": _NAME, "spec": translate.to_guest(spec, _NAME, tree), "start": False}
            await container.run("Create", call, "", ProcessIO(agent, terminal=False, log=None, keep_stdin=False), {})
            await container.call("Delete", {"force": True})
        finally:
            await container.close()
    finally:
        store.remove_tree(root)
