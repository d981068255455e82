"""`CompressionSpec`: how vectors are kept in memory, as one value."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from ragaccel.errors import ConfigurationError

Codec = Literal[
    "float32", "float16", "bfloat16", "int8", "int4", "pq", "pq2", "pq6",
    "rabitq1", "rabitq2", "rabitq3", "rabitq4", "rabitq5", "rabitq6", "rabitq7", "rabitq8",
]  # fmt: skip
Structure = Literal["flat", "ivf", "hnsw"]
Compression = Codec | Literal["auto"]
Metric = Literal["cosine", "ip", "l2"]

#: Rows that are searched exactly before compression pays.
COMPRESS_FROM_ROWS: Final = 4096
#: Dimensions that one 4-bit code of a product quantizer stands for.
PQ_DIMENSIONS: Final = {"pq2": 2, "pq": 4, "pq6": 6}
#: Codecs that a graph can be built over.
_IN_GRAPHS: Final = ("float32", "float16", "bfloat16", "int8", "int4")


@dataclass(frozen=True)
class CompressionSpec:
    """A codec, the structure that its codes are searched through, and how far they are rescored.

    Attributes:
        codec: "float32", "float16" and "bfloat16"; "int8" and "int4" (scalar quantizers); "pq"
            (product quantizer, 4 bits for 4 dimensions), "pq2" and "pq6" (4 bits for 2 and for 6);
            "rabitq1" to "rabitq8" (random rotation, so many bits for each dimension).
        structure: "flat" compares with every code; "ivf" with those of the lists nearest to the
            query, for a million rows and more; "hnsw" walks a graph, which takes the most memory
            and the longest to build.
        oversample: Candidates per asked result that are rescored with exact scores; None lets the
            collection find the least that keeps its recall.

    Source: Jégou et al., Product Quantization for Nearest Neighbor Search, 2011; André et al.,
    Quicker ADC, 2019 (fast scan); Gao and Long, RaBitQ, 2024; Malkov and Yashunin, HNSW, 2018.
    """

    codec: Codec
    structure: Structure = "flat"
    oversample: int | None = None

    def __post_init__(self) -> None:
        for name, value, kind in (
            ("codec", self.codec, Codec),
            ("structure", self.structure, Structure),
        ):
            if value not in get_args(kind):
                raise ConfigurationError(
                    f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}."
                )
        if self.structure == "hnsw" and self.codec not in _IN_GRAPHS:
            raise ConfigurationError(
                f'structure="hnsw" takes the codecs {", ".join(_IN_GRAPHS)}, got {self.codec!r}; '
                'use structure="flat" or "ivf" with it.'
            )
        given: Any = self.oversample
        if given is not None and (not isinstance(given, int) or given < 1):
            raise ConfigurationError(
                f"oversample must be a whole number of at least 1, got {self.oversample}."
            )

    @property
    def exact(self) -> bool:
        """Whether every vector itself is kept and compared with."""
        return self.codec == "float32" and self.structure == "flat"

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments that make an equal spec."""
        return asdict(self)


def resolve(compression: Compression | CompressionSpec) -> CompressionSpec | None:
    """Return the spec that is asked for; None where the collection chooses ("auto").

    Raises:
        ConfigurationError: The codec is unknown.
    """
    if isinstance(compression, CompressionSpec):
        return compression
    if compression == "auto":
        return None
    return CompressionSpec(compression)


#: What rows are encoded with where only the structure is given; "pq" in others.
IN_STRUCTURES: Final[dict[Structure, Codec]] = {"hnsw": "int8"}
#: What "auto" compresses with once there are `COMPRESS_FROM_ROWS` rows.
AUTO: Final = CompressionSpec("pq")


def check_options(dim: int | None, metric: str, recall: float, memory_mb: float | None) -> None:
    """Refuse what no collection can be opened with.

    Raises:
        ConfigurationError: One is out of its range.
    """
    given: Any = recall
    if not isinstance(given, (int, float)) or not 0 < given <= 1:
        raise ConfigurationError(
            f"recall must be within (0, 1], got {recall!r}; write recall=0.99."
        )
    if metric not in get_args(Metric):
        raise ConfigurationError(f"metric must be cosine, ip or l2, got {metric!r}.")
    size: Any = dim
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ConfigurationError(f"dim must be a whole number of at least 1, got {dim!r}.")
    limit: Any = memory_mb
    if limit is not None and not (isinstance(limit, (int, float)) and 0 < limit < math.inf):
        raise ConfigurationError(
            f"memory_mb must be megabytes above 0, or None for 1/24 of the vectors, got {limit!r}."
        )
