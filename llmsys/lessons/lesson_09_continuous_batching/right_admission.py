"""A right answer to exercise (b): room for those who run, if need be from the newest; and who comes in."""

from llmsys.cache.block_table import OutOfBlocks
from llmsys.lessons.lesson_09_continuous_batching.bookkeeping import Bookkeeping


class RightAdmission(Bookkeeping):
    """Who has blocks."""

    def make_room(self, request):
        """Whether the request has slots for all its known tokens now."""
        if request not in self.running:
            return False
        while True:
            try:
                self.pool.extend(request.table, len(request.tokens))
                return True
            except OutOfBlocks:
                newest = self.running[-1]
                self.preempt(newest)
                if newest is request:
                    return False

    def preempt(self, request):
        """Back into the queue, first, with all its tokens and no block."""
        self.running.remove(request)
        self.pool.free(request.table)
        request.computed = 0
        self.waiting.insert(0, request)
        self.preempted.append(request)

    def admit(self):
        """Lets the first of those that wait in, if there is room for it."""
        if self.preempted or not self.waiting:
            return None
        request = self.waiting[0]
        hit = self.pool.match(request.tokens)
        reserve = self.reserve if self.running else 0
        try:
            request.table = self.pool.allocate(len(request.tokens), hit, reserve=reserve)
        except OutOfBlocks:
            return None
        request.computed = hit.tokens
        self.waiting.remove(request)
        self.running.append(request)
        return request
