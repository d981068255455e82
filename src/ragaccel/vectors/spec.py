"""`CompressionSpec`: how vectors are kept in memory, as one value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from ragaccel.errors import ConfigurationError

Codec = Literal["float32", "float16", "int8", "pq"]
Compression = Codec | Literal["auto"]
Metric = Literal["cosine", "ip", "l2"]

#: Rows that are searched exactly before compression pays.
COMPRESS_FROM_ROWS: Final = 4096
#: Dimensions that one 4-bit code of the product quantizer stands for.
_PQ_DIMENSIONS = 4


@dataclass(frozen=True)
class CompressionSpec:
    """A codec and how far its candidates are rescored.

    Attributes:
        codec: "float32" (exact, in memory), "float16", "int8" (scalar quantizers) or "pq" (product
            quantizer, 4-bit codes of 4 dimensions: 1 bit per dimension).
        oversample: Candidates per asked result that are rescored with exact scores; None lets the
            collection find the least that keeps its recall.

    Source: Jégou et al., Product Quantization for Nearest Neighbor Search, 2011; André et al.,
    Quicker ADC, 2019 (fast scan).
    """

    codec: Codec
    oversample: int | None = None

    def __post_init__(self) -> None:
        if self.codec not in get_args(Codec):
            raise ConfigurationError(
                f"codec must be one of {', '.join(get_args(Codec))}, got {self.codec!r}."
            )
        given: Any = self.oversample
        if given is not None and (not isinstance(given, int) or given < 1):
            raise ConfigurationError(
                f"oversample must be a whole number of at least 1, got {self.oversample}."
            )

    @property
    def exact(self) -> bool:
        """Whether the codec keeps the vectors themselves."""
        return self.codec == "float32"

    def padded(self, dim: int) -> int:
        """Return the dimension that the codec works in; vectors are padded with zeros."""
        return -(-dim // _PQ_DIMENSIONS) * _PQ_DIMENSIONS

    def factory(self, dim: int) -> str:
        """Return the faiss factory string for a padded dimension.

        One inverted list is an exhaustive scan that, unlike the flat form, takes selectors and
        keeps our own row numbers.
        """
        return (
            "IVF1,"
            + {
                "float32": "Flat",
                "float16": "SQfp16",
                "int8": "SQ8",
                "pq": f"PQ{dim // _PQ_DIMENSIONS}x4fs",
            }[self.codec]
        )

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


#: What "auto" compresses with once there are `COMPRESS_FROM_ROWS` rows.
AUTO: Final = CompressionSpec("pq")
