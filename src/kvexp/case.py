"""Identify one measured point by every field that changes what is measured, as names and numbers."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One point of one curve.

    Names are those of the configuration's groups, resolved: never `auto` for `mode`, `timer` or `device`
    (unless the measuring process died before it could resolve them), and `fp8_e4m3` for the alias `fp8`.

    Attributes:
        op: The op, for example `reshape_and_cache_flash`.
        impl: The implementation.
        impl_options: The implementation's options as canonical JSON.
        layout: The cache's layout.
        dtype: The item type of key and value.
        kv_cache_dtype: `auto` (the cache holds the source's items) or the fp8 format.
        scale: Scales that fp8 divides by: `per_tensor` (one for K, one for V) or `per_head`.
        mode: `cudagraph` or `no_graph`.
        timer: The timer.
        timer_options: The timer's options as canonical JSON.
        device: `cuda:N` or `cpu`.
        num_tokens: Length of `slot_mapping`.
        num_heads: KV heads of a token.
        head_size: Elements of a key head.
        head_size_v: Elements of a value head.
        block_size: Slots of a cache block.
        num_blocks: Blocks of the cache.
        num_layers: Layers that share the storage; the call writes one of them.
        slots: Pattern of the slots; see `workload.slots`.
        padding: The fraction of the tokens whose slot is -1.
        padding_at: Place of the padding: `end` or `scattered`.
        rows: Memory layout of key and value; see `workload.inputs`.
        num_query_heads: Query heads before K and V in a fused QKV tensor; used for `rows=qkv`.
        extra_tokens: Rows of key and value beyond those of `slot_mapping`.
        seed: Seed of inputs and slots.
        layout_reason: Why `layout=auto` chose the layout; not part of the identity.
        workload: The preset's name; not part of the identity.
    """

    op: str
    impl: str
    impl_options: str
    layout: str
    dtype: str
    kv_cache_dtype: str
    scale: str
    mode: str
    timer: str
    timer_options: str
    device: str
    num_tokens: int
    num_heads: int
    head_size: int
    head_size_v: int
    block_size: int
    num_blocks: int
    num_layers: int
    slots: str
    padding: float
    padding_at: str
    rows: str
    num_query_heads: int
    extra_tokens: int
    seed: int
    layout_reason: str = field(default="", compare=False)
    workload: str = field(default="", compare=False)

    @property
    def num_slots(self) -> int:
        """Slots of the whole cache."""
        return self.num_blocks * self.block_size

    @property
    def written_tokens(self) -> int:
        """Tokens that have a slot; at least one."""
        return max(1, self.num_tokens - round(self.padding * self.num_tokens))

    @property
    def mappings(self) -> int:
        """Number of slot mappings of this length that share no slot and begin at multiples of 16 bytes."""
        return max(1, self.num_slots // (self.num_tokens + self.num_tokens % 2))
