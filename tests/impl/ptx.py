"""PTX of the Triton kernel for an architecture that is not here, as JSON.

A process of its own: a kernel that was decorated under TRITON_INTERPRET=1, which the tests set, cannot be
compiled.
"""

import json
import sys

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from kvexp.impl import triton as impl

ITEMS = {"bfloat16": "bf16", "half": "fp16", "float": "fp32"}
HEADS, HEAD_SIZE, BLOCK_SIZE = 8, 128, 16


def compiled(arch: int, dtype: str, fp8: bool, aligned: bool, num_tokens: int = 32768) -> dict[str, object]:
    """PTX and the size of the cubin."""
    item = f"*{ITEMS[dtype]}"
    cache = "*fp8e4nv" if fp8 else item
    kernel = impl.reshape_and_cache_flash_kernel
    tokens, columns = impl.tile(num_tokens, HEADS * HEAD_SIZE, 132)
    constants = {
        "NUM_HEADS": HEADS, "HEAD_SIZE": HEAD_SIZE, "BLOCK_SIZE": BLOCK_SIZE, "FP8": fp8, "TOKENS": tokens,
        "COLUMNS": columns,
    }  # fmt: skip
    types = [item, item, cache, cache, "*i64", "*fp32", "*fp32", *["i32"] * 7]
    signature = dict(zip(kernel.arg_names, types, strict=False))
    signature |= dict.fromkeys(constants, "constexpr")
    # What the launcher finds out itself: 16 divides the addresses and the strides.
    whole = [i for i, name in enumerate(kernel.arg_names) if name.endswith(("_ptr", "_stride"))]
    attrs = {(i,): [["tt.divisibility", 16]] for i in whole} if aligned else {}
    source = ASTSource(
        kernel, signature, {(kernel.arg_names.index(k),): v for k, v in constants.items()}, attrs
    )
    made = compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 4})
    return {"ptx": made.asm["ptx"], "cubin_bytes": len(made.asm["cubin"])}


if __name__ == "__main__":
    sys.stdout.write(json.dumps([compiled(**asked) for asked in json.loads(sys.argv[1])]))
