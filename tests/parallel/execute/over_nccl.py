"""A rank of `test_several_ranks_share_a_gpu`: python -m tests.parallel.execute.over_nccl RANK RANKS FILE.

It says which schedule begins and which was right, and ends with an error where one is not.
"""

import os
import sys

import torch
import torch.distributed as dist

from llmsys.parallel.pipeline import SCHEDULES, make_schedule
from tests.parallel.execute.models import make_microbatches, make_model, unsplit
from tests.parallel.execute.two_steps import check, two_steps


def main(rank: int, ranks: int, file: str) -> None:
    gpu = torch.device("cuda", rank % torch.cuda.device_count())
    os.environ["LOCAL_RANK"] = str(gpu.index)
    torch.cuda.set_device(gpu)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl", store=dist.FileStore(file, ranks), rank=rank, world_size=ranks, device_id=gpu
    )
    for name in SCHEDULES:
        print("begins", name, flush=True)
        schedule = make_schedule(name, ranks, 2 * ranks)
        model, tokens = make_model(schedule.num_stages), make_microbatches(2 * ranks)
        expected = unsplit(model, tokens)
        check(two_steps(model, schedule, tokens), schedule, *expected)
        dist.barrier()
        print("right", name, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
