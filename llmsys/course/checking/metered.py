"""What a check may ask of a run beside its value: what it read, allocated and kept, and what its kernels did.

The figures are those of a `Run` (`llmsys.course.checking.runner`). A wrong one is recognised in another run by all that
is known of the memory, or of the kernels' work, as well as by the outcome.
"""

from collections.abc import Callable

from llmsys.course.checking.faults import same_memory, same_outcome
from llmsys.course.checking.runner import Run


class Metered:
    """The judgements of `Answer` that are about memory and work."""

    def _reject(
        self,
        kind: str,
        message: str,
        run: Run,
        *,
        got: str = "",
        expected: str = "",
        wrong: Callable[[Run], bool],
        same: Callable[[Run, Run], bool] | None = None,
    ) -> None:
        """End the check: this run is wrong in that way, as others are of which `wrong` and `same` are true."""
        raise NotImplementedError

    def _stays_in_torch(self, run: Run) -> None:
        """What is asked about memory can only be answered where no data left torch."""
        if run.left:
            self._reject(
                "reads",
                f"data left torch, by {' and '.join(f'{name}()' for name in run.left)}, where no meter can follow it: "
                "compute with torch's operations, on what the function was given",
                run,
                wrong=lambda r: bool(r.left),
                same=lambda a, b: same_outcome(a, b) and a.left == b.left,
            )

    def reads(
        self, run: Run, at_most: float, of: int | str = 0, *, at_least: float = 0.0, otherwise: str = ""
    ) -> None:
        """The call read its argument `of` (a position, a keyword, or a path like "0.1") at most so many times over, and
        at least so many; `otherwise` says what a smaller number must mean."""

        self._stays_in_torch(run)

        def passes(r: Run) -> float:
            return r.reads.get(of, 0.0)

        def wrong(r: Run) -> bool:
            return passes(r) > at_most + 1e-6 or passes(r) < at_least - 1e-6

        if wrong(run):
            found = f"{passes(run):.3g} pass{'es' * (abs(passes(run) - 1) > 1e-6)}"
            its = f"its argument {of}" if str(of).isidentifier() else "its argument"
            if passes(run) > at_most:
                message = f"it read {its} {passes(run):.3g} times over, where {at_most:.3g} passes are enough"
            elif passes(run) == 0:
                message = "no operation was seen that reads its argument: use torch, on what the function was given"
            else:
                message = f"it read {its} {passes(run):.3g} times over, which cannot be: {otherwise}"
            bounds = f"at most {at_most:.3g}" if at_least == 0 else f"{at_least:.3g} to {at_most:.3g}"
            self._reject(
                "reads", message, run, got=found, expected=f"{bounds} passes", wrong=wrong, same=same_memory
            )

    def reads_at_once(self, run: Run, at_most: int, of: int | str = 0, what: str = "a tile") -> None:
        """No operation read more than `at_most` elements of the argument `of`; `what` says of what that is the size."""

        self._stays_in_torch(run)

        def wrong(r: Run) -> bool:
            return r.at_once.get(of, 0) > at_most

        if wrong(run):
            self._reject(
                "reads",
                f"one operation read {run.at_once[of]:,} elements of its argument, where {what} has {at_most:,}",
                run,
                got=f"{run.at_once[of]:,} elements at once",
                expected=f"at most {at_most:,}",
                wrong=wrong,
                same=same_memory,
            )

    def allocates(self, run: Run, at_most: int, what: str = "") -> None:
        """No operation in the call allocated a tensor of more than `at_most` bytes. `what` says where that bound comes
        from ("one tile of each row")."""
        self._stays_in_torch(run)
        if run.largest_bytes > at_most:
            bound = f"{at_most:,} bytes" + (f" ({what})" if what else "")
            largest = f"{run.largest_bytes:,} bytes, shape {run.largest_shape}"
            self._reject(
                "allocation",
                f"it allocated a tensor of {largest}, where {bound} is enough",
                run,
                got=largest,
                expected=f"at most {bound}",
                wrong=lambda r: r.largest_bytes > at_most,
                same=same_memory,
            )

    def keeps(self, run: Run, at_most: int, what: str = "", *, passes: int | None = None) -> None:
        """Beside arguments and result, never more than `at_most` bytes were alive at once: tensors, lists of them,
        NumPy's arrays, Python's numbers. `passes` asks only about the first ones over the arguments. `what` says where
        the bound comes from ("a few tiles")."""

        self._stays_in_torch(run)

        def alive(r: Run) -> int:
            return max(r.alive_bytes[:passes], default=0)

        if alive(run) > at_most:
            bound = f"{at_most:,} bytes" + (f" ({what})" if what else "")
            self._reject(
                "allocation",
                f"it kept {alive(run):,} bytes at once beside its result, where {bound} are enough",
                run,
                got=f"{alive(run):,} bytes",
                expected=f"at most {bound}",
                wrong=lambda r: alive(r) > at_most,
                same=same_memory,
            )

    def done_with_the_last_read(self, run: Run, at_most: int, what: str = "") -> None:
        """After it had read its arguments for the last time, the call computed with no more than `at_most` elements:
        its result was finished as it was written. `what` says where the bound comes from ("a few tiles"). Copies are
        free, and NumPy's work is not seen."""
        self._stays_in_torch(run)
        if run.afterwards > at_most:
            bound = f"{at_most:,}" + (f" ({what})" if what else "")
            self._reject(
                "afterwards",
                f"it computed with {run.afterwards:,} elements more after the last one of its argument had been read, "
                f"where {bound} are enough: that is another pass, over what it had written",
                run,
                got=f"{run.afterwards:,} elements",
                expected=f"at most {bound}",
                wrong=lambda r: r.afterwards > at_most,
                same=same_memory,
            )

    def traffic(self, run: Run, loaded: int, stored: int) -> None:
        """The call's kernels loaded at most so many bytes and stored exactly so many, of all their tensors together.
        The sanitizer counts them: where kernels are compiled, there is nothing to hold against the bounds."""

        def moved(r: Run) -> tuple[int, int]:
            return sum(r.bytes_loaded.values()), sum(r.bytes_stored.values())

        def by_tensor(r: Run) -> tuple[dict, dict]:  # who loads k twice is not who loads v twice
            return r.bytes_loaded, r.bytes_stored

        def wrong(r: Run) -> bool:
            return r.watched and (moved(r)[0] > loaded or moved(r)[1] != stored)

        if wrong(run):
            loads, stores = moved(run)
            enough = f"it loaded {loads:,} bytes, where {loaded:,} are enough"
            self._reject(
                "traffic",
                enough if loads > loaded else f"it stored {stores:,} bytes, where the result has {stored:,}",
                run,
                got=f"{loads:,} bytes loaded, {stores:,} stored",
                expected=f"at most {loaded:,} bytes loaded, {stored:,} stored",
                wrong=wrong,
                same=lambda a, b: same_outcome(a, b) and by_tensor(a) == by_tensor(b),
            )

    def products(self, run: Run, needed: int, dtype: str) -> None:
        """The call's kernels made so many multiply-adds with tl.dot, all of operands of that type ("fp16"). With fewer,
        something was multiplied in another way. Counted as `traffic` is."""

        def wrong(r: Run) -> bool:
            return r.watched and (sum(r.multiply_adds.values()) != needed or bool(set(r.multiply_adds) - {dtype}))

        def work(r: Run) -> tuple:  # who loads more than the answer does wastes for another reason
            return r.multiply_adds, r.bytes_loaded, r.bytes_stored

        if wrong(run):
            made = ", ".join(f"{n:,} in {name}" for name, n in sorted(run.multiply_adds.items())) or "no"
            message = f"its products took {made} multiply-adds, where {needed:,} in {dtype} are enough"
            if sum(run.multiply_adds.values()) < needed:
                message = f"tl.dot made {made} multiply-adds of {needed:,}: what else is multiplied and summed is slow"
            self._reject(
                "products",
                message,
                run,
                got=f"{made} multiply-adds",
                expected=f"{needed:,} multiply-adds, in {dtype}",
                wrong=wrong,
                same=lambda a, b: same_outcome(a, b) and work(a) == work(b),
            )

    def tiles(self, run: Run, *, loads: int | None = None, dots: int | None = None) -> None:
        """The call's kernels took at most so many tiles with tl.load, and so many products with tl.dot. To be asked
        after `traffic` and `products`: who took more without moving or multiplying more has smaller tiles. Counted as
        `traffic` is."""
        allowed = {name: n for name, n in (("load", loads), ("dot", dots)) if n is not None}

        def took(r: Run) -> dict[str, int]:
            return {name: r.operations.get(name, 0) for name in allowed}

        def wrong(r: Run) -> bool:
            return r.watched and any(n > allowed[name] for name, n in took(r).items())

        def shown(counts: dict[str, int]) -> str:
            return " and ".join(f"{n} × tl.{name}" for name, n in counts.items())

        if wrong(run):
            self._reject(
                "tiles",
                f"it took {shown(took(run))}, where {shown(allowed)} are enough: its tiles are smaller than asked",
                run,
                got=shown(took(run)),
                expected=f"at most {shown(allowed)}",
                wrong=wrong,
                same=lambda a, b: same_outcome(a, b) and took(a) == took(b),
            )
