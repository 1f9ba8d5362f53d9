"""The 9p driver: the device of the VM and the mount in the guest belong together."""

from __future__ import annotations

from hako.hypervisor.base import MAX_TAG, Share9p
from hako.storage.base import NAME, TAG
from hako.storage.ninep import NinePShare


def test_device_and_mount_agree() -> None:
    share = NinePShare(512_000)
    device, mount = share.device("/run/shared"), share.mount_request()
    assert device == Share9p(TAG, "/run/shared")
    assert (mount.driver, mount.tag, mount.name) == ("9p", TAG, NAME)
    assert "msize=512000" in mount.options.split(",")
    assert "trans=virtio" in mount.options.split(",")
    assert mount.params() == {"driver": "9p", "tag": TAG, "name": NAME, "options": mount.options}
    assert len(TAG) <= MAX_TAG
