import os
import signal

import torch

if not torch.cuda.is_available():
    # Triton reads it when it decorates a kernel, so before anything imports one.
    os.environ["TRITON_INTERPRET"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As under nohup or a shell's `&`; what the tests start and then interrupt would ignore it, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
