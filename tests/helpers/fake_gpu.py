"""The measuring process on a CPU that passes for a GPU of this UUID, so that there are turns at it.

No CUDA graph is refused there; to capture one fails.
"""

from kvexp.bench import child, environment, mode

UUID = "GPU-played"

read = environment.read

if __name__ == "__main__":
    environment.read = lambda device: {**read(device), "device_uuid": UUID}
    mode.check_mode = lambda *_: None
    child.serve()
