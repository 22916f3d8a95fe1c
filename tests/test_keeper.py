"""What is left when a cluster's process could not clean up behind itself."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path

import psutil
import pytest

from tests.conftest import wait_until

OWNER = """
    import os, subprocess, sys, time
    from pathlib import Path
    from deployments.command.keeper import kept
    with kept(os.getpid(), Path(sys.argv[1])):
        child = subprocess.Popen([sys.executable, "-c", CHILD, sys.argv[2]])
        print(child.pid, flush=True)
        time.sleep(60)
"""
# Maps the memory, and heeds nobody who wants it to stop.
CHILD = """
    import mmap, os, signal, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mapped = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 0)
    print("mapped", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no shared memory here")
def test_processes_shared_memory_and_the_folder_go_with_the_owner(tmp_path):
    folder = tmp_path / "rh-1"
    folder.mkdir()
    theirs = shared_memory.SharedMemory(create=True, size=4096)
    others = shared_memory.SharedMemory(create=True, size=4096)
    # The keeper removes it, so it is not ours to remove.
    resource_tracker.unregister(f"/{theirs.name}", "shared_memory")
    path = Path("/dev/shm", theirs.name)
    code = f"CHILD = {textwrap.dedent(CHILD)!r}\n" + textwrap.dedent(OWNER)
    owner = subprocess.Popen(
        [sys.executable, "-c", code, folder, path], stdout=subprocess.PIPE, text=True
    )
    try:
        child = psutil.Process(int(owner.stdout.readline()))
        assert owner.stdout.readline() == "mapped\n"
        # The keeper looks once a second, first when it has started.
        time.sleep(3)
        os.kill(owner.pid, signal.SIGKILL)
        wait_until(lambda: not folder.exists())
        # Without an init process nobody buries it.
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
        assert not path.exists()
        assert Path("/dev/shm", others.name).exists(), "it is none of theirs"
    finally:
        owner.kill()
        owner.communicate()
        theirs.close()
        others.close()
        others.unlink()
