"""A client's rows: a partition by flwr-datasets of one file, which is read once a process."""

from functools import lru_cache

from datasets import Dataset, load_dataset
from flwr_datasets.partitioner import NaturalIdPartitioner


@lru_cache
def _partitioner(data: str) -> NaturalIdPartitioner:
    partitioner = NaturalIdPartitioner(partition_by="client")
    partitioner.dataset = load_dataset("json", data_files=data, split="train")
    return partitioner


def load_data(data: str, partition_id: int) -> Dataset:
    """The rows of one client of a .jsonl file with the columns text, label and client."""
    return _partitioner(data).load_partition(partition_id)
