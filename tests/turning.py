"""The measuring process on a CPU that passes for a GPU of this UUID, so that there are turns at it."""

from kvexp import child, environment

UUID = "GPU-played"

read = environment.read

if __name__ == "__main__":
    environment.read = lambda device: {**read(device), "device_uuid": UUID}
    child.serve()
