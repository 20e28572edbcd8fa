"""Not a test: a program that is killed while it trains, for test_checkpoint.py.

`python killed.py DIR BYTES` trains the tiny model of conftest.py in DIR/0, DIR/1 …, each time in a child process that
dies at one call later: the 1st, the 2nd … of those by which checkpoints are written and removed, until one lives to the
end. In DIR/full it is the disk that is full: no file can be larger than BYTES.
"""

import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import conftest  # beside this file

from llmsys.models.checkpoints import save
from llmsys.training import Corpus, TrainConfig, checkpoint, train

SETTINGS = TrainConfig(steps=2, batch=2, context=16, save_every=1, keep=1, evaluate_batches=1, dtype="bfloat16")
CORPUS = Corpus.from_texts(conftest.make_texts(), conftest.make_tokenizer())
MOMENTS = ((os, "fsync"), (Path, "rename"), (shutil, "rmtree"), (save, "save_file"), (checkpoint, "save_file"))


def die_at(moment: int) -> None:
    """End the process without any clearing up, before that call of the functions in MOMENTS, or in the middle of it."""
    calls = [0]

    def wrap(owner, name):
        real = getattr(owner, name)

        def wrapped(*arguments, **options):
            calls[0] += 1
            if calls[0] == moment:
                if name == "save_file":  # half a file
                    Path(arguments[1]).write_bytes(b"half")
                if name == "rmtree":  # half a directory
                    (Path(arguments[0]) / "model.safetensors").unlink(missing_ok=True)
                os._exit(9)
            return real(*arguments, **options)

        setattr(owner, name, wrapped)

    for owner, name in MOMENTS:
        wrap(owner, name)


def train_in_child(folder: Path, *, moment: int | None = None, largest: int | None = None) -> int:
    """The exit status of a child that trains in `folder`: 0 at the end, 9 where it died, 3 where it could not write."""
    child = os.fork()
    if child == 0:
        if moment is not None:
            die_at(moment)
        if largest is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        try:
            train(conftest.make_model(), CORPUS, SETTINGS, out=folder)
        except OSError as error:
            print(error, flush=True)
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, largest: int) -> None:
    # What torch imports is imported once, before there are children.
    train(conftest.make_model(), CORPUS, TrainConfig(steps=1, batch=1, context=4, warmup=0))
    if (status := train_in_child(folder / "full", largest=largest)) != 3:
        sys.exit(f"a full disk: exit status {status}")
    for moment in range(200):
        status = train_in_child(folder / str(moment), moment=moment + 1)
        if status not in (0, 9):
            sys.exit(f"moment {moment}: exit status {status}")
        if status == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
