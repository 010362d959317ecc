"""NIXL's READ by its UCX plug-in: nixl_read.py FOLDER serve ADDRESS | read ADDRESS SIZES."""

import ctypes
import json
import os
import pathlib
import sys
import time

os.environ.update({"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0"})
from nixl._api import nixl_agent, nixl_agent_config  # noqa: E402

ROOM = 256 << 20


def main():
    folder, what = pathlib.Path(sys.argv[1]), sys.argv[2]
    agent = nixl_agent(what, nixl_agent_config(backends=["UCX"]))
    room = (ctypes.c_char * ROOM)()
    ctypes.memset(room, 7 if what == "serve" else 1, ROOM)
    at = ctypes.addressof(room)
    agent.register_memory([(at, ROOM, 0, "")], "DRAM")
    if what == "serve":
        (folder / "agent").write_bytes(agent.get_agent_metadata())
        (folder / "at").write_text(str(at))
        (folder / "ready").touch()
        while True:
            agent.get_new_notifs()
            time.sleep(0.0005)
    peer = agent.add_remote_agent((folder / "agent").read_bytes())
    there = int((folder / "at").read_text())
    found = {}
    for size, times in json.loads(sys.argv[4]).items():
        size, seconds = int(size), []
        mine = agent.get_xfer_descs([(at, size, 0)], "DRAM")
        theirs = agent.get_xfer_descs([(there, size, 0)], "DRAM")
        handle = agent.initialize_xfer("READ", mine, theirs, peer)
        for i in range(times + 3):
            begun = time.perf_counter()
            state = agent.transfer(handle)
            while state == "PROC":
                state = agent.check_xfer_state(handle)
            if state != "DONE":
                sys.exit(f"its read of {size} bytes ends as {state}")
            if i >= 3:
                seconds.append(time.perf_counter() - begun)
        agent.release_xfer_handle(handle)
        found[size] = seconds
    if room[ROOM - 1] != b"\7":
        sys.exit("its bytes are wrong")
    print(json.dumps(found), flush=True)
    # Its threads are not all joined on a clean end.
    os._exit(0)


main()
