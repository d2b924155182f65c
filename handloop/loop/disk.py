"""Where a cache may lie: SQLite's write-ahead log needs memory shared by all who open a file, so a local disk."""

from __future__ import annotations

from pathlib import Path

NETWORK = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "fuse.ceph", "lustre", "gpfs", "beegfs"),
    *("glusterfs", "fuse.glusterfs", "fuse.sshfs", "pvfs2", "orangefs"),
}
"""File systems as Linux names them that are, or may be, mounted on several machines at once."""

_MOUNTS = Path("/proc/self/mountinfo")


def network_file_system(folder: Path, mounts: Path = _MOUNTS) -> str | None:
    """The name of the network file system `folder` lies on, None on a local disk or where the system does not say.

    Args:
        folder: need not exist.
        mounts: Linux's list of what is mounted where (proc(5), mountinfo).
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None  # Not Linux: SQLite itself refuses where it notices.
    at = folder.resolve()
    found = ""
    longest = -1
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(before.split(" ")[4].replace("\\040", " "))
        # The last of several mounts on one point is the one that is seen.
        if (at == point or point in at.parents) and len(point.parts) >= longest:
            longest, found = len(point.parts), after.split(" ")[0]
    return found if found in NETWORK else None
