"""Which batches BatchNorm and the ranks can share."""

from facescale.config import TrainConfig


def check_batch(global_batch: int, train: TrainConfig, ranks: int) -> None:
    """BatchNorm has no variance of one sample, so no rank may be left with fewer than two.

    Over the global batch it has, but all ranks must take as many portions, and each have a sample.
    """
    share = -(-global_batch // ranks)
    smallest = global_batch - share * (ranks - 1)
    least = 1 if train.sync_batchnorm else 2
    if smallest < least:
        raise ValueError(
            f"a batch of {global_batch} leaves {max(smallest, 0)} samples to the last of {ranks} "
            f"ranks, and BatchNorm needs {least}; "
            f"take train.global_batch_size of {least * ranks} or more"
        )
    micro = train.micro_batch
    if micro is None:
        return
    if train.sync_batchnorm and -(-share // micro) != -(-smallest // micro):
        raise ValueError(
            f"train.micro_batch {micro} cuts shares of {share} and {smallest} samples into unequal "
            "numbers of portions, and synchronised BatchNorm needs equal ones; choose a batch that "
            "the ranks divide"
        )
    if not train.sync_batchnorm and 1 in {micro, share % micro, smallest % micro}:
        raise ValueError(
            f"train.micro_batch {micro} leaves a portion of one sample of {share}, and "
            "BatchNorm needs 2; choose a divisor of the batch"
        )
