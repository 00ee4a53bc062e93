"""Print the PTX that a launcher would compile of the Triton kernels for any architecture, as JSON.

It is a process of its own because a kernel that was decorated under TRITON_INTERPRET=1, which the tests set,
cannot be compiled.
"""

import importlib
import json
import sys

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from kvexp.impl.triton import paged_decode, source
from kvexp.impl.triton.launch import NUM_WARPS, make_compiler_options
from kvexp.op import NVFP4, PER_TOKEN_HEAD

DTYPES = {
    "bfloat16": torch.bfloat16,
    "half": torch.float16,
    "float": torch.float32,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
NUM_HEADS, BLOCK_SIZE, NUM_BLOCKS = 8, 16, 2


def plan(
    op: str,
    dtype: str,
    kv_cache_dtype: str,
    off: int = 0,
    head_size: int = 128,
    head_size_v: int = 128,
    per_head: bool = False,
) -> source.Plan:
    """Return the plan for tensors whose bases are `off` items after an aligned address."""
    item = DTYPES[dtype]
    cache_item = item if kv_cache_dtype == "auto" else torch.uint8
    rows = [_tensor((3, NUM_HEADS, size), item, off) for size in (head_size, head_size_v)]
    slots = torch.zeros(3, dtype=torch.int64)
    file = importlib.import_module(f"kvexp.impl.triton.{op}")
    made: tuple[source.Plan, object, int]
    if kv_cache_dtype in PER_TOKEN_HEAD:
        width = head_size + head_size_v + 8
        cells = _tensor((NUM_BLOCKS, BLOCK_SIZE, NUM_HEADS, width), torch.uint8, off)
        made = file.fit(*rows, cells, slots, kv_cache_dtype)
        return made[0]
    scale = torch.ones(NUM_HEADS if per_head else 1)
    if kv_cache_dtype == NVFP4:
        pages = _tensor((NUM_BLOCKS, BLOCK_SIZE * NUM_HEADS * head_size * 9 // 8), torch.uint8, off)
        made = file.fit(*rows, pages, slots, scale, scale, "HND")
        return made[0]
    if op == "reshape_and_cache":
        x = 16 // cache_item.itemsize
        key_cache = _tensor((NUM_BLOCKS, NUM_HEADS, 128 // x, BLOCK_SIZE, x), cache_item, off)
        value_cache = _tensor((NUM_BLOCKS, NUM_HEADS, 128, BLOCK_SIZE), cache_item, off)
    else:
        packed = _tensor((NUM_BLOCKS, BLOCK_SIZE, NUM_HEADS, head_size + head_size_v), cache_item, off)
        key_cache, value_cache = packed[..., :head_size], packed[..., head_size:]
    made = file.fit(*rows, key_cache, value_cache, slots, kv_cache_dtype, scale, scale)
    return made[0]


def compile_decode(arch: int, kernel: str, dtype: str, kv_cache_dtype: str, parts: int) -> dict[str, object]:
    """Return the same of a kernel of `paged_decode`, for 40 query and 8 KV heads x 128."""
    fixed = paged_decode.make_constants(5, 128, 128, kv_cache_dtype, torch.ones(1))
    fixed |= {"BLOCK_SIZE": BLOCK_SIZE, "PARTS": parts, "FACTOR": None}
    words = {"bfloat16": "*bf16", "half": "*fp16", "float": "*fp32"} | source.FP8
    items = dict.fromkeys(("output_ptr", "query_ptr"), words[dtype])
    caches = words[dtype if kv_cache_dtype == "auto" else kv_cache_dtype]
    items |= dict.fromkeys(("key_cache_ptr", "value_cache_ptr"), caches)
    items |= dict.fromkeys(("block_table_ptr", "seq_lens_ptr"), "*i32")
    items |= dict.fromkeys(("sums_ptr", "k_scale_ptr", "v_scale_ptr"), "*fp32")
    function = getattr(paged_decode, kernel)
    names = function.arg_names
    signature = {name: items.get(name, "constexpr" if name in fixed else "i32") for name in names}
    constants = {name: value for name, value in fixed.items() if name in names}
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in fixed}
    found = compile(ASTSource(function, signature, constants, attributes), target=GPUTarget("cuda", arch, 32))
    return {"ptx": found.asm["ptx"], "cubin_bytes": len(found.asm["cubin"])}


def compile_plan(
    arch: int, large: bool = True, num_stages: int | None = None, **asked: object
) -> dict[str, object]:
    """Return the PTX and the size of the cubin."""
    made = plan(**asked)  # type: ignore[arg-type]  # it comes from JSON
    num_tokens, gpu = (1 << 20, source.Gpu(1, 1 << 40)) if large else (1, source.Gpu(132, 0))
    code = source.make_source(
        made.kernel, made.choose_tile(made, num_tokens, gpu, source.Options(slot_first=False))
    )
    found = compile(
        code, target=GPUTarget("cuda", arch, 32), options=make_compiler_options(NUM_WARPS, num_stages)
    )
    return {"ptx": found.asm["ptx"], "cubin_bytes": len(found.asm["cubin"])}


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, off: int) -> Tensor:
    """Allocate a tensor; torch's allocations are aligned, so only `off` moves the base."""
    items = torch.Size(shape).numel()
    return torch.empty(off + items, dtype=dtype)[off:].view(shape)


if __name__ == "__main__":
    made = [
        compile_decode(**asked) if "kernel" in asked else compile_plan(**asked)
        for asked in json.loads(sys.argv[1])
    ]
    sys.stdout.write(json.dumps(made))
