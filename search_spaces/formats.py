"""How a weight matrix may be stored, and which backend has which bits on which device."""

from collections.abc import Mapping
from dataclasses import dataclass, field

GROUP_SIZE = 64
GROUP_SIZES = (32, 64, 128, 256)
# Methods whose codes share a scale in groups along the input.
GROUPED = ("nf4-double", "nf4", "fp4", "hqq", "gptq")
FOUR_BIT = ("nf4-double", "nf4", "fp4")
# Methods from which single rows can be read, as an embedding needs.
ROWS = ("plain", "int8", *FOUR_BIT, "gptq")
# Of symmetric GPTQ checkpoints, as kernels elsewhere take them.
GPTQ_GROUP_SIZES = (32, 64, 128)
# Of the blocks of llama.cpp, by bits: Q2_0, Q4_0 and Q8_0.
GGUF_GROUP_SIZES: Mapping[int, int] = {2: 64, 4: 32, 8: 32}
DEFAULT_METHODS: Mapping[int, str] = {16: "plain", **dict.fromkeys((8, 4, 3, 2), "gptq")}

Methods = Mapping[int, tuple[str, ...]]
_PLAIN: Methods = {16: ("plain",)}
_INT8: Methods = {8: ("int8",)}
_FOUR: Methods = {4: FOUR_BIT}
_HQQ: Methods = {**_PLAIN, **dict.fromkeys((8, 4, 3, 2), ("hqq",))}
_BNB: Methods = {**_PLAIN, **_INT8, **_FOUR}
_GPTQ: Methods = {**_PLAIN, **dict.fromkeys((8, 4, 3, 2), ("gptq",))}
_GGUF: Methods = {**_PLAIN, **dict.fromkeys(sorted(GGUF_GROUP_SIZES, reverse=True), ("gptq",))}

# The default of all bits is of one family. bitsandbytes has what B-Q4 and others compare with.
_AUTO_MPS: Methods = {**_GPTQ, 4: ("gptq", *FOUR_BIT)}
_AUTO: Methods = {**_AUTO_MPS, 8: ("gptq", "int8")}

# Backend -> device -> bits -> methods, the default one first. bitsandbytes 0.50 has 4-bit kernels
# for MPS and none for int8; GPTQ's codes and HQQ's are plain torch and run everywhere.
BACKENDS: Mapping[str, Mapping[str, Methods]] = {
    "auto": {"cpu": _AUTO, "cuda": _AUTO, "mps": _AUTO_MPS},
    "cuda-4bit": {"cuda": {**_PLAIN, **_FOUR}},
    "cuda-8bit": {"cuda": {**_PLAIN, **_INT8}},
    "cpu-int8": {"cpu": {**_PLAIN, **_INT8}},
    "bnb": {"cpu": _BNB, "cuda": _BNB, "mps": {**_PLAIN, **_FOUR}},
    "gptq": {"cpu": _GPTQ, "cuda": _GPTQ, "mps": _GPTQ},
    "gguf": {"cpu": _GGUF, "cuda": _GGUF, "mps": _GGUF},
    "hqq": {"cpu": _HQQ, "cuda": _HQQ, "mps": _HQQ},
    "none": {"cpu": _PLAIN, "cuda": _PLAIN, "mps": _PLAIN},
}


@dataclass(frozen=True, order=True)
class Format:
    """How one weight matrix is stored.

    Attributes:
        bits: Bits of one stored code.
        method: `plain` (bfloat16), `int8` (a scale a row), `nf4-double`, `nf4`, `fp4`, `hqq`, or
            `gptq` (codes around a fixed middle, a signed scale a group).
        group_size: Weights that share one scale; 0 where a row does.
    """

    bits: int
    method: str
    group_size: int


def default_format(bits: int, group_size: int = GROUP_SIZE) -> Format:
    """Return the usual format of these bits.

    Raises:
        ValueError: No format has them.
    """
    if bits not in DEFAULT_METHODS:
        known = ", ".join(map(str, sorted(DEFAULT_METHODS)))
        raise ValueError(f"`bits` must be one of {known}, got {bits}. Choose one of them.")
    method = DEFAULT_METHODS[bits]
    return Format(bits, method, group_size if method in GROUPED else 0)


