"""Run the measuring process on a CPU that passes for a GPU of this UUID, so that it is locked.

CUDA graphs are not refused there, but capturing one fails.
"""

from kvexp.bench import child, environment, mode

UUID = "GPU-played"

read = environment.read

if __name__ == "__main__":
    environment.read = lambda device: {**read(device), "device_uuid": UUID}
    mode.check_mode = lambda *_: None
    child.serve()
