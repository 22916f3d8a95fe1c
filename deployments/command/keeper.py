"""Cleans up behind an owner process that could not.

`python -m deployments.command.keeper PID FOLDER`; `kept` starts it.

Ray and vLLM start processes of their own, some of which survive a killed parent. The keeper notes
all descendants of the owner while it lives, and the shared memory that they use, which vLLM leaves
when it is ended. When the owner is gone it ends those that are left, and removes that and the
owner's temporary folder.
"""

import contextlib
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

_LOOK_EVERY_S = 1.0
# Of looks: reading what a process maps takes milliseconds.
_LOOK_AT_MEMORY = 10
# As the shared memory of Python and of vLLM is called, and joblib's semaphores.
_SHARED = ("/dev/shm/psm_", "/dev/shm/sem.loky-", "/dev/shm/vllm_dist_")
_GRACE_S = 5.0


@contextlib.contextmanager
def kept(owner_pid: int, folder: Path) -> Iterator[None]:
    """Run a keeper for the length of the block, and let it sweep at its end."""
    keeper = subprocess.Popen(
        [sys.executable, "-m", "deployments.command.keeper", str(owner_pid), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        # Out of the terminal's reach: Ctrl-C is for the owner.
        start_new_session=True,
    )
    try:
        yield
    finally:
        # Closes its standard input, and waits.
        keeper.communicate()


def main() -> None:
    owner, folder = _owner(int(sys.argv[1])), Path(sys.argv[2])
    family: dict[int, psutil.Process] = {}
    shared: set[Path] = set()
    me = psutil.Process()
    looks = 0
    # Closed when `kept` is left, or its process has ended.
    while not select.select([sys.stdin], [], [], _LOOK_EVERY_S)[0]:
        if owner is not None:
            _note_descendants(owner, family)
        if looks % _LOOK_AT_MEMORY == 0:
            shared |= _shared_by(_alive(family))
        looks += 1
    family.pop(me.pid, None)
    left = _alive(family)
    shared |= _shared_by(left)
    _end(left)
    for path in shared:
        path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _owner(pid: int) -> psutil.Process | None:
    """None: it ended before there was anything to note."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid)
    return None


def _alive(family: dict[int, psutil.Process]) -> list[psutil.Process]:
    """Those that still are who they were: the number of one that ended may be another's now."""
    return [process for process in family.values() if process.is_running()]


def _shared_by(processes: list[psutil.Process]) -> set[Path]:
    """Files of the shared memory that they map; none where the system does not tell."""
    names: set[str] = set()
    for process in processes:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
            names.update(line.split(maxsplit=5)[-1] for line in lines)
    return {Path(n) for n in names if n.startswith(_SHARED) and not n.endswith("(deleted)")}


def _note_descendants(owner: psutil.Process, family: dict[int, psutil.Process]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        family.update((p.pid, p) for p in owner.children(recursive=True))


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=_GRACE_S)
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    # Their folder goes next: who sees it gone may rely on their end.
    until = time.monotonic() + _GRACE_S
    while any(_runs(process) for process in stubborn) and time.monotonic() < until:
        time.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    """Whether it has not ended; without an init process nobody buries it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


if __name__ == "__main__":
    main()