@dataclass(frozen=True, kw_only=True)
class Formats:
    """The formats that one study may use.

    Attributes:
        backend: As given to `--quant-backend`.
        device: `cpu`, `cuda` or `mps`.
        four_bit: Method of 4 bits in searched spaces; None for the backend's first.
        group_sizes: Group sizes that a searched module may take.
    """

    backend: str = "auto"
    device: str = "cpu"
    four_bit: str | None = None
    group_sizes: tuple[int, ...] = (GROUP_SIZE,)
    methods: Methods = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_backend_name(self.backend)
        devices = BACKENDS[self.backend]
        if self.device not in devices:
            raise ValueError(
                f"`--quant-backend` {self.backend} needs {' or '.join(devices)}, got a machine "
                f"with {self.device}. Use --quant-backend auto, another --device or machine."
            )
        object.__setattr__(self, "methods", devices[self.device])
        if self.four_bit is not None and self.four_bit not in self.methods.get(4, ()):
            known = ", ".join(self.methods.get(4, ())) or "no 4 bits"
            raise ValueError(
                f"`--four-bit` must be a method of --quant-backend {self.backend} ({known}), "
                f"got {self.four_bit!r}. Use one of those, or another backend."
            )
        check_storage(self.four_bit, self.group_sizes)
        if self.blocks and self.group_sizes != (GROUP_SIZE,):
            fixed = ", ".join(f"{size} weights at {b} bits" for b, size in self.blocks.items())
            raise ValueError(
                f"`--group-size` must be left out with --quant-backend gguf, which has {fixed}, "
                f"got {', '.join(map(str, self.group_sizes))}. Leave it out, or use gptq."
            )
        for size in self.group_sizes if self.along_input else ():
            if size not in GPTQ_GROUP_SIZES:
                raise ValueError(
                    f"`--group-size` must be one of {', '.join(map(str, GPTQ_GROUP_SIZES))} with "
                    f"--quant-backend {self.backend}, got {size}. Use one of those, or another "
                    "backend, such as bnb or hqq."
                )

    @property
    def along_input(self) -> bool:
        """Whether searched modules have groups along their inputs, whose number sizes must divide.

        Else groups run on from row to row.
        """
        return any(methods[0] == "gptq" for methods in self.methods.values())

    @property
    def blocks(self) -> Mapping[int, int]:
        """The group size of each bits, where they alone decide on it; else nothing."""
        return GGUF_GROUP_SIZES if self.backend == "gguf" else {}

    def group_sizes_of(self, in_features: int) -> tuple[int, ...]:
        """Return the group sizes of a module: 32 where inputs aren't multiples of the usual one."""
        if self.blocks:
            return (min(self.blocks.values()),)
        usual = self.group_sizes == (GROUP_SIZE,)
        if usual and self.along_input and in_features % GROUP_SIZE:
            return (min(GPTQ_GROUP_SIZES),)
        return self.group_sizes

    def usual_group_size(self, in_features: int) -> int:
        """Return the group size of a module where it isn't searched: the one nearest to 64."""
        sizes = self.group_sizes_of(in_features)
        return min(sizes, key=lambda size: abs(size - GROUP_SIZE))

    def of(self, bits: int, group_size: int) -> Format:
        """Return the format that a searched module gets for these bits."""
        method = self.methods[bits][0]
        if bits == 4 and self.four_bit is not None:
            method = self.four_bit
        size = self.blocks.get(bits, group_size)
        return Format(bits, method, size if method in GROUPED else 0)

    def check(self, name: str, wanted: Format) -> None:
        """Check that the backend has a module's format on this device.

        Raises:
            ValueError: It doesn't. The message has the module's name.
        """
        if wanted.bits not in self.methods:
            known = ", ".join(map(str, sorted(self.methods)))
            raise ValueError(
                f"`bits` must be one of {known} with --quant-backend {self.backend} on "
                f"{self.device}, got {wanted.bits} for {name}. Use --quant-backend auto."
            )
        if wanted.method not in self.methods[wanted.bits]:
            known = ", ".join(self.methods[wanted.bits])
            raise ValueError(
                f"`format` of {wanted.bits} bits must be one of {known} with --quant-backend "
                f"{self.backend} on {self.device}, got {wanted.method} for {name}. "
                "Use --quant-backend auto."
            )

    def describe(self) -> str:
        """Return which method stores which bits and why, for people."""
        parts = [f"{bits}: {self.of(bits, 0).method}" for bits in sorted(self.methods)]
        if self.backend == "gguf":
            return f"gguf on {self.device} ({', '.join(parts)}): in blocks that llama.cpp reads"
        calibrated = "codes made for the inputs of each module, the same on every device"
        why = calibrated if self.backend == "auto" else "as asked for"
        return f"{self.backend} on {self.device} ({', '.join(parts)}): {why}"


def check_storage(four_bit: str | None, group_sizes: tuple[int, ...]) -> None:
    """Check that the method of 4 bits and the group sizes exist, whatever the backend.

    Raises:
        ValueError: One doesn't.
    """
    if four_bit is not None and four_bit not in (*FOUR_BIT, "hqq"):
        raise ValueError(
            f"`--four-bit` must be one of {', '.join(FOUR_BIT)}, hqq, got {four_bit!r}. "
            "Use one of those."
        )
    for size in group_sizes:
        if size not in GROUP_SIZES:
            raise ValueError(
                f"`--group-size` must be one of {', '.join(map(str, GROUP_SIZES))}, "
                f"got {size}. Use one or several of them, with commas between."
            )


def check_backend_name(name: str) -> None:
    """Check that the backend exists.

    Raises:
        ValueError: It doesn't.
    """
    if name not in BACKENDS:
        raise ValueError(
            f"`--quant-backend` must be one of {', '.join(BACKENDS)}, got {name!r}. "
            "Use one of those."
        )
