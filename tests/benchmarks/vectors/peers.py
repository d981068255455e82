"""The peers, each through its own raw call, each built with one thread.

Every function builds one index of the base in the folder and yields it with its knobs turned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from tests.benchmarks.vectors.contender import Setting
from tests.benchmarks.vectors.data import K

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.benchmarks.vectors.contender import Contender
    from tests.benchmarks.vectors.data import Data, Rows

_BATCH = 5_000


def _row(query: Rows) -> Rows:
    return query[None, :]


def _first(found: tuple[Any, Any]) -> list[int]:
    """Return the rows of (scores, rows), both of shape (1, k)."""
    return [int(row) for row in found[1][0]]


def faiss_flat(data: Data, folder: Path) -> Iterator[Setting]:
    """Exact float32: the measure of all, so that its own line shows the noise."""
    index = faiss.IndexFlatIP(data.base.shape[1])
    index.add(np.asarray(data.base))
    yield Setting("", lambda q: index.search(q, K), _first, _row, data.base.nbytes, "float32 rows")


def faiss_recipe(data: Data, folder: Path) -> Iterator[Setting]:
    """Raw faiss, the most that can be had: 4-bit fast scan, float16 rows in a mapped file."""
    dim = data.base.shape[1]
    codes = faiss.index_factory(dim, f"IVF1,PQ{dim // 4}x4fs", faiss.METRIC_INNER_PRODUCT)
    rows = faiss.IndexScalarQuantizer(
        dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    base = np.asarray(data.base)
    codes.train(base[:: max(1, len(base) // 20_000)])
    codes.add(base)
    rows.add(base)
    faiss.write_index(rows, str(folder / "rows.faiss"))
    resident = len(faiss.serialize_index(codes))
    mapped = faiss.read_index(str(folder / "rows.faiss"), faiss.IO_FLAG_MMAP_IFC)
    del rows
    index = faiss.IndexRefine(codes, mapped)
    for factor in (10, 20, 40, 80):
        index.k_factor = factor
        how = "serialised codes, float16 rows mapped"
        yield Setting(f"k_factor={factor}", lambda q: index.search(q, K), _first, _row,
                      resident, how)  # fmt: skip


def _turbovec(bits: int) -> Contender:
    def contender(data: Data, folder: Path) -> Iterator[Setting]:
        import turbovec

        index = turbovec.TurboQuantIndex(data.base.shape[1], bits)
        index.add(np.asarray(data.base))
        resident = len(index.to_bytes())
        yield Setting("", lambda q: index.search(q, K), _first, _row, resident, "serialised")

    return contender


def _usearch(kind: str) -> Contender:
    def contender(data: Data, folder: Path) -> Iterator[Setting]:
        from usearch.index import Index

        index = Index(ndim=data.base.shape[1], metric="ip", dtype=kind, connectivity=16)
        index.add(np.arange(len(data.base)), np.asarray(data.base), threads=1)
        resident = index.serialized_length
        for width in (64, 128, 256):
            index.expansion_search = width
            yield Setting(
                f"ef={width}", lambda q: index.search(q, K, threads=1),
                lambda found: [int(row) for row in found.keys], resident=resident,
                how="serialised",
            )  # fmt: skip

    return contender


def hnswlib(data: Data, folder: Path) -> Iterator[Setting]:
    """HNSW over float32 rows."""
    import hnswlib as peer

    index = peer.Index("ip", data.base.shape[1])
    index.init_index(len(data.base), M=16, ef_construction=200)
    index.add_items(np.asarray(data.base), num_threads=1)
    index.set_num_threads(1)
    resident = index.index_file_size()
    for width in (64, 128, 256):
        index.set_ef(width)
        yield Setting(f"M=16 ef={width}", lambda q: index.knn_query(q, K),
                      lambda found: [int(row) for row in found[0][0]], _row, resident,
                      "serialised")  # fmt: skip


def scann(data: Data, folder: Path) -> Iterator[Setting]:
    """Tree, asymmetric hashing and reordering with the float32 rows, which it keeps."""
    import scann as peer

    base = np.asarray(data.base)
    leaves = int(np.sqrt(len(base)))
    index = (
        peer.scann_ops_pybind.builder(base, K, "dot_product")
        .tree(leaves, num_leaves_to_search=64, training_sample_size=min(len(base), 50_000))
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(400)
        .build()
    )
    index.set_num_threads(1)
    for share, reorder in ((0.1, 100), (0.25, 200), (0.5, 400), (1, 400)):
        some = max(1, int(leaves * share))
        yield Setting(
            f"leaves={some}/{leaves} reorder={reorder}",
            lambda q, some=some, reorder=reorder: index.search(
                q, leaves_to_search=some, pre_reorder_num_neighbors=reorder
            ),
            lambda found: found[0].tolist(),
        )


def chroma(data: Data, folder: Path) -> Iterator[Setting]:
    """Chroma in the process, with its HNSW over float32 rows."""
    import chromadb

    client = chromadb.EphemeralClient()
    collection = client.create_collection(
        "vectors", embedding_function=None,
        configuration={"hnsw": {"space": "ip", "num_threads": 1}},
    )  # fmt: skip
    for start in range(0, len(data.base), _BATCH):
        part = np.asarray(data.base[start : start + _BATCH])
        collection.add(ids=[str(start + at) for at in range(len(part))], embeddings=part)
    yield Setting(
        "defaults",
        lambda q: collection.query(query_embeddings=q, n_results=K, include=["distances"]),
        lambda found: [int(one) for one in found["ids"][0]],
        _row,
    )


def _lancedb(kind: str) -> Contender:
    def contender(data: Data, folder: Path) -> Iterator[Setting]:
        import lancedb
        import pyarrow as pa

        base = np.asarray(data.base)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(base.reshape(-1)), base.shape[1])
        table = lancedb.connect(str(folder)).create_table(
            "vectors", data=pa.table({"id": np.arange(len(base)), "vector": vectors})
        )
        lists = 1 if "HNSW" in kind else max(1, int(np.sqrt(len(base)) // 4))
        codes = {"num_sub_vectors": base.shape[1] // 4} if kind == "IVF_PQ" else {}
        table.create_index(
            metric="dot", num_partitions=lists, index_type=kind, vector_column_name="vector",
            **codes,
        )  # fmt: skip
        for refine in (1, 10, 40):
            yield Setting(
                f"nprobes={lists} refine={refine}",
                lambda q, refine=refine: (
                    table.search(q)
                    .distance_type("dot")
                    .nprobes(lists)
                    .refine_factor(refine)
                    .limit(K)
                    .select(["id", "_distance"])
                    .to_arrow()
                ),
                lambda found: found["id"].to_pylist(),
            )

    return contender


def _qdrant(kind: str) -> Contender:
    def contender(data: Data, folder: Path) -> Iterator[Setting]:
        import qdrant_edge as q

        codes = {
            "int8": lambda: q.ScalarQuantizationConfig(type=q.ScalarType.Int8, always_ram=True),
            "tq4": lambda: q.TurboQuantQuantizationConfig(
                bits=q.TurboQuantBitSize.Bits4, always_ram=True
            ),
        }
        shard = q.EdgeShard.create(
            str(folder),
            q.EdgeConfig(
                vectors=q.EdgeVectorParams(size=data.base.shape[1], distance=q.Distance.Dot),
                hnsw_config=q.HnswIndexConfig(16, 100, 1, max_indexing_threads=1),
                quantization_config=codes[kind](),
                optimizers=q.EdgeOptimizersConfig(indexing_threshold=1, default_segment_number=1),
                max_search_threads=1,
            ),
        )
        for start in range(0, len(data.base), _BATCH):
            part = data.base[start : start + _BATCH].tolist()
            points = [q.Point(start + at, vector) for at, vector in enumerate(part)]
            shard.update(q.UpdateOperation.upsert_points(points))
        shard.optimize()
        for width, oversample in ((128, 3.0), (256, 10.0)):
            knobs = q.SearchParams(
                hnsw_ef=width,
                quantization=q.QuantizationSearchParams(rescore=True, oversampling=oversample),
            )
            yield Setting(
                f"ef={width} oversampling={oversample:g}",
                lambda query, knobs=knobs: shard.query(
                    q.QueryRequest(limit=K, query=q.Query.Nearest(query), params=knobs)
                ),
                lambda found: [point.id for point in found],
                lambda vector: vector.tolist(),
            )

    return contender


PEERS: dict[str, Callable[[Data, Path], Iterator[Setting]]] = {
    "faiss Flat": faiss_flat,
    "faiss recipe": faiss_recipe,
    "turbovec 2-bit": _turbovec(2),
    "turbovec 4-bit": _turbovec(4),
    "usearch f16": _usearch("f16"),
    "usearch i8": _usearch("i8"),
    "hnswlib": hnswlib,
    "scann": scann,
    "chroma": chroma,
    "lancedb IVF_PQ": _lancedb("IVF_PQ"),
    "lancedb IVF_HNSW_SQ": _lancedb("IVF_HNSW_SQ"),
    "qdrant-edge int8": _qdrant("int8"),
    "qdrant-edge TurboQuant 4-bit": _qdrant("tq4"),
}
#: Those that are worth waiting for at a million rows.
FAST = ("faiss Flat", "faiss recipe", "turbovec 4-bit", "scann")
