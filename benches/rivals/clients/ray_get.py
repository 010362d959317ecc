"""Ray's objects between two nodes: ray_get.py FOLDER serve ADDRESS | read ADDRESS SIZES."""

import json
import pathlib
import subprocess
import sys
import time

import numpy
import ray

PORT = 6399


def start(address, *args):
    ray_program = pathlib.Path(sys.executable).parent / "ray"
    command = [ray_program, "start", "--node-ip-address", address, "--num-cpus", "2", "--object-store-memory", str(2 << 30),
               "--disable-usage-stats", *args]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@ray.remote(num_cpus=0, resources={"there": 0.001})
class Holder:
    """Makes objects where they are to lie."""

    def put(self, size):
        return [ray.put(numpy.full(size, 7, dtype=numpy.uint8))]


def main():
    folder, what, address = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    if what == "serve":
        start(address, "--head", "--include-dashboard", "false", "--port", str(PORT), "--resources", '{"there": 1}')
        (folder / "head").write_text(f"{address}:{PORT}")
        (folder / "ready").touch()
        time.sleep(3600)
    head = (folder / "head").read_text()
    start(address, "--address", head)
    ray.init(address=head, _node_ip_address=address, log_to_driver=False, logging_level="ERROR")
    holder = Holder.remote()
    found = {}
    for size, times in json.loads(sys.argv[4]).items():
        size, seconds = int(size), []
        for i in range(min(times, 100) + 3):
            # Each time another object: one that was got is here.
            ref = ray.get(holder.put.remote(size))[0]
            begun = time.perf_counter()
            value = ray.get(ref)
            spent = time.perf_counter() - begun
            if value[-1] != 7:
                sys.exit("its bytes are wrong")
            del value, ref
            if i >= 3:
                seconds.append(spent)
        found[size] = seconds
    ray.shutdown()
    print(json.dumps(found), flush=True)
    subprocess.run([pathlib.Path(sys.executable).parent / "ray", "stop", "--force"], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


main()
